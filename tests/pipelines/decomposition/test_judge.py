"""Judgement of networks: the divergence on images that no fit has seen, and the comparison of two networks."""

import pytest
import torch
import torch.nn.functional as F

from decomp.data.formats import network_file
from decomp.pipelines.decomposition.judge import Judge, is_better
from decomp.pipelines.decomposition.session import open_run
from decomp.pipelines.measure.resources import Resources
from decomp.pipelines.run import calibration
from decomp.pipelines.run.calibration import fitted_images
from tests.pipelines.digit_runs import Collected

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


def test_a_plan_is_better_only_by_more_than_twice_the_standard_error_of_the_difference():
    one, other = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.5, 2.5, 3.5, 4.5])
    assert is_better(one, other) and not is_better(other, one) and not is_better(one, one)
    # mean 0.5, standard deviation 0.5 of the differences: standard error 0.5 / sqrt(n - 1), 0.289 and 0.189
    assert not is_better(torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert is_better(torch.zeros(8), torch.tensor([0.0, 1.0] * 4))


def test_at_most_some_of_the_held_out_images_are_judged_on(blocks_run):
    with open_run(blocks_run, Resources(torch.device("cpu"), batch_size=5)) as opened:
        judge, first = Judge(opened, 7), fitted_images(opened.frozen.n_images)
        assert len(judge.changes(opened.original)) == 7
        assert torch.equal(judge.held_out.images(0, 9), opened.frozen.images(first, first + 7))


@pytest.fixture
def broken(blocks_run):
    """The network with one class that is more probable than it should be."""
    network = network_file.load(blocks_run.original_dir)
    with torch.no_grad():
        network.get_submodule("head").bias[3] += 1
    return network


@torch.no_grad()
def divergences(run, network, images):
    original = network_file.load(run.original_dir)
    p, q = F.log_softmax(original(images).double(), 1), F.log_softmax(network(images).double(), 1)
    return (p.exp() * (p - q)).sum(1)


def test_the_change_is_the_divergence_on_held_out_images(blocks_run, broken):
    with open_run(blocks_run, Resources(torch.device("cpu"))) as opened:
        judge, before = Judge(opened), opened.memory.forward_images
        images = opened.frozen.images(fitted_images(opened.frozen.n_images), opened.frozen.n_images)
        wanted = divergences(blocks_run, broken, images)
        torch.testing.assert_close(judge.changes(broken), wanted, rtol=1e-4, atol=1e-7)
        assert opened.memory.forward_images == before
        assert torch.equal(judge.changes_of_first(broken), judge.changes(broken))
        assert opened.memory.forward_images == before + len(images)


def test_of_few_images_the_change_of_each_is_the_mean_over_itself_and_the_mixtures_of_it(
    blocks_run, broken, monkeypatch
):  # fmt: skip
    monkeypatch.setattr(calibration, "RECORDED_IMAGES", 1000)
    monkeypatch.setattr(calibration, "JUDGED_IMAGES", 40)
    reporter = Collected()
    with open_run(blocks_run, Resources(torch.device("cpu"), batch_size=7)) as opened:
        judge = Judge(opened)
        wanted = divergences(blocks_run, broken, judge.held_out.images(0, 40))
        found = judge.changes(broken)
        assert len(wanted) == 40 and wanted.std() > 1e-4
        judge.say("as it is", found, reporter)
    torch.testing.assert_close(found, torch.stack([wanted[place::10].mean() for place in range(10)]))
    words = f"as it is: change of the outputs {float(wanted.mean()):.3g} on 10 held-out images and 30 mixtures of them"
    assert reporter.messages == [words]
