"""Speed-up of whole networks over the original: in new processes on a CPU, otherwise in this one."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType

import torch
from torch import nn

from decomp.errors import DecompError

from ..console.reporter import Reporter
from .fresh_process import FreshProcess
from .speed_ratio import SAME, SpeedRatio, measure_ratio
from .timings import Shape, Timings, block_of_rounds


def in_new_processes(device: torch.device) -> bool:
    """Whether networks on this device are measured in new processes.

    On a GPU a second process would need the memory of the original again, and what a process has done before does not
    change the time of its networks: memory there is torch's own.
    """
    return device.type == "cpu"


class WholeNetworks:
    """Measurements of networks against one original; a context manager.

    Parameters
    ----------
    timings : decomp.pipelines.decomposition.timings.Timings
    original : torch.nn.Module
    shape : tuple of int
        ``(batch_size, C, H, W)``.
    reporter : decomp.pipelines.console.reporter.Reporter
    """

    def __init__(self, timings: Timings, original: nn.Module, shape: Shape, reporter: Reporter) -> None:
        self.timings, self.original, self.shape, self.reporter = timings, original, shape, reporter
        self._fresh: FreshProcess | None = None
        self._expected: float | None = None  # the original's time on a machine that stays slow

    def __enter__(self) -> WholeNetworks:
        if in_new_processes(self.timings.device):
            self._fresh = FreshProcess(self.timings.runtime, self.shape).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.timings.save()
        if self._fresh is not None:
            self._fresh.__exit__(kind, error, trace)

    @property
    def process(self) -> str:
        """The process in which networks are measured: 'new' ones, or the 'same' that plans."""
        return "same" if self._fresh is None else "new"

    def ratio(
        self, planned: nn.Module, wanted: tuple[float, float] | None = None, kept: tuple[float, float] | None = None
    ) -> SpeedRatio:
        """Measured speed-up of a planned network over the original.

        Parameters
        ----------
        planned : torch.nn.Module
        wanted, kept : tuple of float, optional
            See :func:`decomp.pipelines.decomposition.speed_ratio.measure_ratio`.
        """
        found = self._measured(planned, wanted, kept, self._expected or self.timings.fastest_original)
        self.timings.note_original(found.original_ms)
        shortest = self.timings.fastest_original or found.original_ms
        # Where the machine stays slow, the next measurements do not wait for it; each says that it is.
        self._expected = found.original_ms if found.original_ms > SAME * shortest else None
        return replace(found, slowed=max(0.0, found.original_ms / shortest - 1))

    def _measured(
        self,
        planned: nn.Module,
        wanted: tuple[float, float] | None,
        kept: tuple[float, float] | None,
        fastest: float | None,
    ) -> SpeedRatio:
        if self._fresh is not None:
            try:
                return self._fresh.ratio(self.original, planned, wanted, fastest, kept)
            except DecompError as error:
                self.reporter.warn(f"networks are timed in the process that plans, not in a new one: {error}")
                self._fresh.__exit__(None, None, None)
                self._fresh = None
        prepared = {"original": self.timings.prepared(self.original, self.shape)}
        prepared |= {"planned": self.timings.prepared(planned, self.shape), "again": prepared["original"]}
        block = block_of_rounds(prepared, self.shape, self.timings.device, self.timings.runtime.layout)
        return measure_ratio(block, wanted=wanted, fastest=fastest, kept=kept)

    def prepare_anew(self) -> None:
        """Prepare the original again, as another process would; new processes do so by themselves."""
        if self._fresh is None:
            self.timings.keep_prepared(self.original, self.shape)
