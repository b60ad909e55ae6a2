"""The table of a run's networks."""

import pytest

from decomp.errors import FileError, UsageError
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.networks import NETWORK_NAMES, NETWORKS, compressed, existing, find_network, missing


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run")


def write(run, *folders):
    for folder in folders:
        (run.path / folder).mkdir(parents=True)
        (run.path / folder / "structure.json").write_text("{}")


def test_the_table_has_the_paths_of_the_run_directory(run):
    paths = {network.name: network.path(run) for network in NETWORKS}
    assert paths == {
        "original": run.original_dir, "decomposed": run.model_dir, "pruned": run.pruned_dir,
        "finetuned": run.finetune_dir / "best",
    }  # fmt: skip
    assert NETWORK_NAMES == ("finetuned", "pruned", "decomposed", "original")
    assert [network.made_from for network in NETWORKS] == [(), ("original",), ("original",), ("decomposed", "pruned")]


def test_existing_networks_come_in_the_order_of_the_stages(run):
    assert existing(run) == []
    write(run, "finetune/best", "model", "original")
    assert [network.label for network in existing(run)] == ["original", "decomposed", "fine-tuned"]


def test_a_network_without_the_one_it_was_made_from_is_left_out(run):
    write(run, "original", "finetune/best")
    assert [network.name for network in existing(run)] == ["original"]


def test_the_most_advanced_network_is_taken_unless_another_is_named(run):
    write(run, "original", "model")
    assert find_network(run).name == "decomposed" and find_network(run, "original").path(run) == run.original_dir


def test_a_pruned_network_stands_where_a_decomposed_one_would(run):
    write(run, "original")
    assert compressed(run) is None and missing(run).name == "decomposed"
    write(run, "pruned", "finetune/best")
    assert [network.label for network in existing(run)] == ["original", "pruned", "fine-tuned"]
    assert compressed(run).name == "pruned" and missing(run) is None


def test_a_fine_tuning_without_a_better_epoch_gives_no_network_of_its_own(run):
    write(run, "original", "model", "finetune/best")
    run.update_config("finetune", {"facts": {"best_epoch": 0}})
    assert [network.name for network in existing(run)] == ["original", "decomposed"] and missing(run) is None
    assert find_network(run).name == "decomposed" and find_network(run, "finetuned").name == "finetuned"
    run.update_config("finetune", {"facts": {"best_epoch": 1}})
    assert [network.name for network in existing(run)] == ["original", "decomposed", "finetuned"]
    assert find_network(run).name == "finetuned"


def test_the_next_network_is_the_one_that_is_made_from_the_last(run):
    write(run, "original", "pruned")
    assert missing(run).name == "finetuned"


def test_a_network_that_is_not_there_names_its_stage(run):
    write(run, "original")
    with pytest.raises(FileError, match="holds no fine-tuned network yet; run finetune first"):
        find_network(run, "finetuned")
    with pytest.raises(UsageError, match="--which: .*did you mean finetuned"):
        find_network(run, "fine-tuned")


def test_an_empty_run_names_the_first_stage(run):
    with pytest.raises(FileError, match="holds no network yet; run freeze first"):
        find_network(run)
