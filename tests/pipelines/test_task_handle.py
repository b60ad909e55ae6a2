"""``decomp.tasks``: the handle of a run of tasks."""

import pytest
import torch
from torch import fx

import decomp
from decomp.data.sources import open_source
from decomp.errors import UsageError
from tests.pipelines.task_runs import QUICK, halves, network_file


def test_a_run_is_made_listed_verified_and_exported_through_its_handle(tmp_path, capsys):
    run = decomp.tasks.open(tmp_path / "run")
    source = open_source(halves(tmp_path / "a.npz", 0))
    added = run.add("heights", data=source, model=network_file(tmp_path), **QUICK)
    assert added.name == "heights" and run.names() == ["heights"] and run.verify().good
    network, small = run.network("heights"), run.network("heights", compact_channels=True)
    assert isinstance(network, fx.GraphModule) and not network.training
    images = torch.randn(3, 1, 6, 6)
    assert torch.allclose(network(images), small(images), atol=1e-5)
    assert run.list().tasks[0]["name"] == "heights"
    assert run.export("heights", "state-dict").files[0].path == str(tmp_path / "run" / "export" / "heights.pth")
    assert capsys.readouterr() == ("", "")


def test_mistakes_are_told_in_the_words_of_python(tmp_path):
    run, data = decomp.tasks.open(tmp_path / "run"), halves(tmp_path / "a.npz", 0)
    with pytest.raises(UsageError, match="^epoch: is no option of add; did you mean epochs"):
        run.add("a", data=data, goal=0.9, epoch=3)
    with pytest.raises(UsageError, match="^max_width: must be a number from 1"):
        run.add("a", data=data, goal=0.9, max_width=0.5)
    with pytest.raises(UsageError, match="^model: must be a text that is not empty, got None; give a name such as zoo"):
        run.add("a", data=data, goal=0.9)
    assert not (tmp_path / "run").exists()
