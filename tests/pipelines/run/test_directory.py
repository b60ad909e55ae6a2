"""Run directory: which folders are accepted, and the record of each stage."""

import json
import os

import pytest

import decomp
from decomp.errors import FileError, MissingError
from decomp.pipelines.run import directory
from decomp.pipelines.run.directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "runs" / "vgg")


def test_a_created_run_opens_and_remembers_each_stage(run):
    run.update_config("freeze", {"model": "zoo:vgg", "n_images": 100})
    run.update_config("decompose", {"speedup": 4.0})
    again = RunDirectory.open(run.path)
    assert again.config("freeze") == {"model": "zoo:vgg", "n_images": 100}
    assert again.config("decompose") == {"speedup": 4.0}
    assert again.config("finetune") is None
    again.update_config("decompose", None)
    assert run.config("decompose") is None and run.config("freeze")["n_images"] == 100


def test_creating_again_keeps_what_is_there(run):
    run.update_config("freeze", {"seed": 3})
    assert RunDirectory.create(run.path).config("freeze") == {"seed": 3}


def test_versions_are_kept_and_changes_named(run):
    run.update_config("freeze", {})
    assert run.version_changes("freeze") == []
    config = run.read_config()
    assert config["versions"]["freeze"]["decomp"] == decomp.__version__
    now = config["versions"]["freeze"]["torch"]
    config["versions"]["freeze"]["torch"] = "1.0"
    run.write_config(config)
    assert run.version_changes("freeze") == [f"torch 1.0, now {now}"]


def test_opening_what_is_no_run_says_what_to_do_first(tmp_path):
    with pytest.raises(FileError, match=r"no such run directory; run `decomp freeze .*--run .*/none` first"):
        RunDirectory.open(tmp_path / "none")
    (tmp_path / "photos").mkdir()
    with pytest.raises(FileError, match=r"must contain run.json, got none; run `decomp freeze .*/photos` first"):
        RunDirectory.open(tmp_path / "photos")
    (tmp_path / "photos" / "frozen.h5").write_bytes(b"x")  # into which freeze would refuse to begin
    with pytest.raises(FileError, match="got none; give another --run, or put a copy of it back"):
        RunDirectory.open(tmp_path / "photos")


def test_a_folder_of_other_things_is_not_made_a_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FileError, match=r"must be empty, got a folder that holds 'thesis.tex'"):
        RunDirectory.create(tmp_path)
    with pytest.raises(FileError, match="must be a folder, got a file"):
        RunDirectory.create(tmp_path / "thesis.tex")
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "empty"),
        ('{"format": "decomp run", "format_version": 1, "versions": {}, "sta', "cut short|must be JSON"),
        ('{"name": "npm"}', "'decomp run' file"),
        ('{"format": "decomp run", "format_version": 9}', "got format 9; install the newer"),
        ('{"format": "decomp run", "format_version": 1, "versions": {}, "stages": {}}', "match the digest in it"),
    ],
)
@pytest.mark.parametrize("enter", [RunDirectory.open, RunDirectory.create])
def test_a_broken_run_json_is_refused(run, content, says, enter):
    run.run_json.write_text(content)
    with pytest.raises(FileError, match=says):
        enter(run.path)
    assert run.run_json.read_text() == content


@pytest.mark.parametrize(("part", "value"), [("stages", []), ("versions", 1), ("stages", {"freeze": 1})])
def test_a_run_json_of_another_shape_is_refused(run, part, value):
    run.write_config({"versions": {}, "stages": {}, part: value})
    with pytest.raises(FileError, match=f"{part!r} must hold one object per stage"):
        RunDirectory.open(run.path)


@pytest.mark.parametrize("name", ["features.3", "../../etc/x", "a/b", "", "..", "l" * 400])
def test_layer_files_stay_in_their_folder(run, name):
    path = run.layer_file(3, name)
    assert path.parent == run.layers_dir and path.name.startswith("003_") and path.suffix == ".safetensors"
    assert len(path.name) < 255


def test_run_json_is_one_readable_object(run):
    run.update_config("freeze", {"seed": 0})
    assert json.loads(run.run_json.read_text())["stages"] == {"freeze": {"seed": 0}}


@pytest.mark.parametrize("place", ["closed/run", "closed/a/b"])
def test_a_place_that_cannot_be_written_to_is_named_before_any_work(tmp_path, monkeypatch, place):
    (tmp_path / "closed").mkdir()

    def refuse(**options):
        raise PermissionError(13, "Permission denied", str(options["dir"]))

    monkeypatch.setattr(directory.tempfile, "mkdtemp", refuse)
    with pytest.raises(FileError) as caught:
        RunDirectory(tmp_path / place).check_free()
    where = f"{tmp_path / place}: nothing can be written into {tmp_path / 'closed'} (Permission denied)"
    assert str(caught.value) == f"{where}; give another --run."


def test_the_check_of_a_place_leaves_nothing_there(tmp_path):
    RunDirectory(tmp_path / "a" / "b").check_free()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_does_not_exist_is_a_name_that_cannot_be_meant(tmp_path):
    with pytest.raises(MissingError) as caught:
        RunDirectory.open(tmp_path / "none")
    assert caught.value.exit_code == 2
