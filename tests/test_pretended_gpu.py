"""The stages on a pretended GPU: every tensor is where it is needed, and nothing of a GPU is read as if it lay here.

Torch is changed for good in a process that pretends, so each part runs in one of its own.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from checkout import ROOT

SELF_TEST = """
import copy, threading, torch
from torch import nn

def refused(call, words):
    try:
        call()
    except (RuntimeError, TypeError) as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)

here, there = torch.ones(3, 4), torch.ones(3, 4, device="cuda")
tensors = here, there, there[0], there + 1, there.cpu(), torch.zeros_like(there), here.to(there)
assert [t.device.type for t in tensors] == ["cpu", "cuda", "cuda", "cuda", "cpu", "cuda", "cuda"]
refused(lambda: here + there, "same device")
refused(lambda: torch.cat([here, there]), "same device")
refused(lambda: here[torch.tensor([1], device="cuda")], "same device")
refused(there.numpy, "can't convert")
refused(lambda: torch.randn(3, device="cuda", generator=torch.Generator()), "generator")
assert there[torch.tensor([1])].is_cuda and (there + torch.tensor(1.0)).is_cuda  # as on a GPU
net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to("cuda").to(memory_format=torch.channels_last)
assert {t.device.type for t in copy.deepcopy(net).state_dict().values()} == {"cuda"}
refused(lambda: net(torch.ones(2, 1, 5, 5)), "same device")
net(torch.ones(2, 1, 5, 5).to("cuda")).sum().backward()
assert net[0].weight.grad.is_cuda and not net.to("cpu")[0].weight.is_cuda
failed = []
def in_thread():
    try:
        here + there
    except RuntimeError:
        failed.append(1)
thread = threading.Thread(target=in_thread)
thread.start()
thread.join()
assert failed
"""

MAIN_PATH = """
import decomp
from decomp.pipelines.decomposition import refine_blocks
refine_blocks.STEPS = 5
freeze = dict(model="zoo:c3-32", weights="random", data="npz:images.npz", input_size="1x8x8", n_images=20, n_points=3)
decomp.freeze("run", device="cuda", quiet=True, **freeze)
decomp.decompose("run", speedup=2, device="cuda", quiet=True)
decomp.finetune("run", epochs=1, device="cuda", quiet=True)
rows = decomp.evaluate("run", device="cuda", repeats=5, quiet=True).rows
assert [row.network for row in rows] == ["original", "decomposed", "fine-tuned"]
"""

OTHER_STAGES = """
import torch, decomp
from torch import nn
from decomp.pipelines.decomposition import refine_blocks
refine_blocks.STEPS = 5
freeze = dict(model="zoo:c3-32", weights="random", data="npz:images.npz", input_size="1x8x8", n_images=20, n_points=3)
decomp.freeze("run", device="cuda", quiet=True, **freeze)
decomp.sensitivity("run", ratios=(0.5,), device="cuda", quiet=True)
decomp.prune_run("run", criterion="taylor", ratio=0.3, device="cuda", quiet=True)
decomp.finetune("run", labels="none", epochs=1, device="cuda", quiet=True)
net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
images = torch.rand(20, 1, 8, 8)
for given in (images, images.to("cuda")):
    found, _ = decomp.compress(net.to("cuda").eval(), given, speedup=2, n_points=3, device="cuda", quiet=True)
    assert {p.device.type for p in found.parameters()} == {"cuda"}
decomp.train("zoo:c3-32", data="npz:images.npz", run="trained", epochs=3, scheme="repr", s1=1, s2=1, device="cuda",
             quiet=True)
"""


def run(text, folder):
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), np.uint8)
    np.savez(
        folder / "images.npz", x_train=images, y_train=np.arange(60) % 3, x_test=images[:9], y_test=np.arange(9) % 3
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    code = f"from pretended_gpu import pretend\npretend()\n{text}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "text", [SELF_TEST, MAIN_PATH, OTHER_STAGES], ids=["torch itself", "main path", "other stages"]
)
def test_every_tensor_is_on_the_device_where_it_is_needed(text, tmp_path):
    run(text, tmp_path)


def test_a_tensor_on_the_wrong_device_is_found(tmp_path):
    # The images of a replay stay on the CPU.
    broken = "from decomp.execution.replay import Replay\nreal = Replay.__init__\n"
    broken += "def start(self, *args, **kwargs):\n    real(self, *args, **kwargs)\n    self.device = 'cpu'\n"
    with pytest.raises(AssertionError, match="same device"):
        run(broken + "Replay.__init__ = start\n" + MAIN_PATH, tmp_path)
