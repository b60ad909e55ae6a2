"""Files of a pruned network: folded and with its normalisations, in the class of the original, with its cost."""

from dataclasses import replace

import pytest
import torch
from networks import Block, block
from torch import nn

from decomp.data.formats import network_file
from decomp.errors import DecompError
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.pruning.emission import emit
from decomp.pipelines.pruning.plan_file import prune_options
from decomp.pipelines.pruning.removal import remove
from decomp.pipelines.pruning.unfolded import unfolded

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def made():
    source = unfolded(block(), "block", SHAPE)
    options = prune_options(ratio=0.5, coupled=True)
    return source, remove(source, options, device=torch.device("cpu"), reporter=Reporter(quiet=True))


def emitted(made, path, **options):
    source, pruned = made
    return emit(source, pruned.network, path, **{
        "changed": pruned.changed, "planned": pruned.planned, "meta": {"model": "block"}, **options,
    })  # fmt: skip


def test_both_forms_are_written_and_go_into_the_original_class(made, tmp_path):
    after, verified = emitted(made, tmp_path / "pruned")
    assert verified.into and after.macs == made[1].planned.macs
    images = torch.randn(2, *SHAPE)
    folder = tmp_path / "pruned"
    folded, with_norms = network_file.load(folder), network_file.load(folder / network_file.WITH_BATCHNORM)
    assert torch.equal(with_norms(images), made[1].network(images))
    torch.testing.assert_close(folded(images), with_norms(images), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    for path, network in ((folder, folded), (folder / network_file.WITH_BATCHNORM, with_norms)):
        inside = network_file.load(path, into=Block())
        assert type(inside) is Block and torch.equal(inside(images), network(images))
    assert isinstance(inside.bn1, nn.BatchNorm2d) and inside.bn1.num_features == 6


def test_another_cost_than_planned_is_refused_and_nothing_is_written(made, tmp_path):
    wrong = replace(made[1].planned, macs=made[1].planned.macs + 1)
    with pytest.raises(DecompError, match="block: must have the planned .* multiply-accumulates, got"):
        emitted(made, tmp_path / "pruned", planned=wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_normalisations_has_one_form(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    source = unfolded(model, "net", SHAPE)
    pruned = remove(source, prune_options(ratio=0.5), device=torch.device("cpu"), reporter=Reporter(quiet=True))
    emitted((source, pruned), tmp_path / "pruned")
    assert sorted(path.name for path in (tmp_path / "pruned").iterdir()) == ["structure.json", "weights.safetensors"]
