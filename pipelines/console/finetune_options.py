"""Options of ``finetune``."""

from __future__ import annotations

from dataclasses import dataclass

from decomp.errors import UsageError

from . import parse
from .options import SCHEDULES, StageOptions, checked_field, flag_field

LABELS = ("train", "none")
#: Epochs of ``finetune`` where neither these nor a time are given.
FINETUNE_EPOCHS = 5
#: Images per batch where no number is given. Without labels more steps help more: no batch normalisation needs a batch.
BATCH_SIZES = {"train": 128, "none": 32}


@dataclass(frozen=True)
class FinetuneOptions(StageOptions):
    """Options of ``finetune``; see :func:`decomp.pipelines.stages.finetune.finetune`.

    ``epochs`` is None where ``minutes`` decides; ``batch_size`` goes by the labels where it is not given.
    """

    epochs: int | None = checked_field(parse.number("--epochs", int, 1), None, optional=True)
    minutes: float | None = checked_field(parse.number("--minutes", float, 0, above=True), None, optional=True)
    learning_rate: float = checked_field(parse.number("--lr", float, 0, above=True), 0.01)
    batch_size: int | None = checked_field(parse.number("--batch-size", int, 1), None, optional=True)
    schedule: str = checked_field(parse.choice("--schedule", SCHEDULES), "cosine")
    labels: str = checked_field(parse.choice("--labels", LABELS), "train")
    distill: bool = flag_field("--distill", False)
    weight_decay: float = checked_field(parse.number("--weight-decay", float, 0), 5e-4)
    data: str | None = checked_field(lambda value: parse.text("--data", value), None, optional=True)
    n_images: int | None = checked_field(parse.number("--images", int, 1), None, optional=True)
    seed: int = checked_field(parse.number("--seed", int, -(2**63)), 0)
    precision: str = checked_field(parse.choice("--precision", parse.PRECISIONS), "auto")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minutes is not None and self.epochs is not None:
            rule, got = "decides the number of epochs", f"--epochs {self.epochs} beside it"
            raise UsageError("--minutes", rule, got=got, fix="leave one of them out")
        if self.minutes is None and self.epochs is None:
            object.__setattr__(self, "epochs", FINETUNE_EPOCHS)
        if self.batch_size is None:
            object.__setattr__(self, "batch_size", BATCH_SIZES[self.labels])
        for name, value in (("--data", self.data), ("--images", self.n_images)):
            if value is not None and self.labels == "train":
                rule = "is for training without labels; with labels all labelled training images of the run are used"
                raise UsageError(name, rule, got=value, fix="give --labels none with it, or leave it out")
        if self.distill and self.labels == "none":
            raise UsageError(
                "--distill", "adds the original's outputs to labels", got="--labels none", fix="leave one of them out"
            )
