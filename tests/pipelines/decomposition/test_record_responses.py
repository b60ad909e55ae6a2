"""Recording of responses: the file holds what the network gives at the sampled positions."""

import pytest
import torch
from networks import randomise
from torch import nn

from decomp.data.formats.frozen_file import FrozenFile
from decomp.data.formats.frozen_keys import shortcut_key
from decomp.data.sources import open_source
from decomp.errors import NumericalError
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.decomposition.record_responses import ResponseRecording
from decomp.pipelines.run.calibration import Mixtures
from decomp.pipelines.run.directory import RunDirectory
from tests.pipelines.digit_runs import SHAPE, Residual

SCORES = Outputs((Output("output", "scores", (10,)),))


@pytest.fixture
def network():
    return randomise(Residual()).eval()


def record(folder, network, batch_size=7, outputs=SCORES, mixtures=None, watch=None):
    run, source = RunDirectory.create(folder), open_source("digits", input_shape=SHAPE)
    graph = NetworkGraph(trace(network, "net"), SHAPE, "net")
    recording = ResponseRecording(graph, 3, 0, torch.arange(20), outputs, mixtures)
    meta = {"n_points": 3} if mixtures is None else {"n_points": 3, "n_mixtures": len(mixtures)}
    recording.write(run, meta, source, batch_size, torch.device("cpu"), Reporter(quiet=True), watch=watch)
    return run, source


def at(values, positions):
    """Values (M, n, H, W) at positions (M, P, 2), by loops."""
    rows = [[values[m, :, y, x] for y, x in positions[m].tolist()] for m in range(len(values))]
    return torch.stack([torch.stack(row) for row in rows])


def test_images_responses_and_shortcuts_are_those_of_a_plain_forward_pass(tmp_path, network):
    run, source = record(tmp_path / "run", network)
    images = source.train.images(torch.arange(20))
    with torch.no_grad():
        stem = network.stem(images)
        hidden = torch.relu(network.conv1(torch.relu(stem)))
        last = network.conv2(hidden)
    with FrozenFile(run.frozen) as frozen:
        assert torch.equal(frozen.images(0, 20), images)
        with torch.no_grad():
            scores = network(images).double()
        (described,) = frozen.meta["outputs"]
        assert described["name"] == "output" and described["shape"] == [10]
        assert described["variance"] == pytest.approx((scores - scores.mean(0)).square().mean().item(), rel=1e-4)
        p = scores.softmax(1)
        mean = p.mean(0).log().expand_as(p)
        assert described["information"] == pytest.approx((p * (p.log() - mean)).sum(1).mean().item(), rel=1e-4)
        positions = frozen.positions(frozen.grid_of("stem"))
        for name, values in (("stem", stem), ("conv2", last), (shortcut_key("conv2"), torch.relu(stem))):
            assert torch.allclose(frozen.responses(name), at(values, positions), atol=1e-6), name


def test_responses_to_mixtures_follow_those_of_the_images_and_change_nothing_else(tmp_path, network):
    mixtures = Mixtures(
        torch.arange(15), torch.arange(15).flip(0) + 1, torch.linspace(0.1, 0.5, 15), torch.rand(15, 2)
    )  # fmt: skip
    watched = []
    plain, source = record(tmp_path / "plain", network)
    run, _ = record(tmp_path / "run", network, mixtures=mixtures, watch=lambda out: watched.append(out["output"]))
    images = source.train.images(torch.arange(20))
    made = mixtures.images(images[mixtures.first], images[mixtures.second], slice(0, 15))
    with FrozenFile(run.frozen) as frozen, FrozenFile(plain.frozen) as before:
        assert torch.equal(frozen.images(20, 35), made)
        assert torch.equal(frozen.images(), before.images())
        positions = frozen.positions(frozen.grid_of("stem"))
        with torch.no_grad():
            stem = network.stem(torch.cat([images, made]))
        assert torch.allclose(frozen.responses("stem", 0, 35), at(stem, positions), atol=1e-6)
        # Spreads of the outputs and the sanity check are those of the images alone.
        assert frozen.meta["outputs"][0]["variance"] == pytest.approx(before.meta["outputs"][0]["variance"], rel=1e-6)
    assert sum(len(part) for part in watched) == 20


def test_the_batch_size_decides_nothing(tmp_path, network):
    one, _ = record(tmp_path / "one", network, batch_size=20)
    other, _ = record(tmp_path / "other", network, batch_size=3)
    with FrozenFile(one.frozen) as first, FrozenFile(other.frozen) as second:
        for name in first.layers:
            assert torch.allclose(first.responses(name), second.responses(name), atol=1e-6)
            assert torch.equal(first.positions(first.grid_of(name)), second.positions(second.grid_of(name)))


def test_a_value_that_is_not_finite_is_refused_and_leaves_no_file(tmp_path, network):
    network.conv1.weight.data[0] = float("inf")
    with pytest.raises(NumericalError, match=r"conv1: the responses must be finite, got \d+ NaN or infinite values"):
        record(tmp_path / "run", network)
    assert not (tmp_path / "run" / "frozen.h5").exists()


class Levels(nn.Module):
    """A layer that is called at two sizes, and twice at the first."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)

    def forward(self, x):
        x = self.stem(x).relu()
        small = nn.functional.max_pool2d(x, 2)
        return torch.cat([self.head(part).flatten(1) for part in (x, small, 1 - x)], 1)


def test_every_call_of_a_layer_is_recorded_at_its_own_positions(tmp_path):
    network = randomise(Levels()).eval()
    run, source = record(tmp_path / "run", network, outputs=Outputs((Output("output", "values", (576,)),)))
    with torch.no_grad():
        stem = network.stem(source.train.images(torch.arange(20))).relu()
        parts = [stem, nn.functional.max_pool2d(stem, 2), 1 - stem]
        values = dict(zip(("head", "head: call 2", "head: call 3"), map(network.head, parts)))
    with FrozenFile(run.frozen) as frozen:
        assert set(frozen.layers) == {"stem", *values}
        for name, wanted in values.items():
            positions = frozen.positions(frozen.grid_of(name))
            # Nine points an image in proportion to 64, 16 and 64 positions.
            assert positions.shape[1] == (1 if name == "head: call 2" else 4)
            assert torch.allclose(frozen.responses(name), at(wanted, positions), atol=1e-6), name
