"""Declarations of the commands for click: names, options, help texts, and errors in one line."""
