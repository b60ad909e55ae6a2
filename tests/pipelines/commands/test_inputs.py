"""Options that name a network and its images."""

import click

from decomp.pipelines.commands.inputs import network_and_images
from decomp.pipelines.commands.main import main


def test_freeze_and_prune_take_the_same_options_in_the_same_order():
    @click.command()
    @network_and_images
    def command(**options):
        pass

    names = [parameter.name for parameter in command.params]
    assert names[0] == "weights" and names[-1] == "n_points" and len(names) == 13
    for name in ("freeze", "prune"):
        assert [p.name for p in main.commands[name].params if p.name in names] == names
        for parameter, own in zip(command.params, (p for p in main.commands[name].params if p.name in names)):
            assert (parameter.opts, parameter.help, parameter.default) == (own.opts, own.help, own.default)
