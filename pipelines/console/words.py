"""Counted nouns and lists of names, for messages."""

from __future__ import annotations

from collections.abc import Sequence


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, in the plural where it is not one: ``'1 linear layer'``, ``'4 convolutions'``."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first names of many, and how many there are beside them: ``'a, b, c, d and 3 more'``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
