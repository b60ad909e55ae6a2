"""Command-line output and option values."""
