"""Recipes: several stages in one call."""
