from dataclasses import FrozenInstanceError, fields

import pytest

from decomp.graph.layer import InputSpace, Layer, every_step


def layer(**facts):
    return Layer("features.3", "features_3", "conv", 1, 6, 10, (3, 5), (8, 8), (4, 8), **facts)


def test_a_layer_cannot_be_changed():
    one = layer(left_alone={"prune": "reads the image itself"})
    for field in fields(Layer):
        with pytest.raises(FrozenInstanceError):
            setattr(one, field.name, None)
    with pytest.raises(TypeError):
        one.left_alone["spatial"] = "another reason"
    with pytest.raises(TypeError):
        layer().left_alone["spatial"] = "another reason"
    assert one.left_alone == {"prune": "reads the image itself"} and layer().left_alone == {}


def test_the_reasons_given_may_be_changed_afterwards():
    reasons = {"spatial": "a 1×1 kernel has nothing to split"}
    one = layer(left_alone=reasons)
    reasons["prune"] = "later"
    assert set(one.left_alone) == {"spatial"}


def test_every_step_has_the_one_reason():
    assert every_step("called 2 times") == {step: "called 2 times" for step in ("spatial", "channel", "prune")}


def test_pruning_chooses_among_the_channels_of_the_input_space_or_of_the_input():
    assert layer().input_width == 6
    assert layer(input_space=InputSpace("features.0", "features.3", 3, repeat=2)).input_width == 3


def test_the_spatial_split_is_exact_at_the_smaller_side_of_its_matrix():
    assert layer().max_spatial_rank == min(6 * 3, 10 * 5) == 18
    assert Layer("a", "a", "conv", 0, 20, 2, (3, 5), (8, 8), (8, 8)).max_spatial_rank == 10


def test_only_a_space_without_producer_is_sampled():
    assert InputSpace(None, "b", 4).sampled and not InputSpace("a", "b", 4).sampled
