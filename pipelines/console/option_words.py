"""Recorded options in the words of the command line, for messages that name an earlier call and a new one."""

from __future__ import annotations

from typing import Any

#: Options whose names differ from those of the fields.
NAMES = {
    "n_images": "--images", "n_points": "--points", "part": "--module", "leaves": "--leaf", "learning_rate": "--lr",
    "latency_batch": "--batch-size", "latency_layout": "--layout", "method": "--reinit", "next_slice": "--next",
}  # fmt: skip
#: Fields that hold unless an option switches them off.
_SWITCHED_OFF = {
    "refine": "--no-refine", "recovery": "--no-recovery", "sampler": "--no-sampler", "flip": "--no-flip",
    "mix": "--no-mix", "activation_aware": "--linear",
}  # fmt: skip


def option_words(name: str, value: Any) -> str:
    """An option with its value: ``'--images 60'``, ``'--no-mix'``, ``'--skip not given'``.

    Parameters
    ----------
    name : str
        Field of the options.
    value : object
        As run.json keeps it, or as it is to be shown.
    """
    option = NAMES.get(name, f"--{name.replace('_', '-')}")
    if name in _SWITCHED_OFF:
        return f"{_SWITCHED_OFF[name]} not given" if value else _SWITCHED_OFF[name]
    if name == "refine_blocks":  # the one that has an option for either
        return option if value else "--no-refine-blocks"
    if value is None or value is False or value == []:
        return f"{option} not given"
    if value is True:
        return option
    if isinstance(value, float):
        value = f"{value:g}"
    return f"{option} {','.join(map(str, value)) if isinstance(value, list) else value}"
