"""Names of the entries of layers that are called once and several times."""

from dataclasses import replace

from decomp.data.formats.frozen_keys import call_key, grid_key, keys_of, shortcut_key
from decomp.graph.layer import Layer

LAYER = Layer("head", "head", "conv", 0, 4, 6, (3, 3), (16, 16), (16, 16))


def test_a_layer_called_once_has_its_own_name_and_the_grid_of_all_layers_of_its_size():
    assert list(keys_of(LAYER, 10)) == [("head", "16x16", 10)]
    assert list(keys_of(replace(LAYER, out_hw=(2, 3)), 10)) == [("head", "2x3", 6)]


def test_each_further_call_has_an_entry_and_shares_the_grid_where_it_has_as_many_points():
    again = replace(LAYER, more_calls=(((16, 16), (16, 16)),))
    assert list(keys_of(again, 10)) == [("head", "16x16", 10), ("head: call 2", "16x16", 10)]
    levels = replace(LAYER, more_calls=(((8, 8), (8, 8)), ((4, 4), (4, 4))))
    wanted = [("head", "16x16 at 23", 23), ("head: call 2", "8x8 at 6", 6), ("head: call 3", "4x4 at 1", 1)]
    assert list(keys_of(levels, 10)) == wanted


def test_names_of_entries_are_distinct():
    assert grid_key((3, 4)) == "3x4" and grid_key((3, 4), 5) == "3x4 at 5"
    assert [call_key("a", i) for i in range(3)] == ["a", "a: call 2", "a: call 3"]
    assert shortcut_key(call_key("a", 1)) == "a: call 2: shortcut"
