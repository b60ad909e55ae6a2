"""Channel numbers of values while a network is read: what each result of a node unites, freezes and starts."""

import numpy as np
import pytest
from torch import fx

from decomp.graph.channel_numbers import ChannelNumbers, Layout, Use


class Reading:
    """A graph of nodes with given shapes, and the channel numbers of its first node, the image."""

    def __init__(self, channels=4):
        self.graph, self.shapes = fx.Graph(), {}
        self.image = self.graph.placeholder("image")
        self.shapes[self.image] = (2, channels, 5, 5)
        self.numbers = ChannelNumbers(self.shapes)
        self.ids = self.numbers.numbers.add(channels)
        self.numbers.layouts[self.image] = Layout(self.ids)

    def node(self, name, *inputs, shape=(2, 4, 5, 5)):
        node = self.graph.call_module(name, inputs or (self.image,))
        if shape is not None:
            self.shapes[node] = shape
        return node

    def frozen(self):
        return [(ids.tolist(), reason) for ids, reason in self.numbers.frozen]


@pytest.fixture
def reading():
    return Reading()


def test_shapes_and_layouts_are_those_of_nodes_that_give_one_tensor(reading):
    numbers, two = reading.numbers, reading.node("chunk", shape=None)
    first, second = Layout(reading.ids[:2]), Layout(reading.ids[2:])
    numbers.layouts[two] = (first, second)
    assert numbers.shape(reading.image) == (2, 4, 5, 5) and numbers.shape(two) == numbers.shape(3) == ()
    assert numbers.layout(reading.image).ids is reading.ids
    assert numbers.layout(two) is None and numbers.layout(1.5) is None
    assert numbers.all_layouts(two) == (first, second)
    assert numbers.all_layouts(reading.image) == (numbers.layout(reading.image),)
    assert numbers.all_layouts(reading.node("other")) == ()


def test_channels_passed_on_keep_their_numbers_and_their_map(reading):
    source, node = Layout(reading.ids, (3, 3)), reading.node("relu")
    reading.numbers.pass_on(node, source)
    assert reading.numbers.layout(node) is source
    assert reading.frozen() == [] and reading.numbers.origins == [] and len(reading.numbers.numbers) == 4


@pytest.mark.parametrize("shape", [(2, 5, 5, 5), (2,)])
def test_a_result_of_another_width_is_not_passed_on(reading, shape):
    node = reading.node("body", shape=shape)
    reading.numbers.pass_on(node, Layout(reading.ids))
    assert reading.frozen()[0] == ([0, 1, 2, 3], "goes through body")
    assert reading.numbers.layout(node) is None or reading.numbers.layout(node).ids.tolist() == [4, 5, 6, 7, 8]


def test_a_node_that_starts_channels_freezes_them_and_is_an_origin(reading):
    node = reading.node("noise", shape=(2, 3, 5))
    reading.numbers.start(node, "is drawn")
    assert reading.numbers.layout(node).ids.tolist() == [4, 5, 6]
    assert reading.frozen() == [([4, 5, 6], "is drawn")]
    assert [(name, ids.tolist()) for name, ids in reading.numbers.origins] == [(node.name, [4, 5, 6])]
    vector = reading.node("vector", shape=(2,))
    reading.numbers.start(vector, "has no channels")
    assert reading.numbers.layout(vector) is None and len(reading.numbers.numbers) == 7


def test_what_is_not_understood_freezes_all_that_goes_in_and_comes_out(reading):
    two, node = reading.node("chunk"), None
    reading.numbers.layouts[two] = (Layout(reading.ids[:2]), Layout(reading.ids[2:]))
    node = reading.node("body", two, shape=(2, 1, 5, 5))
    reading.numbers.not_understood(node)
    assert reading.frozen() == [
        ([0, 1], "goes through body"), ([2, 3], "goes through body"), ([4], "comes out of body"),
    ]  # fmt: skip
    other = Reading()
    other.numbers.not_understood(other.node("body"), "is cut unevenly")
    assert other.frozen() == [([0, 1, 2, 3], "is cut unevenly"), ([4, 5, 6, 7], "comes out of body")]


@pytest.mark.parametrize("record", ["count_of", "size_of"])
def test_a_number_of_channels_that_is_computed_with_freezes_them(reading, record):
    count = reading.graph.call_method("size", (reading.image, 1))
    getattr(reading.numbers, record)[count] = reading.image
    node = reading.node("scale", reading.image, count)
    reading.numbers.freeze_counts_read_by(node, allowed=count)
    assert reading.frozen() == []
    reading.numbers.pass_on(node, Layout(reading.ids))
    assert reading.frozen() == [([0, 1, 2, 3], "has its number of channels read by scale")]


# -- calls of modules --------------------------------------------------------------------------------------------


def test_a_layer_gives_its_own_channels_and_a_carrier_keeps_the_map(reading):
    numbers, ids = reading.numbers, reading.ids
    layer = Use("conv", "layer", ids, numbers.numbers.add(3), map_shape=(5, 5))
    node = reading.node("conv", shape=(2, 3, 5, 5))
    numbers.call(node, layer)
    assert numbers.layout(node).ids is layer.writes and numbers.layout(node).map_shape == (1, 1)
    carrier = Use("norm", "carrier", layer.writes, layer.writes, map_shape=(5, 5))
    after = reading.node("norm", node, shape=(2, 75))
    numbers.call(after, carrier)
    assert numbers.layout(after).map_shape == (5, 5)
    assert numbers.uses == [layer, carrier] and numbers.events == [] and reading.frozen() == []
    assert numbers.numbers.representatives().tolist() == list(range(7))


def test_a_layer_called_twice_is_cut_alike_in_both_calls(reading):
    numbers, ids = reading.numbers, reading.ids
    first = Use("conv", "layer", ids, numbers.numbers.add(4))
    second = Use("conv", "layer", first.writes, numbers.numbers.add(4))
    for use in (first, second):
        numbers.call(reading.node("conv"), use)
    # What it reads in the second call goes with what it reads in the first, and so do the outputs.
    assert numbers.numbers.representatives().tolist() == [0, 1, 2, 3] * 3
    ((words, concerned),) = numbers.events
    assert words == "conv is called several times"
    assert np.array_equal(concerned, np.concatenate([second.reads, second.writes]))
    assert numbers.uses == [first, second]


def test_outputs_of_two_calls_on_the_same_channels_go_together(reading):
    numbers, ids = reading.numbers, reading.ids
    for _ in range(2):
        numbers.call(reading.node("conv"), Use("conv", "layer", ids, numbers.numbers.add(4)))
    assert numbers.numbers.representatives().tolist() == [0, 1, 2, 3] + [4, 5, 6, 7] * 2


def test_layers_of_other_names_are_not_united(reading):
    numbers = reading.numbers
    for name in ("a", "b"):
        numbers.call(reading.node(name), Use(name, "layer", reading.ids, numbers.numbers.add(4)))
    assert numbers.numbers.representatives().tolist() == list(range(12)) and numbers.events == []


@pytest.mark.parametrize(("reads", "writes"), [(3, 4), (4, 3)])
def test_a_second_call_of_another_width_is_not_understood(reading, reads, writes):
    numbers = reading.numbers
    numbers.call(reading.node("norm"), Use("norm", "layer", reading.ids, numbers.numbers.add(4)))
    second, add = reading.node("norm"), numbers.numbers.add
    numbers.call(second, Use("norm", "layer", add(reads), add(writes)))
    assert reading.frozen()[0] == ([0, 1, 2, 3], "goes through norm") and len(numbers.uses) == 1
    assert numbers.origins[0][0] == second.name and numbers.events == []
