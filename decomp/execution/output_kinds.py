"""Kinds of a network's outputs: class scores, where that is known or said, or values of any other meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decomp.errors import UsageError

KINDS = ("scores", "values")
# Rows of probabilities add up to 1 within this.
SUM_TOLERANCE = 1e-4
# Share of an output's columns that the classes of the labels must fill.
LEAST_FILLED = 0.8
# Modules of torchvision.models whose networks are no classifiers.
OTHER_TASKS = ("segmentation", "detection", "optical_flow")


@dataclass(frozen=True)
class Output:
    """One tensor of a network's output.

    Attributes
    ----------
    name : str
        As :func:`decomp.execution.outputs.named_tensors` names it.
    kind : {'scores', 'values'}
        Scores of classes, one row an image, or numbers of any other meaning.
    shape : tuple of int
        Of one image.
    reason : str
        Evidence for the kind; empty where there is none and values are assumed.
    probabilities : bool
        The scores are probabilities, not logits.
    variance : float
        Mean over the entries of the variance over the images; of an output that is the same for all images, its mean
        square instead.
    information : float
        Of class scores, the mutual information of image and class in nats.
    constant : bool
        The same for all images.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: str = ""
    probabilities: bool = False
    variance: float = 1.0
    information: float = 1.0
    constant: bool = False

    @property
    def spread(self) -> float:
        """Change of this output that counts as 1."""
        return self.information if self.kind == "scores" else self.variance

    def words(self) -> str:
        """Kind and size in words."""
        size = "×".join(map(str, self.shape))
        reason = f" ({self.reason})" if self.reason else ""
        return f"{size} {'class scores' if self.kind == 'scores' else 'values'}{reason}"

    @property
    def may_be_scores(self) -> bool:
        """Whether values were assumed of rows that can be class scores."""
        return not self.reason and _are_rows(self.shape)


def decide_kinds(
    tensors: Mapping[str, Tensor], module: nn.Module, *, asked: str | None = None, n_classes: int | None = None
) -> tuple[Output, ...]:
    """The outputs of a network, with the kind of each.

    Rows of at least two numbers are class scores where that is asked for or known: their columns are as many as the
    classes of the images' labels; they are probabilities or logarithms of such, as behind a softmax; or the network is
    a classifier, see :func:`is_classifier`. All other outputs are values.

    Parameters
    ----------
    tensors : mapping of str to torch.Tensor
        Outputs on some images, as :func:`decomp.execution.outputs.named_tensors` gives them.
    module : torch.nn.Module
        The network as it was given, for its class.
    asked : {'scores', 'values'}, optional
        Decides for every output; of several outputs, 'scores' for those of two axes.
    n_classes : int, optional
        Classes of the labels that came with the images.

    Raises
    ------
    UsageError
        'scores' is asked for, and no output can be class scores.
    """
    shapes = {name: tuple(value.shape[1:]) for name, value in tensors.items()}
    if asked == "scores" and not any(map(_are_rows, shapes.values())):
        given = ", ".join("×".join(map(str, shape)) for shape in shapes.values())
        raise UsageError(
            "outputs", "class scores are a row of at least two numbers for each image", got=given,
            fix="say values, or leave it out",
        )  # fmt: skip
    found = []
    for name, value in tensors.items():
        shape, reason, probabilities = shapes[name], "", False
        if asked is not None:
            reason = "as asked"
        elif _are_rows(shape):
            reason = _evidence(value, module, n_classes)
        kind = "scores" if _are_rows(shape) and reason and asked != "values" else "values"
        if kind == "scores":
            probabilities = _are_probabilities(value)
        found.append(Output(name, kind, shape, reason, probabilities))
    return tuple(found)


def _are_rows(shape: tuple[int, ...]) -> bool:
    return len(shape) == 1 and shape[0] > 1


def _evidence(value: Tensor, module: nn.Module, n_classes: int | None) -> str:
    """Reason why rows are class scores, or an empty text."""
    columns = value.shape[1]
    if n_classes is not None and 1 < n_classes <= columns and n_classes >= LEAST_FILLED * columns:
        return f"the images' labels are {n_classes} classes"
    if _are_probabilities(value) or _are_probabilities(value.exp()):
        return "they add up to 1, as behind a softmax"
    return "the network is a classifier" if is_classifier(module, columns) else ""


def _are_probabilities(value: Tensor) -> bool:
    value = value.double()
    return bool((value >= 0).all() and ((value.sum(1) - 1).abs() < SUM_TOLERANCE).all())


def is_classifier(module: nn.Module, columns: int) -> bool:
    """Whether the class of a network says that its output of so many columns is class scores.

    Parameters
    ----------
    module : torch.nn.Module
        Its attribute ``num_classes`` is the number of columns, as in timm and in many networks; or its forward pass is
        that of a classifier of torchvision whose last module was not taken away.
    columns : int
    """
    given = [getattr(module, name, None) for name in ("num_classes", "n_classes")]
    if columns in given:
        return True
    library, _, rest = (getattr(type(module).forward, "__module__", "") or "").partition(".models.")
    if library != "torchvision" or rest.partition(".")[0] in OTHER_TASKS:
        return False
    last = list(module.modules())[-1]
    return not isinstance(last, nn.Identity)


def logits(scores: Tensor, output: Output) -> Tensor:
    """Scores whose softmax is the class probabilities: logarithms of scores that are probabilities themselves."""
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log() if output.probabilities else scores
