"""Name of the command in messages."""

import sys

import pytest

from decomp.pipelines.console.program import program


@pytest.mark.parametrize(
    ("started", "name"),
    [
        ("cli.py", "python cli.py"),
        ("/home/someone/checkout/cli.py", "python cli.py"),
        ("/usr/bin/decomp", "decomp"),
        ("/home/cli.py/bin/decomp", "decomp"),
        ("my_cli.py", "decomp"),
        ("-c", "decomp"),
        ("", "decomp"),
        (None, "decomp"),
    ],
)
def test_the_name_is_that_of_the_file_that_was_started(monkeypatch, started, name):
    monkeypatch.setattr(sys, "argv", [started, "status"])
    assert program() == name
