"""The command that continues an unfinished stage: the one that began it, whatever was refused since."""

import shutil
from contextlib import suppress

import pytest

from decomp.errors import FileError, NumericalError, UsageError
from decomp.pipelines.console.options import DecomposeOptions
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.run.begun import begun_command, compressing_command
from decomp.pipelines.run.conditions import no_compressed_network
from decomp.pipelines.run.directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run")


def begin(run, command, error=None):
    """Play a stage that ends, or stops with an error."""
    with suppress(BaseException), Reporter.for_run(run, quiet=True, command=command).stage(command.split()[0]):
        if error is not None:
            raise error


def test_a_refused_command_is_not_the_one_that_began(run):
    begin(run, "finetune --run r --epochs 5", KeyboardInterrupt())
    begin(run, "finetune --run r --epochs 7", UsageError(run.path, "was fine-tuned with others"))
    assert begun_command(run, "finetune") == f"finetune --run {run.path} --epochs 5"


@pytest.mark.parametrize("error", [NumericalError("layer", "is no number"), FileError("x", "is full")])
def test_a_command_that_failed_at_its_work_is_the_one_that_began(run, error):
    begin(run, "finetune --run r --epochs 5")
    begin(run, "finetune --run r --epochs 7", error)
    assert begun_command(run, "finetune") == f"finetune --run {run.path} --epochs 7"


def test_no_command_began_a_stage_that_refused_all(run):
    begin(run, "freeze --run r --model x", UsageError("--model", "is no model"))
    assert begun_command(run, "freeze") is None and begun_command(run, "decompose") is None


def test_the_record_of_a_decomposition_comes_before_the_log(run):
    begin(run, "decompose --run r --speedup 3x --redo", FileError("frozen.h5", "is damaged"))
    run.update_config("decompose", {"asked": {"speedup": 2.0}, "command": "decompose --run r --speedup 2x"})
    assert begun_command(run, "decompose") == f"decompose --run {run.path} --speedup 2x"


def test_going_on_neither_deletes_the_layers_nor_stops_at_the_plan(run):
    command = "decompose --redo --run=r --speedup 2x --plan-only --device cpu"
    run.update_config("decompose", {"asked": {"speedup": 2.0}, "command": command})
    run.plan_json.write_text("{}")
    assert begun_command(run, "decompose") == f"decompose --run={run.path} --speedup 2x --device cpu"


def test_a_command_that_ends_with_the_plan_stays_so_until_there_is_one(run):
    begin(run, "decompose --run r --speedup 2x --plan-only", KeyboardInterrupt())
    told = f"decompose --run {run.path} --speedup 2x"
    assert begun_command(run, "decompose") == f"{told} --plan-only"
    run.update_config("decompose", {"asked": {"speedup": 2.0}, "command": "decompose --run r --speedup 2x --plan-only"})
    assert begun_command(run, "decompose") == f"{told} --plan-only"
    assert compressing_command(run) == f"decomp {told}"  # the way to a network, not to a plan
    run.plan_json.write_text("{}")
    assert begun_command(run, "decompose") == told


def test_a_decomposition_begun_from_python_has_the_options_of_its_record(run):
    options = DecomposeOptions(speedup=2.5, skip=["a", "b*"], refine=False, coupled=0.5, steps=["prune"])
    run.update_config("decompose", {"asked": options.to_json()})
    told = f"decompose --run {run.path} --speedup 2.5x --steps prune --skip a --skip 'b*' --no-refine --coupled 0.5"
    assert begun_command(run, "decompose") == told
    run.update_config("decompose", {"asked": {**options.to_json(), "plan": "0" * 64}})
    assert begun_command(run, "decompose").startswith(f"decompose --run {run.path} --plan FILE --skip a")


def test_a_copied_run_goes_on_in_its_own_folder(run, tmp_path):
    begin(run, f"finetune --run {run.path} --epochs 5")
    copy = shutil.copytree(run.path, tmp_path / "a copy")
    assert begun_command(RunDirectory(copy), "finetune") == f"finetune --run '{copy}' --epochs 5"


@pytest.mark.parametrize(
    "command",
    ["decompose --run r --speedup 2x,3x", "decompose --run r --speedup=2x,3x", "decompose --run r --max-drop=1%"],
)
def test_a_command_for_several_runs_stays_as_it_was_given(run, command):
    run.update_config("decompose", {"asked": {"speedup": 2.0}, "command": command})
    assert begun_command(run, "decompose") == command
    # Given again with it, the runs that are finished would be deleted.
    run.update_config("decompose", {"asked": {"speedup": 2.0}, "command": f"{command} --redo"})
    assert begun_command(run, "decompose") == command


def test_going_on_with_a_training_does_not_begin_it_again(run):
    begin(run, "finetune --run r --redo --epochs 5", KeyboardInterrupt())
    assert begun_command(run, "finetune") == f"finetune --run {run.path} --epochs 5"


def test_a_run_without_a_compressed_network_names_the_command_that_makes_or_finishes_it(run):
    assert compressing_command(run) == f"decomp decompose --run {run.path} --speedup 4x"
    assert str(no_compressed_network(run)) == (
        f"{run.path}: there is no decomposed network yet; run `decomp decompose --run {run.path} --speedup 4x`, or "
        f"`decomp prune --run {run.path} --speedup 2x`."
    )
    run.update_config("decompose", {"asked": {"speedup": 2.0}, "command": "decompose --run r --speedup 2x"})
    assert str(no_compressed_network(run)) == (
        f"{run.path}: the decomposition is not finished; go on with `decomp decompose --run {run.path} --speedup 2x`."
    )


def test_an_unfinished_pruning_is_finished_by_its_own_command(run):
    begin(run, "prune --run r --ratio 0.3")
    run.update_config("prune", {"asked": {"ratio": 0.3}})
    assert compressing_command(run) == f"decomp prune --run {run.path} --ratio 0.3"
    assert "the pruning is not finished; go on with `decomp prune" in str(no_compressed_network(run))
