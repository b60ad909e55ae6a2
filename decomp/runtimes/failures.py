"""Errors of exporters and compilers in one line that names the operation or the line of code."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from decomp.errors import DecompError

#: Longest reason in a message.
LONGEST = 200


@contextmanager
def in_one_line(runtime: str, work: str) -> Iterator[None]:
    """Turn any error of a library into one line, and hide its warnings, which are for its developers.

    Parameters
    ----------
    runtime : str
    work : str
        The work that fails, as a participle: ``"exported"``.

    Raises
    ------
    DecompError
        Names the cause.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DecompError, MemoryError):
        raise
    except Exception as error:
        rule = f"the network cannot be {work} for this runtime ({cause(error)})"
        raise DecompError(runtime, rule, fix="choose another runtime") from error
    finally:
        logging.disable(disabled)


def cause(error: BaseException) -> str:
    """The reason of an error in one line: the graph node or the line of code at which it arose, where it is said."""
    chain = [error]
    while (before := chain[-1].__cause__) is not None and before not in chain:
        chain.append(before)
    texts = [str(one) for one in chain]
    reason = next((line.strip() for line in texts[-1].splitlines() if line.strip()), type(chain[-1]).__name__)
    place = ""
    for text in texts:
        if node := re.search(r"node %(\w+)", text):
            place = f"node {node[1]}: "
        elif code := re.findall(r'File "[^"]+", line \d+, in \w+\n\s+(\S[^\n]*)', text):
            place = f"at '{code[-1].strip()}': "
    return f"{place}{reason}"[:LONGEST]
