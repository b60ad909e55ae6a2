"""Commands run in this process, and a small network for them."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import pytest

from decomp import cli

ROOT = Path(__file__).resolve().parent.parent

# A chain small enough for tests, on scikit-learn's digits; its weights are drawn, not trained.
NETWORK = """
import torch
from torch import nn

def build(size=8):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10),
        )

def other():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

def colour():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * 4, 10))

class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(144, 10)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x.flatten(1)) if x.sum() > 0 else self.head(-x.flatten(1))

def untraceable():
    return Branch()

def broken():
    raise ValueError("two\\nlines")

not_a_model = 3
def returns_text():
    return "text"
"""


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def errors(self):
        """Error lines on standard error, without progress."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


def decomp_command(*arguments):
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit:
        cli.main([str(argument) for argument in arguments])
    return Result(exit.value.code or 0, out.getvalue(), err.getvalue())
