"""Counted nouns for messages."""


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, in the plural where it is not one: ``'1 linear layer'``, ``'4 convolutions'``."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
