import pickle

import torch
from torch import nn

from decomp.modules.sized_chain import SizedChain


def test_the_output_size_changes_nothing_and_the_names_are_those_of_a_sequential():
    parts = nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1), nn.Conv2d(4, 2, 1)
    chain, x = SizedChain(*parts), torch.randn(2, 3, 5, 4)
    wanted = nn.Sequential(*parts)(x)
    for got in (chain(x), chain(x, [10, 8]), chain(x, output_size=(10, 8)), pickle.loads(pickle.dumps(chain))(x)):
        assert torch.equal(got, wanted)
    assert chain.state_dict().keys() == nn.Sequential(*parts).state_dict().keys()
