"""Graphviz drawing: every layer and channel space, the arrows along the data flow, and the program dot."""

import os
import re
import shutil

import pytest
from torch import nn

from decomp.errors import FileError, UsageError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.reporting.graphviz import as_dot, draw, require_dot


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x)
        x = self.depthwise(x + self.outer(self.inner(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def text():
    return as_dot(NetworkGraph(trace(Residual().eval()), (1, 8, 8)), own={"inner"})


def test_layers_and_spaces_are_boxes_with_their_sizes(text):
    assert '"inner" [fillcolor="#ffffff", label="inner\\n3×3 16→8 at 8×8"]' in text
    assert '"head" [fillcolor=' in text and 'label="head\\n16→10"]' in text
    assert text.count("{") == text.count("}") == 1


def test_spaces_are_coloured_by_the_layers_that_prune_them(text):
    colours = dict(re.findall(r'"space (\w+)" \[style="filled,rounded", fillcolor="(#\w+)"', text))
    assert colours["inner"] == "#c8e6c9" and colours["stem"] == "#fff3c4"  # one reader; a residual stream
    assert colours["head"] == "#f8cfcf"  # the class scores are fixed


def test_arrows_follow_the_channels_and_do_not_bend_the_stream(text):
    for arrow in ('"stem" -> "space stem";', '"space stem" -> "inner";', '"inner" -> "space inner";'):
        assert f"  {arrow}" in text
    # The block writes into the stream that it has read.
    assert '"outer" -> "space stem" [constraint=false, color="#888888"];' in text
    assert '"space stem" -> "head";' in text


@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
def test_dot_renders_a_picture(text, tmp_path):
    assert draw(tmp_path / "net.png", text) == str(tmp_path / "net.png")
    assert (tmp_path / "net.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script as dot")
def test_a_failure_of_dot_leaves_no_file(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "dot"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho syntax error >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    with pytest.raises(FileError, match="dot could not draw the network, got syntax error"):
        draw(tmp_path / "net.png", "digraph {")
    assert os.listdir(tmp_path) == ["bin"]


def test_without_graphviz_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UsageError, match=r"--png: needs the program dot, .*; install graphviz \(apt install"):
        require_dot()
