"""Name of the command in messages."""

import sys

import pytest

from decomp.pipelines.console.program import command_line, program


@pytest.mark.parametrize(
    ("started", "name"),
    [
        ("cli.py", "python cli.py"),
        ("/home/someone/checkout/cli.py", "python /home/someone/checkout/cli.py"),
        ("my checkout/cli.py", "python 'my checkout/cli.py'"),
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


def test_a_command_on_a_run_can_be_typed_as_it_stands(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["decomp"])
    assert command_line("evaluate", "runs/vgg") == "decomp evaluate --run runs/vgg"
    assert command_line("finetune", "my run", "--lr 1") == "decomp finetune --run 'my run' --lr 1"
