"""Error lines for a speed-up out of reach: the maximum reachable, and the options that limit it."""

from __future__ import annotations

from collections.abc import Sequence

from decomp.allocation.allocator import round_down
from decomp.allocation.rules import Rules
from decomp.allocation.target import LimitingFactors, OutOfReach
from decomp.errors import TargetError

from ..console.words import counted

#: Parts of a network with a smaller share of the cost are not named as causes.
LEAST_SHARE = 0.01


def out_of_reach(
    error: OutOfReach, *, rules: Rules, skip: Sequence[str], keep_first: bool, steps: Sequence[str]
) -> TargetError:
    """The same error in the words of the command line.

    Parameters
    ----------
    error : OutOfReach
    rules : Rules
        Of the search.
    skip, keep_first, steps
        Options from which the rules were made.
    """
    causes = limiting_options(error.factors, rules=rules, skip=skip, keep_first=keep_first, steps=steps)
    because = f", limited by {'; '.join(causes)}" if causes else ""
    rule = f"at most {round_down(error.factors.most)}x can be reached on this network in {error.unit}{because}"
    fix = "lower the target" + (" or lift a limit" if causes else "")
    return TargetError("--speedup", rule, got=f"{error.speedup:g}x", fix=fix)


def limiting_options(
    factors: LimitingFactors, *, rules: Rules, skip: Sequence[str], keep_first: bool, steps: Sequence[str]
) -> list[str]:
    """The causes that keep a network from becoming cheaper, in words; options with the speed-up without each."""
    options = {
        "skip": " and ".join([f"--skip {pattern}" for pattern in skip] + ["--keep-first"] * keep_first),
        "max_layer_speedup": f"--max-layer-speedup {rules.max_layer_speedup:g}",
    }
    if factors.together:
        words = [" together with ".join(options[rule] for rule in factors.rules)]
    else:
        words = [f"{options[rule]} (without: {round_down(higher)}x)" for rule, higher in factors.rules.items()]
    if factors.steps:
        words.append(f"--steps {','.join(steps)}")
    if factors.untouched_share >= LEAST_SHARE:
        count = counted(len(factors.untouched), "layer")
        name, reason = factors.untouched[0]
        which = f"{name}: {reason}" if len(factors.untouched) == 1 else f"the largest, {name}: {reason}"
        words.append(
            f"{count} that cannot be compressed, with {100 * factors.untouched_share:.0f} % of the cost ({which})"
        )
    if factors.rest >= LEAST_SHARE:
        words.append(f"{100 * factors.rest:.0f} % of it outside the layers")
    if factors.per_call:
        words.append("the time that every call takes, however narrow")
    return words
