"""Jobs of several processes for the tests of this folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NETWORK = """
import torch
from torch import nn

def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(64, 10),
        )
"""


class Jobs:
    """Runs commands or functions in several processes, in one folder."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "net.py").write_text(NETWORK)
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("process_server.py"))], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self._server.stdout.readline() == "ready\n"

    def _order(self, **order):
        self._server.stdin.write(json.dumps({"output": str(self.folder / "output.txt"), **order}) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline()), (self.folder / "output.txt").read_text()

    def command(self, n, line, **more):
        """Exit codes of the processes, and all that they print together."""
        return self._order(n=n, args=line.split(), **more)

    def well(self, n, line):
        codes, text = self.command(n, line)
        assert codes == [0] * n, text
        return text

    def call(self, n, function):
        """What a function of a module of this folder returns in each process."""
        codes, text = self._order(n=n, call=function)
        assert codes == [0] * n, text
        return [json.loads((self.folder / f"output.txt.{rank}").read_text()) for rank in range(n)]

    def close(self):
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


@pytest.fixture(scope="session")
def jobs(tmp_path_factory):
    started = Jobs(tmp_path_factory.mktemp("jobs"))
    yield started
    started.close()
