"""Compensation for dropped channels: constants and means in biases, statistics estimated again and judged."""

import pytest
import torch
from networks import randomise
from torch import nn

from decomp.cost.count import cost
from decomp.errors import UsageError
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.modules.copies import deep_copy
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.pruning.choice import Images
from decomp.pipelines.pruning.compensation import choose_statistics, first, recalibrated, words
from decomp.pipelines.pruning.images import batched
from decomp.pipelines.pruning.plan_file import PruningPlan, prune_options
from decomp.pipelines.pruning.removal import remove
from decomp.pipelines.pruning.unfolded import folded_copy, unfolded
from decomp.surgery.constant_channels import Moved

SHAPE = (2, 6, 6)
OUTPUTS = Outputs((Output("output", "values", (3,), "as asked"),))
CPU, QUIET = torch.device("cpu"), Reporter(quiet=True)


def network(dead=(), kernel=3):
    """Channels of the first layer in `dead` have a scale factor of zero, and are constant behind it."""
    model = randomise(nn.Sequential(
        nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, kernel, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * (5 - kernel) ** 2, 3),
    ))  # fmt: skip
    with torch.no_grad():
        model[1].weight[list(dead)] = 0
        model[1].bias[list(dead)] = 0.7
    return model


def images(n=60, source=None):
    pixels = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(3))
    return batched(lambda start, stop: pixels[start:stop], n - 10, n, 16, CPU, OUTPUTS, 0)


def pruned(model, keep, given=None, **options):
    plan = PruningPlan({"0": keep}, {"0": 8})
    source = unfolded(model, "net", SHAPE)
    return source, remove(source, prune_options(plan, **options), plan, images=given, device=CPU, reporter=QUIET)


@pytest.mark.parametrize("given", [None, "images"])
def test_a_constant_channel_goes_without_any_change_of_the_outputs(given):
    model = network(dead=(1, 4))
    _, made = pruned(model, [0, 2, 3, 5, 6, 7], given and images())
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(made.network(x), model(x), rtol=1e-5, atol=1e-5)
    assert made.notes == ("constants of dropped channels moved into the biases of 1 layer: 2 values",)
    _, without = pruned(model, [0, 2, 3, 5, 6, 7], bias="none")
    assert (without.network(x) - model(x)).abs().max() > 1e-2


def test_a_new_bias_is_counted_among_the_parameters():
    _, made = pruned(network(dead=(1,)), [0, 2, 3, 4, 5, 6, 7])
    assert made.network.get_submodule("3").bias is not None
    assert made.planned.params == cost(folded_copy(made.network), SHAPE).params


def test_with_means_the_readers_have_their_mean_outputs_as_before():
    model = network(kernel=1)  # its kernel sees every position
    source, plain = pruned(model, [0, 2, 5], images())
    _, made = pruned(model, [0, 2, 5], images(), bias="mean")
    x = torch.cat(list(images().batches()))
    with torch.no_grad():
        before, means, others = (m[:4](x).mean((0, 2, 3)) for m in map(sequence, (source, made, plain)))
    torch.testing.assert_close(means, before, rtol=1e-4, atol=1e-5)
    assert (others - before).abs().max() > 0.1
    assert plain.notes == () and made.notes == ("means of dropped channels moved into the biases of 1 layer: 5 values",)


def sequence(made):
    return nn.Sequential(*(made.network.get_submodule(str(i)) for i in range(7)))


def test_what_is_not_exact_is_told_with_the_reason():
    moved = [Moved("a", 2, None), Moved("b", 1, "zero padding"), Moved("c", 3, "zero padding")]
    lines = words(moved, "constant")
    assert lines == [
        "constants of dropped channels moved into the biases of 3 layers: 6 values", "not exact in b, c: zero padding",
    ]  # fmt: skip
    assert len(words(moved, "mean")) == 1 and words([], "mean") == []


def test_statistics_are_those_of_the_images():
    source = unfolded(network(), "net", SHAPE)
    before = deep_copy(source.network).state_dict()
    pixels = 2 * torch.randn(64, *SHAPE) + 1
    again = recalibrated(source.network, pixels.split(32))
    with torch.no_grad():
        halves = [source.network.get_submodule("0")(half) for half in pixels.split(32)]
    norm = again.get_submodule("1")
    torch.testing.assert_close(norm.running_mean, torch.stack([h.mean((0, 2, 3)) for h in halves]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([h.var((0, 2, 3)) for h in halves]).mean(0))
    assert norm.momentum == 0.1 and not norm.training
    assert all(torch.equal(value, before[name]) for name, value in source.network.state_dict().items())


def test_statistics_that_make_it_worse_on_held_out_images_are_not_kept():
    source, made = pruned(network(), list(range(8)), images())
    pixels = 9 * torch.randn(40, *SHAPE) + 5
    unlike = Images(lambda: iter(pixels.split(20)), images().held_out, OUTPUTS, None)
    kept, said = choose_statistics(source.network, made.network, unlike, OUTPUTS)
    assert kept is made.network and said.startswith("statistics of the batch normalisations stay those of the training")
    with torch.no_grad():
        made.network.get_submodule("1").running_mean += 3
    like, said = choose_statistics(source.network, made.network, images(), OUTPUTS)
    assert like is not made.network and said.startswith("statistics of the batch normalisations estimated again")


def test_statistics_need_normalisations_and_images():
    with pytest.raises(UsageError, match="--recalibrate-bn: needs images"):
        pruned(network(), [0, 1], recalibrate_bn=True)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)).eval()
    with pytest.raises(UsageError, match="--recalibrate-bn: estimates the statistics of batch normalisations, and the"):
        pruned(model, [0, 1], images(), recalibrate_bn=True)


def test_no_more_images_than_wanted_are_read():
    batches = iter(torch.zeros(30, 1).split(10))
    assert [len(batch) for batch in first(batches, 15)] == [10, 5]
