"""What a person holds a plan to: layers that keep their shape, the most a layer may shrink, multiples."""

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from decomp.allocation.rules import Rules
from decomp.errors import UsageError, near_miss


@dataclass(frozen=True)
class Limits:
    """The rules for the search, and by which option each layer is skipped.

    Attributes
    ----------
    rules : decomp.allocation.allocator.Rules
    skipped : dict of str to str
        Layer → option.
    """

    rules: Rules
    skipped: dict = field(default_factory=dict)

    def of_layer(self, name):
        """What plan.json says of one layer."""
        found = {}
        if name in self.skipped:
            found["skip"] = self.skipped[name]
        if math.isfinite(self.rules.max_layer_speedup):
            found["max_speedup"] = self.rules.max_layer_speedup
        return found


def from_options(view, asked):
    """Limits from the options ``skip`` (names or patterns), ``keep_first``, ``max_layer_speedup`` and ``multiple``.

    A skipped layer keeps its shape: it is not factored, reads all its inputs and gives all its outputs. Its weights
    are still fitted to the inputs it now gets.

    Raises
    ------
    UsageError
        For a name that no layer has; with the nearest one.
    """
    names = [layer.name for layer in view.layers]
    skipped = {}
    for pattern in asked["skip"]:
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            listed = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            raise UsageError(
                "--skip", "must be a layer's name or match some with * and ?", got=repr(pattern),
                fix=near_miss(pattern, names) or f"there are {listed}",
            )  # fmt: skip
        for name in found:
            skipped.setdefault(name, f"--skip {pattern}")
    if asked["keep_first"]:
        first = next((layer.name for layer in view.layers if layer.kind == "conv"), None)
        if first is not None:
            skipped.setdefault(first, "--keep-first")
    most = asked["max_layer_speedup"] or math.inf
    return Limits(Rules(asked["multiple"], frozenset(skipped), most), skipped)
