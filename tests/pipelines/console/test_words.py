"""Counted nouns and lists of names."""

import pytest

from decomp.pipelines.console.words import counted, listed


@pytest.mark.parametrize("n, text", [(0, "0 layers"), (1, "1 layer"), (2, "2 layers"), (5000, "5,000 layers")])
def test_a_noun_is_in_the_plural_unless_there_is_one(n, text):
    assert counted(n, "layer") == text
    assert counted(n, "directory", "directories") == text.replace("layers", "directories").replace("layer", "directory")


def test_of_many_names_the_first_ones_are_listed_and_the_others_counted():
    assert listed([]) == "" and listed(["a"]) == "a" and listed(list("abcd")) == "a, b, c, d"
    assert listed(list("abcdefg")) == "a, b, c, d and 3 more" and listed(list("abc"), most=2) == "a, b and 1 more"
