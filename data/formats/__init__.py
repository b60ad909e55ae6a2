"""File formats: atomic writes, JSON, and one module for each kind of file."""
