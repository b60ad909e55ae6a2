"""Declarations of the commands for click."""
