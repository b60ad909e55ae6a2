"""Table of the paper on channel pruning: VGG-16 and ResNet-50 on ImageNet, beside the published figures.

Yihui He, Xiangyu Zhang, Jian Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decomp.errors import FileError, UsageError, check_choice

from ..console import parse
from ..console.reporter import Reporter
from ..console.text_table import text_table
from ..run.directory import RunDirectory
from ..stages.decompose import decompose
from ..stages.evaluate import EvaluationResult, evaluate
from ..stages.finetune import finetune
from ..stages.freeze import freeze

#: Networks of the table by name: the model, and the speed-ups asked for.
NETWORKS = {"vgg16": ("torchvision:vgg16", (2.0, 4.0, 5.0)), "resnet50": ("torchvision:resnet50", (2.0,))}
#: The published fine-tuning, except for its epochs.
RECIPE: dict[str, Any] = {"learning_rate": 1e-5, "weight_decay": 0.0, "batch_size": 128, "schedule": "constant"}
PAPER = "He, Zhang, Sun, ICCV 2017"
_ROUNDS = 5  # of the latency measurement, which is not the subject here


@dataclass(frozen=True)
class Published:
    """Published increase of the top-5 error, in points.

    Attributes
    ----------
    network, method : str
    speedup : float
        As the paper names it.
    counted : str
        Of the released network, by multiply-accumulates of convolutions and linear layers, as ours are counted; empty
        where it was not counted.
    untrained, tuned : float or None
        None where no figure is quoted here.
    """

    network: str
    method: str
    speedup: float
    counted: str
    untrained: float | None
    tuned: float | None


PUBLISHED = (
    Published("vgg16", "channel pruning", 4, "", None, 1.0),
    Published("vgg16", "3C", 4, "3.07-3.23x", None, 0.0),
    Published("vgg16", "channel pruning", 5, "4.52x", 22.0, 1.7),
    Published("vgg16", "3C", 5, "", None, 0.3),
    Published("resnet50", "channel pruning", 2, "1.48x", None, 1.4),
)


@dataclass(frozen=True)
class Ours:
    """Measured increase of the errors of one network at one speed-up.

    Attributes
    ----------
    network, run : str
    speedup, counted : float
        Asked for, and by multiply-accumulates of the network that was made.
    top5 : tuple of float or None
        Increase of the top-5 error in points: untrained, and fine-tuned.
    top1 : tuple of float or None
    n_images : int
        Test images.
    """

    network: str
    run: str
    speedup: float
    counted: float
    top5: tuple[float | None, float | None]
    top1: tuple[float | None, float | None]
    n_images: int


@dataclass(frozen=True)
class ImagenetResult:
    """The table.

    Attributes
    ----------
    ours : list of Ours
    epochs : int
        Of the fine-tuning; 0 where there was none.
    """

    ours: list[Ours]
    epochs: int

    def table(self) -> str:
        """The table as text: our rows, each followed by the published ones of the same network and speed-up."""
        rows = [["network", "method", "named", "counted", "top-5 untrained", "top-5 fine-tuned", "top-1 fine-tuned"]]
        for one in self.ours:
            named = f"{one.speedup:g}x"
            errors = [_points(value) for value in (*one.top5, one.top1[1])]
            rows.append([one.network, "ours", named, f"{one.counted:.2f}x", *errors])
            for other in PUBLISHED:
                if (other.network, other.speedup) == (one.network, one.speedup):
                    figures = [_points(other.untrained), _points(other.tuned), "-"]
                    rows.append([other.network, f"{other.method} ({PAPER})", named, other.counted or "-", *figures])
        return text_table(rows, left=2)

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        yield from self.table().split("\n")
        yield "errors: increase over the original in percentage points, single view; -: no figure"
        yield (
            "named: the speed-up as asked for, or as the paper names it; counted: multiply-accumulates of convolutions "
            "and linear layers, original divided by compressed, of the published rows in the released networks"
        )
        for one in self.ours:
            yield f"{one.run}: {one.n_images:,} test images, {self.epochs} epochs of fine-tuning"


def imagenet(
    folder: str | Path, data: str, *, networks: Sequence[str] = tuple(NETWORKS), weights: str | None = None,
    epochs: int = 10, n_images: int = 5000, seed: int = 0, batch_size: int = 100, memory: int | str | None = None,
    skip_bad: bool = False, device: str = "auto", reporter: Reporter | None = None,
) -> ImagenetResult:  # fmt: skip
    """Compress the paper's networks at its speed-ups, untrained and fine-tuned, and compare with its figures.

    Parameters
    ----------
    folder : path
        Gets a run directory for each network, and one for each network and speed-up.
    data : str
        Images with labels in train/ and val/: ``imagefolder:DIR`` of ImageNet.
    networks : sequence of str
        Of :data:`NETWORKS`; or ``MODEL=SPEEDUP`` with a model as ``freeze`` takes it, such as
        ``torchvision:vgg11=2x``; several speed-ups are separated by ``/``.
    weights : str, optional
        As for ``freeze``. Default: DEFAULT for models of torchvision and timm, otherwise the model's own.
    epochs : int
        Of the published fine-tuning: SGD, learning rate 1e-5 (constant), no weight decay, batches of 128. 0: none.
    n_images : int
        Calibration images.
    seed, batch_size, memory, skip_bad, device
        As for ``freeze``; the batches are those of the calibration.
    reporter : Reporter, optional

    Returns
    -------
    ImagenetResult

    Raises
    ------
    UsageError
        A network that is not known, or no images to test on.

    Notes
    -----
    Each stage that is done is not done again, so an interrupted call goes on where it was stopped. Differences from
    the published fine-tuning are those of :func:`~decomp.pipelines.stages.finetune.finetune`: gradients are clipped,
    the first half epoch is a warm-up, and the best epoch on held-out training images counts.
    """
    reporter = reporter or Reporter()
    chosen = [_chosen(name) for name in networks]
    if not chosen:
        raise UsageError("networks", f"must name at least one of {', '.join(NETWORKS)}")
    epochs = parse.number("--epochs", int, 0)(epochs)
    base = Path(folder)
    ours = []
    for name, model, speedups in chosen:
        published = model.startswith(("torchvision:", "timm:"))
        source = RunDirectory(base / name)
        reporter.step(f"{name}: freeze")
        freeze(
            source, model=model, data=data, weights=weights or ("DEFAULT" if published else None), n_images=n_images,
            seed=seed, batch_size=batch_size, memory=memory, skip_bad=skip_bad, device=device,
            reporter=reporter.into(source),
        )  # fmt: skip
        for speedup in speedups:
            member = RunDirectory(base / f"{name}-{speedup:g}x")
            own = reporter.into(member)
            reporter.step(f"{member}: {speedup:g} times cheaper")
            decompose(
                member, speedup=speedup, source_run=source.path, batch_size=batch_size, memory=memory, device=device,
                reporter=own,
            )  # fmt: skip
            if epochs:
                finetune(member, epochs=epochs, seed=seed, device=device, reporter=own, **RECIPE)
            result = evaluate(member, batch_size=1, repeats=_ROUNDS, device=device, reporter=own)
            ours.append(_increases(name, speedup, str(member), result, tuned=epochs > 0))
    return ImagenetResult(ours, epochs)


def _chosen(text: str) -> tuple[str, str, tuple[float, ...]]:
    """Name, model and speed-ups of an entry of `networks`."""
    model, equals, speedups = text.rpartition("=")
    if not equals:
        return (name := check_choice("networks", text, list(NETWORKS)), *NETWORKS[name])
    name = re.sub(r"\W+", "-", model.rpartition(":")[2]).strip("-")
    read = tuple(parse.speedup(part) for part in speedups.split("/"))
    return name, model, read


def _increases(name: str, speedup: float, run: str, result: EvaluationResult, *, tuned: bool) -> Ours:
    rows = {row.network: row for row in result.rows}
    original, decomposed = rows["original"], rows["decomposed"]
    if original.top1 is None:
        rule = "its images must have labels in train/ and val/, which are the numbers of the network's classes"
        raise FileError(run, rule, fix="name the class folders so that their order is the network's, in another folder")
    # Where no epoch was better than none, the fine-tuned network is the decomposed one, and has no row of its own.
    last = rows.get("fine-tuned", decomposed) if tuned else None

    def increase(column: str) -> tuple[float | None, float | None]:
        before, *after = (None if row is None else getattr(row, column) for row in (original, decomposed, last))
        first, second = (None if value is None or before is None else 100 * (before - value) for value in after)
        return first, second

    counted = decomposed.counted_speedup
    return Ours(name, run, speedup, counted, increase("top5"), increase("top1"), result.conditions["n_images"])


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f}"
