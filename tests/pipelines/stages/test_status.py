"""What status says at each point of a run, from the files alone."""

import json
import os

import pytest

from decomp.data.formats.digests import digest_file
from decomp.data.formats.json_files import write_json
from decomp.errors import FileError, NumericalError
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.status import status

ASKED = {"speedup": 4.0, "steps": ["spatial", "prune"], "selector": "lasso", "allocation": "joint"}


class Run:
    """A run directory whose stages are played: the files and notes that each leaves, without the work."""

    def __init__(self, path):
        self.run = RunDirectory.create(path)

    def begin(self, stage, command):
        with Reporter.for_run(self.run, quiet=True, command=command).stage(stage) as reporter:
            return reporter

    def freeze(self):
        self.begin("freeze", "freeze …")
        self.run.frozen.write_bytes(b"x")
        self._network(self.run.original_dir, "original")
        facts = {"n_images": 5000, "n_points": 10}
        self.run.update_config("freeze", {"asked": {"model": "zoo:vgg", "data": "digits"}, "facts": facts})

    def plan(self):
        self.begin("decompose", "decompose --run 'a b' --speedup 4x --steps spatial,prune")
        self.run.update_config("decompose", {"asked": ASKED, "n_fitted": 2})
        write_json(self.run.plan_json, {"layers": [{"layer": "a"}, {"layer": "b"}]})

    def layer(self, index):
        path = self.run.layer_file(index, "x")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")

    def decompose(self, content="model"):
        self._network(self.run.model_dir, content)
        self.run.update_config("decompose", {"asked": ASKED, "macs_before": 8_100_000, "macs_after": 2_000_000})

    def epoch(self, number):
        reporter = Reporter.for_run(self.run, quiet=True, command="finetune --run r --epochs 5 --lr 0.1")
        self.run.finetune_dir.mkdir(exist_ok=True)
        with reporter.stage("finetune"):
            if number:
                reporter.step(f"epoch {number} of 5: loss 1")

    def finetune(self):
        self._network(self.run.finetune_dir / "best", "tuned")
        network = digest_file(self.run.model_dir / "structure.json")
        self.run.update_config("finetune", {"asked": {"epochs": 5, "labels": "none"}, "network": network})

    def evaluate(self):
        networks = {
            name: digest_file(path / "structure.json")
            for name, path in (
                ("original", self.run.original_dir),
                ("decomposed", self.run.model_dir),
                ("fine-tuned", self.run.finetune_dir / "best"),
            )
            if path.exists()
        }
        write_json(self.run.report_json, {"identity": {"networks": networks}})

    def _network(self, path, content):
        path.mkdir(parents=True, exist_ok=True)
        (path / "structure.json").write_text(json.dumps(content))

    def look(self):
        """States as a string of first letters, the detail of each stage, the next command."""
        result = status(self.run)
        states = "".join(stage.state[0] for stage in result.stages)
        return states, {stage.name: stage.detail for stage in result.stages}, result.next


@pytest.fixture
def played(tmp_path):
    return Run(tmp_path / "a b")


def test_the_way_of_a_run(played):
    where = f"'{played.run.path}'"
    assert played.look()[::2] == ("nnnnnn", f"decomp freeze --run {where} --model … --data …")
    played.freeze()
    states, details, following = played.look()
    assert (states, following) == ("dnnnnn", f"decomp decompose --run {where} --speedup 4x")
    assert details["freeze"] == "zoo:vgg on digits: 5,000 images, 10 points each"
    played.plan()
    states, details, following = played.look()
    assert states == "dpnnnn" and "plan.json" in details["decompose"]
    assert following == f"decomp decompose --run {where} --speedup 4x --steps spatial,prune"
    played.layer(0)
    assert "1 of 2 layers" in played.look()[1]["decompose"]
    played.decompose()
    states, details, following = played.look()
    assert states == "ddnnnn" and following == f"decomp finetune --run {where}"
    assert details["decompose"].startswith("4.05x (8.10 M to 2.00 M multiply-accumulates); target 4x by spatial, prune")
    played.epoch(0)
    assert played.look()[1]["finetune"] == "no epoch yet"
    played.epoch(3)
    states, details, following = played.look()
    assert (states, details["finetune"]) == ("ddpnnn", "epoch 3 of 5")
    assert following == f"decomp finetune --run {where} --epochs 5 --lr 0.1"
    played.finetune()
    states, details, following = played.look()
    assert states == "dddnnn" and following == f"decomp evaluate --run {where}"
    assert details["finetune"] == "5 epochs without labels"
    played.evaluate()
    assert played.look()[::2] == ("ddddnn", f"decomp report --run {where}")
    played.run.report_html.write_text("page")
    assert played.look()[::2] == ("dddddn", f"decomp export --run {where}")
    played.run.export_dir.mkdir()
    (played.run.export_dir / "finetuned.pt2").write_bytes(b"x")
    states, details, following = played.look()
    assert (states, following, details["export"]) == ("dddddd", None, "finetuned.pt2")
    assert details["report"] == str(played.run.report_html)
    files = dict(status(played.run).files)
    assert "browser" in files[str(played.run.report_html)] and str(played.run.export_dir) in files
    # The file of another network does not stand for the best one.
    (played.run.export_dir / "finetuned.pt2").rename(played.run.export_dir / "decomposed.pt2")
    states, details, following = played.look()
    assert (states[-1], details["export"]) == ("p", "decomposed.pt2; not the fine-tuned network")
    assert following == f"decomp export --run {where}"
    (played.run.export_dir / "decomposed.pt2").rename(played.run.export_dir / "finetuned.pt2")
    # A network that is made anew leaves the exported file behind.
    structure = played.run.finetune_dir / "best" / "structure.json"
    later = structure.stat().st_mtime_ns + 10**10
    os.utime(structure, ns=(later, later))
    states, details, *_ = played.look()
    assert (states[-1], details["export"]) == ("p", "older than the networks: finetuned.pt2")


def test_a_report_that_is_older_than_the_results_is_to_be_written_again(played):
    played.freeze()
    played.decompose()
    played.run.report_html.write_text("page")
    os.utime(played.run.report_html, (1, 1))
    states, details, _ = played.look()
    assert (states[4], details["report"]) == ("p", "older than the results")


def test_a_fine_tuning_that_diverged_is_begun_again_as_its_message_says(played):
    played.freeze()
    played.decompose()
    reporter = Reporter.for_run(played.run, quiet=True, command="finetune --run r --lr 100")
    with pytest.raises(NumericalError), reporter.stage("finetune"):
        reporter.step("epoch 1 of 5: loss 379")
        raise NumericalError("epoch 1", "diverges", fix="the best is in x; begin again with --lr 0.01 --redo")
    _, details, following = played.look()
    assert details["finetune"] == "epoch 1: diverges; begin again with --lr 0.01 --redo"
    assert following == f"decomp finetune --run '{played.run.path}' --lr 0.01 --redo"
    played.epoch(2)
    assert played.look()[1]["finetune"] == "epoch 2 of 5"


def test_accuracies_are_shares_and_other_values_numbers(played):
    played.freeze()
    played.decompose()
    for metric, before, after, words in (
        ("validation accuracy", 1.0, 0.987, "validation accuracy 100.0 % before, 98.7 % after"),
        ("validation divergence", 0.02, 0.01234, "validation divergence 0.02 before, 0.0123 after"),
    ):
        played.finetune()
        record = played.run.config("finetune")
        record["facts"] = {"metric": metric, "before": before, "after": after}
        played.run.update_config("finetune", record)
        assert played.look()[1]["finetune"].endswith(words)


def test_an_unfinished_freeze_says_why_and_how_to_go_on(played):
    reporter = Reporter.for_run(played.run, quiet=True, command="freeze --model zoo:vgg --data digits --run r")
    with pytest.raises(FileError), reporter.stage("freeze"):
        raise FileError("x.png", "cannot be read")
    states, details, following = played.look()
    assert (states, details["freeze"]) == ("pnnnnn", "freeze stopped: x.png: cannot be read.")
    assert following == f"decomp freeze --model zoo:vgg --data digits --run '{played.run.path}'"


def test_what_was_made_from_an_earlier_network_is_not_done(played):
    played.freeze()
    played.decompose("first")
    played.evaluate()
    assert played.look()[0] == "ddndnn"
    played.epoch(5)
    played.finetune()
    states, details, _ = played.look()
    assert states == "dddpnn" and details["evaluate"].endswith("fine-tuned")
    played.evaluate()
    played.decompose("second")
    states, details, following = played.look()
    assert states == "ddppnn" and "earlier decomposed network" in details["finetune"]
    assert following == f"decomp finetune --run '{played.run.path}' --epochs 5 --lr 0.1 --redo"


def test_status_reads_only(played):
    played.freeze()
    part = played.run.path / ".x.part-0123456789ab"
    part.write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in played.run.path.rglob("*")}
    list(status(played.run).lines())
    assert {path: path.stat().st_mtime_ns for path in played.run.path.rglob("*")} == before


def test_broken_parts_do_not_hide_the_rest(played):
    played.freeze()
    played.plan()
    played.layer(0)
    played.run.plan_json.write_text('{"layers":')
    assert "1 of 2 layers" in played.look()[1]["decompose"]
    played.decompose()
    played.run.report_json.write_text("[]")
    assert played.look()[0] == "ddnpnn"


def test_who_works_on_the_run_is_said_only_while_they_do(played):
    with played.run.lock():
        assert any(line.startswith("now: pid ") for line in status(played.run).lines())
    assert not any(line.startswith("now:") for line in status(played.run).lines())
    write_json(played.run.owner_json, {"pid": "x"})
    assert status(played.run).owner == {}


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(FileError, match="no such run directory"):
        status(tmp_path / "none")


def test_files_are_named_with_their_sizes(played):
    played.freeze()
    played.run.export_dir.mkdir()  # of an export that was refused
    lines = list(status(played.run).lines())
    assert not any("without this package" in line for line in lines)
    assert any("frozen.h5" in line and "KiB" in line for line in lines)
    assert not any("report.json" in line for line in lines)


def test_a_target_in_measured_time_is_told_with_what_was_measured(played):
    played.freeze()
    played.plan()
    asked = {**ASKED, "speedup": 1.3, "cost": "latency", "runtime": "onnxruntime", "latency_batch": 1}
    played.run.update_config("decompose", {"asked": asked})
    target = "1.3x in measured time in onnxruntime at batch 1"
    assert played.look()[1]["decompose"].startswith(f"{target} by spatial, prune: plan.json is written")
    played.decompose()
    latency = {
        "runtime": "onnxruntime", "batch_size": 1, "layout": "contiguous", "device": "CPU", "threads": 2,
        "measured_speedup": 1.304,
    }  # fmt: skip
    record = {"asked": asked, "macs_before": 1_500_000, "macs_after": 1_890_000, "latency": latency}
    played.run.update_config("decompose", record)
    count = "0.79x (1.50 M to 1.89 M multiply-accumulates)"
    planned = "(1.30x when it was planned) by spatial, prune"
    assert played.look()[1]["decompose"] == f"{count}; target {target} {planned}"
    latency["other_sizes"] = True
    played.run.update_config("decompose", record)
    assert (
        played.look()[1]["decompose"] == f"{count}; target {target} (of edited sizes: not measured) by spatial, prune"
    )
