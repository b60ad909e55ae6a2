"""Checks of values in a forward pass, such as `assert not x.isnan().any()`: the answer with which they pass.

A trace holds no condition on values. One that only decides whether an error is raised, or something is printed, need
not be held: the trace is of images for which the check passes.
"""

from __future__ import annotations

import ast
import functools
import linecache
from types import FrameType


def passing_answer(frame: FrameType) -> bool | None:
    """The answer to a condition that is evaluated in a frame with which its check passes; None if it is no check.

    Parameters
    ----------
    frame : frame
        Called by the evaluation of the condition, through functions of torch.fx and of this folder alone.
    """
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("torch.fx", "decomp.graph")):
        frame = frame.f_back
    line = frame.f_lineno
    checks = _checks(frame.f_code.co_filename)
    answers = {passes for first, last, passes in checks if first <= line <= last}
    return answers.pop() if len(answers) == 1 else None


@functools.lru_cache(maxsize=64)
def _checks(file: str) -> list[tuple[int, int, bool]]:
    """First and last line of the condition of every check in a file, with the answer with which it passes."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            found.append((node.lineno, node.test.end_lineno or node.lineno, not _is_negated(node.test)))
        elif isinstance(node, ast.If) and not node.orelse and all(map(_only_tells, node.body)):
            found.append((node.lineno, node.test.end_lineno or node.lineno, _is_negated(node.test)))
    return found


def _is_negated(test: ast.expr) -> bool:
    return isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)


def _only_tells(statement: ast.stmt) -> bool:
    """Whether a statement raises an error, or prints or warns."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        called = statement.value.func
        return (called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")) in (
            "print",
            "warn",
            "warning",
        )
    return isinstance(statement, ast.Raise)
