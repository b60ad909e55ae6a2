"""Errors of exporters and compilers in one line."""

import logging

import pytest

from decomp.errors import DecompError, FileError
from decomp.runtimes.failures import cause, in_one_line


def chained(*texts):
    error = None
    for text in reversed(texts):
        outer = RuntimeError(text)
        outer.__cause__ = error
        error = outer
    return error


def test_the_reason_is_the_root_and_names_the_node():
    error = chained("Error when translating node %eig : [num_users=1]. See the stack.", "No function found\nmore")
    assert cause(error) == "node eig: No function found"


def test_the_reason_names_the_line_of_code():
    error = chained('Failed\n  File "/a/b.py", line 3, in forward\n    if x.sum() > 0: return x\n\nmore', "Not known")
    assert cause(error) == "at 'if x.sum() > 0: return x': Not known"


def test_an_error_without_text_is_named_by_its_class():
    assert cause(KeyError()) == "KeyError"


def test_errors_of_libraries_become_one_line_and_ours_pass():
    with pytest.raises(DecompError, match=r"^onnxruntime: the network cannot be exported for this runtime \(bad\); ch"):
        with in_one_line("onnxruntime", "exported"):
            raise ValueError("bad\nworse")
    with pytest.raises(FileError), in_one_line("onnxruntime", "exported"):
        raise FileError("a", "b")


def test_logging_is_as_before_afterwards():
    before = logging.root.manager.disable
    with in_one_line("compile", "compiled"):
        assert logging.root.manager.disable == logging.CRITICAL
    assert logging.root.manager.disable == before
