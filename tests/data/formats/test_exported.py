"""Export formats: outputs and the text about the network come back from every format."""

import copy
import importlib.util

import pytest
import torch
from torch import nn

from decomp.data.formats import exported
from decomp.data.formats.exported import FORMATS
from decomp.errors import DecompError

TEXT = '{"origin": "tést"}'


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)]
        network = nn.Sequential(*layers)
        network[1].running_mean.normal_()  # as after training
    return network.eval()


def images(n):
    return torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(n))


def other_weights(network):
    """A network of the same structure, whose weights must not show in the outputs."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for value in other.state_dict().values():
            value.add_(1)
    return other


@pytest.mark.parametrize("name", FORMATS)
def test_outputs_and_text_come_back(tmp_path, network, name):
    if name == "onnx" and any(importlib.util.find_spec(need) is None for need in ("onnx", "onnxscript", "onnxruntime")):
        pytest.skip('needs pip install "decomp[export]"')
    path = str(tmp_path / f"a{FORMATS[name].suffix}")
    FORMATS[name].write(network, images(2), path, TEXT)
    run, text = FORMATS[name].read(path, other_weights(network))
    assert text == TEXT
    for n in (1, 5):  # other batches than that of the example
        with torch.no_grad():
            (outputs,) = torch.utils._pytree.tree_leaves(run(images(n)))
            torch.testing.assert_close(outputs, network(images(n)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["state-dict", "safetensors"])
def test_a_tensor_left_out_of_the_file_is_not_taken_from_the_given_network(tmp_path, network, name, monkeypatch):
    path = str(tmp_path / f"a{FORMATS[name].suffix}")
    FORMATS[name].write(network, images(2), path, TEXT)
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda self, state: None)  # nothing is loaded
    run, _ = FORMATS[name].read(path, network)
    assert not torch.cat([value.flatten().float() for value in run.state_dict().values()]).any()


def test_onnx_above_its_limit_is_refused_before_it_is_written(tmp_path, network, monkeypatch):
    monkeypatch.setattr(exported, "ONNX_BYTES", 1000)
    with pytest.raises(DecompError, match="one file must stay below 2 GiB; export pt2 instead"):
        FORMATS["onnx"].write(network, images(2), str(tmp_path / "a.onnx"), TEXT)
    assert list(tmp_path.iterdir()) == []
