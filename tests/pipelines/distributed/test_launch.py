import pytest

from decomp.errors import UsageError
from decomp.pipelines.distributed import launch


def test_processes_count_where_torchrun_has_started_them(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert (launch.n_started(), launch.own_number()) == (1, 0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert (launch.n_started(), launch.own_number()) == (4, 3)


def test_processes_on_one_machine_are_counted_where_torchrun_has_started_them(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launch.n_on_this_machine() == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launch.n_on_this_machine() == 4


def test_a_command_that_shares_no_work_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    launch.require_shared("train")
    with pytest.raises(UsageError, match="prune: .* got 4 processes of torchrun; start it without torchrun"):
        launch.require_shared("prune")
