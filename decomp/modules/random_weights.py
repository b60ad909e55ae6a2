"""Random weights for networks that are only timed or run for their shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Numbers after which the weights repeat: a prime, so that rows of equal length differ. To draw all of a large linear
#: layer takes seconds, and times do not depend on the numbers.
PERIOD = 65_521


def random_weights(shape: Sequence[int]) -> Tensor:
    """Weights with which outputs are about as large as inputs; equal at every call.

    Parameters
    ----------
    shape : sequence of int
        (outputs, inputs of one output, ...).

    Returns
    -------
    Tensor
        Normal numbers of standard deviation 1/√(inputs of one output), in float32 on the CPU.
    """
    n = math.prod(shape)
    noise = torch.randn(min(n, PERIOD), generator=torch.Generator().manual_seed(0))
    noise /= max(1, math.prod(shape[1:])) ** 0.5
    return noise.repeat(-(-n // PERIOD))[:n].reshape(*shape)
