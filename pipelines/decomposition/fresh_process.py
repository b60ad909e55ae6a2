"""Measured speed-up of a network in a process of its own, which runs nothing else, as where the network is used.

A process that has planned for a while holds much memory that it has used and freed. Networks find other places in it,
and run up to a fifth faster or slower than in a new process. A helper process imports what a measurement needs, once,
and makes a copy of itself for each one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor, fx, nn

import decomp
from decomp.errors import DecompError
from decomp.runtimes.choice import runtime
from decomp.runtimes.onnx import OnnxRuntime
from decomp.runtimes.runtime import Runtime
from decomp.runtimes.timing import random_images

from ...data.formats import network_file
from .speed_ratio import RoundsRule, SpeedRatio, measure_ratio
from .timings import block_of_rounds

#: Of a helper process: the checkout or installation that this process runs is the one that it imports.
_PROGRAM = f"import sys; sys.path[0] = sys.argv[1]; from {__name__} import serve; serve(sys.argv[2])"
_GRAPH = "graph.onnx"


def write_network(network: nn.Module, folder: Path, made: Runtime, example: Tensor) -> None:
    """Write a network for :func:`read_network`; for ONNX Runtime its graph, which takes seconds to export.

    Raises
    ------
    DecompError
        The network cannot be written as data, or not exported.
    """
    folder.mkdir()
    if isinstance(made, OnnxRuntime):
        (folder / _GRAPH).write_bytes(made.graph(network, example))
        return
    if not isinstance(network, fx.GraphModule):
        raise DecompError("network", "only a traced network can be written as data", got=type(network).__qualname__)
    network_file.save(network, folder / "network")


def read_network(folder: Path, made: Runtime, example: Tensor) -> Callable[[Tensor], object]:
    """A network of :func:`write_network`, ready to run."""
    if isinstance(made, OnnxRuntime):
        return made.session((folder / _GRAPH).read_bytes(), example)
    return made.prepare(network_file.load(folder / "network"), example)


def measure(request: Mapping[str, Any]) -> SpeedRatio:
    """The measurement that a request asks for, in this process.

    Parameters
    ----------
    request : dict
        ``runtime``, ``layout``, ``threads``, ``shape``; ``original`` and ``planned``, folders of networks; ``rule``,
        fields of a :class:`decomp.pipelines.decomposition.speed_ratio.RoundsRule`.
    """
    torch.set_num_threads(request["threads"])
    made, shape = runtime(request["runtime"], request["layout"]), tuple(request["shape"])
    device = torch.device("cpu")
    example = random_images(shape, device, made.layout)
    # An original that is timed alone may be large, and is read once.
    folders = dict.fromkeys((request["original"], request["planned"]))
    networks = {folder: read_network(Path(folder), made, example) for folder in folders}
    prepared = {name: networks[request[name]] for name in ("original", "planned")}
    prepared["again"] = prepared["original"]
    rule = RoundsRule(**request["rule"])
    return measure_ratio(block_of_rounds(prepared, shape, device, made.layout, rule.block_seconds), rule)


def serve(folder: str) -> None:
    """Answer the requests that come in, one line each, until there are no more; the work of the helper process.

    Each names the file for the answer: the fields of a SpeedRatio, or ``error``. There are no more requests also where
    the process that asks was killed: then nobody else removes the networks that it has written.

    Parameters
    ----------
    folder : str
        Of the networks and answers; removed at the end.
    """
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    for line in sys.stdin:
        request = json.loads(line)
        if sys.platform == "linux":  # elsewhere a copy of a process may not use all libraries
            _answer_in_a_copy(request)
        else:
            _answer(request)
        with contextlib.suppress(BrokenPipeError):
            said.write("done\n")
            said.flush()
    shutil.rmtree(folder, ignore_errors=True)


def _answer_in_a_copy(request: Mapping[str, Any]) -> None:
    """Answer in a copy of this process, which is ended where the process that asks ends before it has its answer."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _answer(request)
        except OSError as error:  # the folder is full, or is removed because nobody waits for the answer
            sys.stderr.write(f"{error}\n")
        finally:
            os._exit(0)
    os.close(write)
    ended, _, _ = select.select([read, 0], [], [])
    if read not in ended:  # no request comes in before the answer: this is the end of the input
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)


def _answer(request: Mapping[str, Any]) -> None:
    try:
        found: dict[str, Any] = asdict(measure(request))
    except Exception as error:  # whatever it is, the process that asked says it
        found = {"error": f"{type(error).__name__}: {error}"}
    Path(request["answer"]).write_text(json.dumps(found))


class FreshProcess:
    """Measurements of networks against one original in new processes; a context manager.

    Parameters
    ----------
    made : decomp.runtimes.runtime.Runtime
        On the CPU.
    shape : tuple of int
        ``(batch_size, C, H, W)``.
    """

    def __init__(self, made: Runtime, shape: tuple[int, ...]) -> None:
        self.made, self.shape = made, shape
        self._example = random_images(shape, torch.device("cpu"), made.layout)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._messages: IO[str] | None = None
        self._original: nn.Module | None = None
        self._written = Path()

    def __enter__(self) -> FreshProcess:
        self._folder = tempfile.TemporaryDirectory(prefix="decomp-timing-")
        self._messages = tempfile.TemporaryFile("w+")
        root = str(Path(decomp.__file__).resolve().parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, root, self._folder.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._messages, text=True,
            start_new_session=True,  # Ctrl-C ends this process, which then ends that one
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None and self._folder is not None and self._messages is not None
        if kind is not None:
            # A measurement may take longer than a command has for its end after Ctrl-C. The helper is stopped only
            # then: where this process does not come so far, the helper removes the rest.
            shutil.rmtree(self._folder.name, ignore_errors=True)
            self._stop(self._process)
        with contextlib.suppress(OSError):
            self._process.communicate()  # the helper ends with its input
        self._messages.close()
        self._folder.cleanup()

    @staticmethod
    def _stop(process: subprocess.Popen[str]) -> None:
        """End the helper process and its copy that measures."""
        if sys.platform == "linux":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()

    def ratio(self, original: nn.Module, planned: nn.Module, rule: RoundsRule) -> SpeedRatio:
        """Measured speed-up of a planned network over the original.

        Parameters
        ----------
        original, planned : torch.nn.Module
            The first is written once, as long as it is the same object. Also as the second it is prepared only once.
        rule : RoundsRule

        Raises
        ------
        DecompError
            A network cannot be written or does not run in a new process.
        """
        assert self._folder is not None
        folder = Path(self._folder.name)
        if self._original is not original:
            self._written = Path(tempfile.mkdtemp(dir=folder)) / "original"
            write_network(original, self._written, self.made, self._example)
            self._original = original
        with tempfile.TemporaryDirectory(dir=folder) as inside:
            written = self._written if planned is original else Path(inside) / "planned"
            if planned is not original:
                write_network(planned, written, self.made, self._example)
            return self._asked({
                "runtime": self.made.name, "layout": self.made.layout, "threads": torch.get_num_threads(),
                "shape": self.shape, "original": str(self._written), "planned": str(written), "rule": asdict(rule),
                "answer": str(Path(inside) / "answer.json"),
            })  # fmt: skip

    def _asked(self, request: Mapping[str, Any]) -> SpeedRatio:
        """The answer of the helper process."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        self._process.stdout.readline()
        answer = Path(request["answer"])
        found = json.loads(answer.read_text()) if answer.is_file() else {"error": self._last_words()}
        if "error" in found:
            raise DecompError("measurement", "it failed in a process of its own", got=found["error"])
        return SpeedRatio(**{**found, "interval": tuple(found["interval"])})

    def _last_words(self) -> str:
        """The last line that the helper process wrote to its error output."""
        assert self._messages is not None
        self._messages.seek(0)
        lines = self._messages.read().strip().splitlines()
        return lines[-1] if lines else "it ended without an answer"
