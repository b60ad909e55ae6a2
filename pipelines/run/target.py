"""Target of a compression in words, and the measured time that its plan promises; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .directory import RunDirectory


def target_words(record: Mapping[str, Any]) -> str:
    """Target of a decomposition or pruning with its quantity, where that is not multiply-accumulates.

    Parameters
    ----------
    record : mapping
        What run.json keeps under ``decompose`` or ``prune``.

    Returns
    -------
    str
        Such as ``'4x'``, ``'2x in parameters'`` or ``'1.3x in measured time in onnxruntime at batch 1'``; empty where
        no speed-up was asked for.
    """
    asked = record.get("asked") or {}
    if not asked.get("speedup"):
        return ""
    words = f"{asked['speedup']:g}x"
    if asked.get("cost") == "params":
        return f"{words} in parameters"
    if asked.get("cost") != "latency":
        return words
    words += " in measured time"
    # Of a plan that was given the options do not say for which runtime it was made.
    place = promise(record) or {"runtime": asked.get("runtime"), "batch_size": asked.get("latency_batch")}
    return f"{words} in {place['runtime']} at batch {place['batch_size']}" if place["runtime"] else words


def promise(record: Mapping[str, Any]) -> dict[str, Any]:
    """The time that was measured when a network was planned, with its conditions; empty where none was.

    Parameters
    ----------
    record : mapping
        What run.json keeps under ``decompose`` or ``prune``.

    Returns
    -------
    dict
        ``runtime``, ``batch_size``, ``layout``; ``speedup``, None where the plan has had other sizes since; ``device``
        and ``threads``, None where they are not recorded.
    """
    if latency := record.get("latency"):
        speedup = None if latency.get("other_sizes") else latency["measured_speedup"]
        names = ("batch_size", "layout", "device", "threads")
        return {"speedup": speedup, "runtime": latency.get("runtime", "eager"), **{key: latency[key] for key in names}}
    asked = record.get("asked") or {}
    if record.get("measured") and asked.get("latency_batch"):
        return {
            "speedup": record["measured"], "runtime": asked.get("runtime") or "eager",
            "batch_size": asked["latency_batch"], "layout": asked.get("latency_layout") or "contiguous",
            "device": None, "threads": None,
        }  # fmt: skip
    return {}


def promise_of_run(run: RunDirectory) -> dict[str, Any]:
    """The promise of the compressed network of a run, see :func:`promise`."""
    return promise(run.config("decompose") or {}) or promise(run.config("prune") or {})
