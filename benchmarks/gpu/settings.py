"""Sizes of the benchmark on a GPU, and of its trial on a CPU; the rows of its results."""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """Sizes of all parts.

    Attributes
    ----------
    device : str
    layer, rows : int
        Channels c = n of the single layer, and rows of its least-squares problem.
    network, side, images, points, speedup
        The network that is decomposed, the size of its images, their number, and the positions of each.
    tuned, batch, steps
        The network that is fine-tuned, images in a step, steps of an epoch.
    timed, timed_images, asked, timed_batch, repetitions
        The network that is planned by measured time, the images of its error curves, the speed-up asked for, images at
        a time, and how often the plan is timed again.
    compared, compared_data, compared_images, compared_speedup
        The network that is decomposed on the CPU and on the GPU; with its trained weights on images of this name, or
        with random weights on generated ones where there is none.
    """

    device: str = "cuda"
    layer: int = 512
    rows: int = 50_000
    network: str = "torchvision:vgg16"
    side: int = 224
    images: int = 2000
    points: int = 10
    speedup: float = 4
    tuned: str = "torchvision:resnet50"
    batch: int = 128
    steps: int = 20
    timed: str = "torchvision:vgg16"
    timed_images: int = 200
    asked: float = 2
    timed_batch: int = 32
    repetitions: int = 3
    compared: str = "zoo:vgg-digits"
    compared_data: str | None = "digits"
    compared_images: int = 500
    compared_speedup: float = 3


#: On a CPU, in seconds: whether every part runs, not how fast.
TRIAL = Setting(
    device="cpu", layer=8, rows=200, network="zoo:c3-32", side=8, images=20, points=4, speedup=2, tuned="zoo:c3-32",
    batch=4, steps=2, timed="zoo:c3-32", timed_images=20, asked=1.01, timed_batch=2, repetitions=1,
    compared="zoo:c3-32", compared_data=None, compared_images=20, compared_speedup=2,
)  # fmt: skip


def entry(what, value, unit, least=None, most=None, note=""):
    """A row: a figure, and the bounds within which it is aimed at."""
    return {"what": what, "value": value, "unit": unit, "least": least, "most": most, "note": note}


def aim(row):
    """The aim of a row in words."""
    least, most = row["least"], row["most"]
    if least is not None and most is not None:
        return f"{least:g} to {most:g}"
    return f"at most {most:g}" if most is not None else f"at least {least:g}" if least is not None else ""


def met(row):
    """Whether a figure is within its bounds; empty where it has none."""
    if not aim(row):
        return ""
    if row["value"] is None:
        return "no"
    low = row["least"] is None or row["value"] >= row["least"]
    return "yes" if low and (row["most"] is None or row["value"] <= row["most"]) else "no"


def read_rows(path):
    """The rows of a JSONL file; of rows of the same part and figure, the last."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return list({(row["part"], row["what"]): row for row in rows}.values())
