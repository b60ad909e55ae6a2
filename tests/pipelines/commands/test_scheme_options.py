"""Options of schemes: each has its setting, and the help tells the default that holds."""

import re

import pytest
from command_line import decomp_command

from decomp import cli
from decomp.pipelines.console.options import REPR_OPTIONS
from decomp.schemes.repr_settings import ReprSettings


def test_every_setting_of_the_scheme_has_an_option():
    declared = {option.opts[0]: option.help for option in cli.main.commands["train"].params}
    assert {name for name, text in declared.items() if text.startswith("With repr: ")} == set(REPR_OPTIONS.values())
    assert {*REPR_OPTIONS, "epochs", "seed", "metric"} == set(ReprSettings(epochs=40).to_json())


@pytest.mark.parametrize("option, default", [("s1", "20"), ("s2", "10"), ("drop", "0.3"), ("next", "zero")])
def test_the_help_has_the_defaults_of_the_settings(option, default):
    shown = " ".join(decomp_command("train", "--help").out.split())
    assert re.search(rf"--{option} [^-].*?\[default: {re.escape(default)}\]", shown)
