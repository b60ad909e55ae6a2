import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import utils

from decomp.modules.copies import deep_copy


def test_a_network_with_a_computed_weight_is_copied_and_not_changed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = nn.Sequential(utils.weight_norm(nn.Linear(4, 3)), utils.spectral_norm(nn.Linear(3, 2)))
    x = torch.randn(5, 4)
    network(x).sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(network)
    again, before = deep_copy(network).eval(), network.eval()(x)
    assert torch.equal(again(x), before)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.mul_(2)
    assert torch.equal(network(x), before) and not torch.equal(again(x), before)
    assert network[0].weight.grad_fn is not None
