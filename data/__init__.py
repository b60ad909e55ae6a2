"""Image sources, networks and weights by name, and the file formats."""
