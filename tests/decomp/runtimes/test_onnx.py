"""ONNX Runtime."""

import pytest
import torch
from torch import nn

from decomp.errors import DecompError, UsageError
from decomp.runtimes.onnx import OnnxRuntime
from decomp.runtimes.precision import exact_float32
from decomp.runtimes.timing import latencies, random_images

onnxruntime = pytest.importorskip("onnxruntime")
CPU = torch.device("cpu")


class Two(nn.Module):
    """Two outputs by name, after a sum."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, images):
        features = self.norm(self.one(images))
        return {"features": features, "sum": [(self.two(features) + features).mean((2, 3))]}


def test_a_network_of_several_outputs_gives_those_of_the_module_in_evaluation_mode():
    network, images = Two().train(), random_images((2, 3, 6, 6), CPU)
    prepared = OnnxRuntime().prepare(network, images)
    got = prepared(images)
    assert network.training
    with torch.no_grad():
        wanted = network.eval()(images)
    assert torch.allclose(torch.from_numpy(got[0]), wanted["features"], atol=1e-5)
    assert torch.allclose(torch.from_numpy(got[1]), wanted["sum"][0], atol=1e-5)
    assert len(latencies({"": prepared}, (2, 3, 6, 6), CPU, 2)[""]) == 2


def test_the_session_has_the_threads_of_torch_and_all_optimisations(monkeypatch):
    seen, session = [], onnxruntime.InferenceSession

    def made(graph, options, **rest):
        seen.append((options.intra_op_num_threads, options.inter_op_num_threads, options.graph_optimization_level))
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
        return session(graph, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", made)
    OnnxRuntime().prepare(nn.Conv2d(1, 1, 1), random_images((1, 1, 2, 2), CPU))
    assert seen == [(torch.get_num_threads(), 1, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)]
    assert OnnxRuntime().version == onnxruntime.__version__


def test_a_network_exports_within_exact_float32_in_which_stages_run():
    with exact_float32():
        assert OnnxRuntime().prepare(Two(), random_images((1, 3, 4, 4), CPU))


class Eigenvalues(nn.Module):
    def forward(self, images):
        return torch.linalg.eigvals(images).real


def test_a_network_that_does_not_export_is_refused_with_the_node():
    with pytest.raises(DecompError, match=r"^onnxruntime: the network cannot be exported .*node linalg_eig"):
        OnnxRuntime().prepare(Eigenvalues(), random_images((1, 1, 4, 4), CPU))


def test_the_only_layout_is_contiguous():
    with pytest.raises(UsageError, match="^layout: must be one of contiguous, got 'channels-last'"):
        OnnxRuntime("channels-last")
