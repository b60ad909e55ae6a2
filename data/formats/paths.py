"""File names made from the names of layers and networks."""

import re


def safe_name(name, max_length=100):
    """`name` as the name of a file in any folder: no separators, no ``..``, nothing hidden, not too long."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", str(name))
    return re.sub(r"\.{2,}", "_", name).strip(".")[:max_length] or "_"
