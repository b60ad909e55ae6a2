"""The traced network: its layers, its channel spaces, and its structure as data."""
