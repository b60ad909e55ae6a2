"""Stages as ``import decomp`` offers them: their steps are shown unless quiet, their messages name arguments."""

import contextlib
import inspect
import io

import pytest
import torch

import decomp
from decomp.errors import DecompError, FileError
from decomp.pipelines import api
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.recipes import compress
from decomp.pipelines.recipes import slim as slim_recipe
from decomp.pipelines.reporting import summary
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.record import read_log
from decomp.pipelines.stages import decompose, evaluate, export, finetune, freeze, report
from decomp.pipelines.stages import train as train_stage

STAGES = {
    "freeze": freeze.freeze, "decompose": decompose.decompose, "finetune": finetune.finetune,
    "evaluate": evaluate.evaluate, "export": export.export, "report": report.report, "compare": report.compare,
    "train": train_stage.train, "slim": slim_recipe.slim,
}  # fmt: skip
# A call of each stage, in the order of use.
CALLS = {
    "freeze": {"model": "net.py:build", "data": "digits", "n_images": 60, "n_points": 2},
    "decompose": {"speedup": 2},
    "finetune": {"epochs": 1},
    "evaluate": {"batch_size": 8, "repeats": 2},
    "export": {"formats": "state-dict"},
    "report": {},
}


@pytest.fixture(scope="module")
def used(place):
    """A run on which every stage was called, and what each of them printed."""
    printed = {}
    for stage, options in CALLS.items():
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            getattr(decomp, stage)("runs/api", quiet=True, **options)
        printed[stage] = out.getvalue(), err.getvalue()
    return RunDirectory.open("runs/api"), printed


def test_the_package_offers_these_functions_and_load():
    assert sorted(decomp.__all__) == sorted([*api.__all__, "load", "save", "tasks"])
    assert all(getattr(decomp, name) is getattr(api, name) for name in api.__all__)
    assert api.compress is compress.compress and api.summarise is summary.summarise


@pytest.mark.parametrize("name", STAGES)
def test_signature_and_documentation_are_those_of_the_stage(name):
    offered, stage = getattr(api, name), STAGES[name]
    shown = dict(inspect.signature(offered).parameters)
    assert offered is not stage and shown.pop("quiet").default is False
    assert shown == dict(inspect.signature(stage).parameters)
    lines = "    quiet : bool\n        Without lines and progress bars, which are written to standard error.\n"
    assert offered.__name__ == name and offered.__doc__.count(lines) == 1
    assert offered.__doc__.replace(lines, "") == stage.__doc__


def test_quiet_stages_print_nothing_and_log_into_the_run(used):
    run, printed = used
    assert printed == {stage: ("", "") for stage in CALLS}
    events = [(event["stage"], event["event"]) for event in read_log(run.log) if event.get("event") in ("begin", "end")]
    assert events == [(stage, event) for stage in CALLS for event in ("begin", "end")]
    assert decomp.summarise(run).speedup >= 2 * 0.99


def test_a_reporter_that_is_given_is_used(used, capfd):
    run, _ = used
    stream, before = io.StringIO(), len(read_log(run.log))
    decomp.export(run, **CALLS["export"], reporter=Reporter(stream=stream))
    assert stream.getvalue() == "writing and checking state-dict\n" and capfd.readouterr() == ("", "")
    assert len(read_log(run.log)) == before  # this reporter has no log


def test_steps_are_shown_on_standard_error_without_a_reporter(used, capsys):
    run, _ = used
    decomp.export(run, **CALLS["export"])
    assert capsys.readouterr() == ("", "writing and checking state-dict\n")


def test_comparing_runs_shows_its_steps_unless_it_is_quiet(tmp_path, capsys):
    runs, stream = [RunDirectory.create(tmp_path / name) for name in "ab"], io.StringIO()
    mine = Reporter(stream=stream)
    for options, err in (({}, "comparing 2 runs\n"), ({"quiet": True}, ""), ({"reporter": mine}, "")):
        with pytest.raises(FileError, match="none of these runs was evaluated"):
            decomp.compare(runs, **options)
        assert capsys.readouterr() == ("", err)
    assert stream.getvalue() == "comparing 2 runs\n"


@pytest.mark.parametrize(
    "call, line",
    [
        (lambda run: decomp.freeze(run, model="a:b", data="digits", images=20), "did you mean n_images."),
        (lambda run: decomp.finetune(run, lr=0.1), "lr: is no option of finetune; did you mean learning_rate."),
        (lambda run: decomp.export(run, format="pt2"), "format: is no option of export; did you mean formats."),
        (lambda run: decomp.decompose(run, speed_up=4), "speed_up: is no option of decompose; did you mean speedup."),
        (
            lambda run: decomp.freeze(run, model="zoo:vgg-digits"),
            "data: images must be named; give for example digits",
        ),
        (
            lambda run: decomp.freeze(run, model=torch.nn.ReLU(), data="digits"),
            "decomp.compress(model, images) takes a module",
        ),
        (lambda run: decomp.freeze(run, model="a:b", data="digits", memory="much"), "memory: must be an amount"),
        (lambda run: decomp.freeze(run, model="a:b", data="digits", device="gpu"), "device: must be auto, cpu, cuda"),
        (lambda run: decomp.decompose(None, speedup=2), "run: must be the path of a run directory, got None"),
        (
            lambda run: decomp.freeze(run, model="a:b", data="digits", part=3),
            "part: must be a text that is not empty",
        ),
        (lambda run: decomp.decompose(run, speedup=2, quiet="no"), "quiet: must be True or False, got 'no'"),
        (lambda run: decomp.decompose(run, speedup=2), "run `decomp freeze --model … --data … --run"),
        (
            lambda run: decomp.load(run, into=torch.nn.Linear),
            "into: must be a module of the original class",
        ),
        (lambda run: decomp.train(), "model: must be the name of a network, got None; give such as zoo:vgg-digits."),
        (lambda run: decomp.train("zoo:vgg-digits", run=run, lr=1), "lr: is no option of train; did you mean learning"),
        (lambda run: decomp.train("zoo:vgg-digits", run=run, proximal=True), "proximal: is a way to apply a sparsity"),
        (lambda run: decomp.slim(run), "model: must be the name of a network, got None"),
        (lambda run: decomp.slim(run, "zoo:vgg-digits", passes=0), "passes: must be a whole number"),
        (lambda run: decomp.slim(run, "zoo:vgg-digits", ratio=2), "ratio: must be"),
        (lambda run: decomp.load(run), "there is no such network or run directory"),
    ],
)
def test_mistakes_from_python_end_in_one_line(call, line, tmp_path):
    with pytest.raises(DecompError) as caught:
        call(tmp_path / "none")
    assert line in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()
