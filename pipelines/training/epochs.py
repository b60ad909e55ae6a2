"""Losses of an epoch, epochs in words, and the signs of a training that diverges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from decomp.errors import NumericalError

from ..console.progress import format_seconds
from ..distributed.process_group import count, summed
from ..measure.intervals import short_share, wilson

#: Losses are read once in so many steps, so that a GPU need not be waited for after each of them.
CHECK_EVERY = 50
#: Losses above so many times that of the first step, which counts at least LEAST_LOSS, are those of a diverging
#: training; untrained networks of a thousand classes begin at 7.
FACTOR, LEAST_LOSS = 10.0, 0.1
#: An accuracy below this share of the best one is that of a network that has lost what it could do.
LOST = 0.5
_HIDDEN = ("epoch", "score", "seconds", "loss")


def epoch_words(line: Mapping[str, Any], n_validation: int = 0) -> str:
    """One line of the history in words: ``'loss 0.21, validation accuracy 94.1 % (93.5–94.6), 12 s'``.

    Parameters
    ----------
    line : mapping
    n_validation : int
        Images that accuracies are counted on; 0 where that is not known.
    """
    parts = [] if line.get("loss") is None else [f"loss {line['loss']:.3g}"]
    for key, value in line.items():
        if key in _HIDDEN or key.startswith("learning_rate") or not isinstance(value, (int, float)):
            continue
        words = short_share(value, n_validation) if key.endswith(("accuracy", "agreement")) else f"{value:.3g}"
        parts.append(f"{key.replace('_', ' ')} {words}")
    if line.get("seconds") is not None:
        parts.append(format_seconds(line["seconds"]))
    return ", ".join(parts)


def divergence(history: Sequence[Mapping[str, Any]], first_loss: float, n_validation: int = 0) -> str | None:
    """The sign, in words, that a training diverges in its last epoch; None where there is none.

    Parameters
    ----------
    history : sequence of mapping
        Lines of the epochs so far.
    first_loss : float
        Loss of the very first step, before any weight was changed.
    n_validation : int
        Images that accuracies are counted on.

    Notes
    -----
    There are two signs. The mean loss of the epoch is far above that of the first step, and the validation is not
    the best so far. Or the validation accuracy is below half of the best one, by more than chance, while the loss is
    no lower than at the first step: the network has lost what it could do.
    """
    last, before = history[-1], history[:-1]
    loss, score = last["loss"], last.get("score")
    improved = score is not None and all(score > line["score"] for line in before if "score" in line)
    if loss > FACTOR * max(first_loss, LEAST_LOSS) and not improved:
        return f"its mean loss is {loss:.3g}, that of its first step was {first_loss:.3g}"
    accuracy = last.get("validation_accuracy")
    best = max((line["validation_accuracy"] for line in before if "validation_accuracy" in line), default=None)
    if accuracy is None or best is None or n_validation < 1 or loss < 0.98 * first_loss:
        return None
    highest_now, lowest_best = (wilson(round(share * n_validation), n_validation) for share in (accuracy, best))
    if accuracy < LOST * best and highest_now[1] < lowest_best[0]:
        was = f"{short_share(best, n_validation)} before"
        return f"validation accuracy {short_share(accuracy, n_validation)} after {was}, loss {loss:.3g}"
    return None


class EpochLosses:
    """Mean loss of an epoch; raises at the first NaN or Inf."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.pending: list[torch.Tensor] = []
        self.total, self.count = 0.0, 0
        self.first: float | None = None

    def add(self, value: torch.Tensor) -> None:
        self.pending.append(value)
        if len(self.pending) == CHECK_EVERY:
            self._read()

    def mean(self) -> float:
        self._read()
        return self.total / self.count

    def _read(self) -> None:
        if not self.pending:
            return
        values = summed(torch.stack(self.pending).double().cpu()) / count()
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            first = int(bad[0])
            raise NumericalError(
                f"epoch {self.epoch + 1}, step {self.count + first + 1}",
                "the loss must be finite",
                got=float(values[first]),
            )
        self.first = float(values[0]) if self.first is None else self.first
        self.total += float(values.sum())
        self.count += len(self.pending)
        self.pending = []
