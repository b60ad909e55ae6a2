"""The error for responses that are not finite names the first layer that gives them."""

import torch
from networks import block

from decomp.pipelines.measure.finite import not_finite


def test_the_first_layer_with_such_responses_is_named_with_their_number():
    net, images = block(), torch.randn(2, 3, 8, 8)
    net.conv1.weight.data[3] = float("inf")
    net.conv2.weight.data[:] = float("nan")
    error = not_finite("net", net, images)
    assert error.thing == "net, conv1" and f" of {2 * 12 * 64} values NaN or infinite on the first 2 images" in str(
        error
    )
    assert not net.conv1._forward_hooks
    assert not_finite("net", block(), images).thing == "net, its output"
