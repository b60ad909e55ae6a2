"""Every file of a run, spoiled in every way: an error that says what to run again, or the same result; no third."""

import json
import random
import re
import shutil
import time

import h5py
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from decomp.errors import FileError
from decomp.pipelines.run.directory import RunDirectory
from tests.pipelines.forked import frozen_values, networks

# Where a file lies, which stage reads it next, and what its error says to do.
READ_BY = {
    "run.json": ("decompose", r"start a new run directory with `decomp freeze`"),
    "frozen.h5": ("decompose", r"run freeze again"),
    "original/structure.json": ("decompose", r"run freeze into another --run"),
    "original/weights.safetensors": ("decompose", r"run freeze into another --run"),
    "curves.npz": ("plan", None),
    "plan.json": ("decompose", r"--redo"),
    "layers/000_0.safetensors": ("decompose", r"run decompose again with --redo"),
    "layers/003_9.safetensors": ("decompose", r"run decompose again with --redo"),
    "model/structure.json": ("finetune", r"run decompose with --redo"),
    "model/weights.safetensors": ("finetune", r"run decompose with --redo"),
    "finetune/checkpoint.pt": ("finetune", r"--redo"),
    "finetune/metrics.csv": ("finetune", None),
    "finetune/best/structure.json": ("evaluate", r"run finetune with --redo"),
    "finetune/best/weights.safetensors": ("evaluate", r"run finetune with --redo"),
}
# What is done before the stage that reads the file: the state it is found in.
STATE = {"plan": "surveyed", "decompose": "layers", "finetune": "half-tuned", "evaluate": "tuned"}


@pytest.fixture(scope="module")
def wanted(stages, whole):
    """What a whole run comes to; beside it lie runs in the states that the files are read in."""
    ended, found = whole
    for name in ("surveyed", "layers", "half-tuned"):
        shutil.copytree(stages.folder / "whole", stages.folder / name)
        shutil.rmtree(stages.folder / name / "finetune")
        RunDirectory(stages.folder / name).update_config("finetune", None)
    for name in ("surveyed", "layers"):
        shutil.rmtree(stages.folder / name / "model")
    shutil.rmtree(stages.folder / "surveyed" / "layers")
    (stages.folder / "surveyed" / "plan.json").unlink()
    # As if an epoch had been better: otherwise no stage reads the fine-tuned network.
    tuned = RunDirectory(shutil.copytree(stages.folder / "whole", stages.folder / "tuned"))
    record = tuned.config("finetune")
    tuned.update_config("finetune", {**record, "facts": {**record["facts"], "best_epoch": 1}})
    half = stages.folder / "half-tuned"
    for step in range(ended["finetune"].steps // 2, ended["finetune"].steps):
        stages.start("finetune", half, kill_at=step)
        if (half / "finetune" / "checkpoint.pt").exists() and (half / "finetune" / "metrics.csv").exists():
            break
    return found


def command(stages, stage, run):
    return ["evaluate", "--run", str(run), "--repeats", "1"] if stage == "evaluate" else stages.command(stage, run)


def read(stages, name, spoil):
    """Spoil a file in a fresh copy of the state it is found in, and run the stage that reads it."""
    stage, says = READ_BY[name]
    run = stages.folder / "spoiled"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(stages.folder / STATE[stage], run)
    spoil(run / name)
    began = time.monotonic()
    ended = stages.start(command(stages, stage, run), run)
    assert time.monotonic() - began < 60
    assert "Traceback" not in ended.text and "unexpected" not in ended.text, ended.text
    return stage, says, run, ended


def assert_refused_or_same(stages, wanted, name, spoil):
    stage, says, run, ended = read(stages, name, spoil)
    if ended.code == 0:
        if stage != "evaluate":
            stages.finish(stage, run)
        found, noticed = networks(run), 0
        try:
            found |= frozen_values(run)
        except FileError as error:  # no stage reads this part of the file again, and who does is told
            assert name == "frozen.h5" and re.search(says, str(error))
            found, noticed = {**wanted, **found}, 1
        assert [key for key in wanted if found.get(key) != wanted[key]] == [], ended.text
        return noticed
    *_, line = ended.text.strip().splitlines()
    assert ended.code == 1 and line.startswith("error: ") and name.rpartition("/")[2] in line, ended.text
    assert says is not None and re.search(says, line), line
    return 1


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_its_end(path):
    path.write_bytes(path.read_bytes()[:-3])


def emptied(path):
    path.write_bytes(b"")


def foreign(path):
    path.write_bytes(b'{"name": "npm", "version": 3}\n')


SLOWER = [pytest.param(spoil, marks=pytest.mark.slow) for spoil in (without_its_end, emptied)]


@pytest.mark.fault(
    "broken file", "each file of a run cut in half, cut by three bytes, emptied or exchanged for a foreign one"
)
@pytest.mark.parametrize("spoil", [truncated, foreign, *SLOWER])
@pytest.mark.parametrize("name", READ_BY)
def test_a_broken_file_is_named_with_the_stage_to_run_again(stages, wanted, name, spoil):
    assert assert_refused_or_same(stages, wanted, name, spoil) or READ_BY[name][1] is None


def flipped(place, bit):
    def spoil(path):
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1 << bit
        path.write_bytes(bytes(content))

    return spoil


def assert_flips_are_noticed(stages, wanted, name, n):
    draw = random.Random(name)
    refused = sum(
        assert_refused_or_same(stages, wanted, name, flipped(draw.random(), draw.randrange(8))) for _ in range(n)
    )
    # HDF5 and zip keep some bytes that mean nothing; all else must have been noticed.
    assert refused >= n / 2 or READ_BY[name][1] is None
    return refused


SEALED = [name for name in READ_BY if name != "plan.json"]


@pytest.mark.fault("flipped bit", "one random bit of a file, read by the next stage")
@pytest.mark.parametrize("name", SEALED)
def test_a_flipped_bit_is_noticed_or_harmless(stages, wanted, name, record_property):
    assert_flips_are_noticed(stages, wanted, name, 2)
    record_property("times", 2)


@pytest.mark.fault("flipped bit", "one random bit of a file, read by the next stage")
@pytest.mark.slow
@pytest.mark.parametrize("name", SEALED)
def test_many_flipped_bits_are_noticed_or_harmless(stages, wanted, name, record_property):
    refused = assert_flips_are_noticed(stages, wanted, name, 40)
    record_property("times", 40)
    print(f"\n{name}: 40 bits flipped, {refused} refused, {40 - refused} without effect on the result")


@pytest.mark.fault("edited plan", "another size in plan.json behind finished layers")
def test_a_flipped_bit_in_the_plan_is_told_as_an_edit_or_refused(stages, wanted):
    """A person may edit the plan, so that another size in it is no error; but it is never taken in silence."""

    def other_size(path):
        plan = json.loads(path.read_text())
        plan["layers"][1]["spatial_rank"] += 1
        path.write_text(json.dumps(plan))

    _, _, _, ended = read(stages, "plan.json", other_size)
    assert ended.code == 1 and "was made from" in ended.text and "--redo" in ended.text
    assert "plan.json was edited; the edited plan is used" in ended.text


def newer_json(path):
    data = json.loads(path.read_text())
    data["format_version"] += 1
    path.write_text(json.dumps(data))


def newer_hdf5(path):
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 5  # 4 where mixtures are recorded, 3 elsewhere


def newer_layer(path):
    with safe_open(str(path), "pt") as file:
        header, tensors = json.loads(file.metadata()["decomp"]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    header["format_version"] += 1
    save_file(tensors, str(path), metadata={"decomp": json.dumps(header)})


def newer_checkpoint(path):
    content = torch.load(path, weights_only=True)
    content["version"] += 1
    torch.save(content, path)


@pytest.mark.fault("newer format", "each format of a later version")
@pytest.mark.parametrize(
    ("name", "spoil", "newer"),
    [
        ("run.json", newer_json, "format 2"),
        ("frozen.h5", newer_hdf5, "version 5"),
        ("original/structure.json", newer_json, "format 2"),
        ("layers/000_0.safetensors", newer_layer, "format 4"),
        ("model/structure.json", newer_json, "format 2"),
        ("finetune/checkpoint.pt", newer_checkpoint, "version 5"),
    ],
)
def test_a_newer_format_is_told_as_such(stages, wanted, name, spoil, newer):
    _, _, _, ended = read(stages, name, spoil)
    assert ended.code == 1 and name.rpartition("/")[2] in ended.text
    assert f"got {newer}" in ended.text, ended.text


def exchanged_points(stages):
    def spoil(path):
        other = stages.folder / "other"
        if not other.exists():
            args = stages.command("freeze", other)
            assert stages.start([*args, "--seed", "1"], other).code == 0
        shutil.copy(other / "frozen.h5", path)

    return spoil


@pytest.mark.fault("exchanged file", "frozen points of another run")
def test_points_of_another_run_are_noticed_by_their_identity(stages, wanted):
    _, _, _, ended = read(stages, "frozen.h5", exchanged_points(stages))
    assert ended.code == 1 and "must be the points" in ended.text and "that run.json names, got" in ended.text


class Payload:
    """Unpickled by anything that runs what a pickle says, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.fault("hostile file", "a pickle with a payload as checkpoint")
def test_a_checkpoint_with_a_payload_is_refused_and_the_payload_does_not_run(stages, wanted):
    proof = stages.folder / "ran"

    def hostile(path):
        content = torch.load(path, weights_only=True)
        torch.save({**content, "history": Payload(proof)}, path)
        torch.load(path, weights_only=False)  # so it would run
        proof.unlink()

    _, _, _, ended = read(stages, "finetune/checkpoint.pt", hostile)
    assert ended.code == 1 and "cannot be read as a checkpoint" in ended.text
    assert not proof.exists()
