import hashlib
import itertools

import torch

from decomp.seeds import derive_seed, generator


def test_a_seed_is_the_first_63_bits_of_the_digest_of_its_names():
    digest = hashlib.sha256(b"7/decompose/features.3/2").hexdigest()
    assert derive_seed(7, "decompose", "features.3", 2) == int(digest[:16], 16) // 2
    # A number of its own, so that runs of earlier versions can be repeated.
    assert derive_seed(0, "points") == 995188537094274596


def test_seeds_differ_by_seed_purpose_and_order_and_fit_a_signed_integer():
    names = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "b", "a"), (0, "a", 1), (1, "a")]
    seeds = [derive_seed(*each) for each in names]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert all(a != b for a, b in itertools.combinations(seeds, 2))


def test_a_generator_does_not_depend_on_other_draws_nor_disturb_them():
    wanted = torch.rand(5, generator=generator(3, "x"))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(torch.rand(5, generator=generator(3, "x")), wanted)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(torch.rand(5, generator=generator(4, "x")), wanted)
