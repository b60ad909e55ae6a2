"""Counted nouns."""

import pytest

from decomp.pipelines.console.words import counted


@pytest.mark.parametrize("n, text", [(0, "0 layers"), (1, "1 layer"), (2, "2 layers"), (5000, "5,000 layers")])
def test_a_noun_is_in_the_plural_unless_there_is_one(n, text):
    assert counted(n, "layer") == text
    assert counted(n, "directory", "directories") == text.replace("layers", "directories").replace("layer", "directory")
