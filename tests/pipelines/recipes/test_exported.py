"""Decompose and export in one command: the files, the refusal before any long work, options that do not go together."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import decomp_command

import decomp
from decomp.data.formats.exported import FORMATS
from decomp.pipelines.stages import export as stage


@pytest.fixture
def run(frozen, tmp_path):
    shutil.copytree(frozen, tmp_path / "run")
    return tmp_path / "run"


def test_the_files_are_those_of_the_network_that_was_made(run):
    result = decomp_command("decompose", "--run", run, "--speedup", "2x", "--export", "state-dict,pt2", "--json")
    assert result.code == 0, result.err
    (made,) = json.loads(result.out)["exports"].values()
    assert [item["format"] for item in made["exported"]] == ["state-dict", "pt2"]
    images, network = torch.rand(2, 1, 8, 8), decomp.load(run / "model")
    program = torch.export.load(run / "export" / "decomposed.pt2").module()
    assert torch.allclose(program(images), network(images), atol=1e-5)
    assert sorted(path.name for path in (run / "export").iterdir()) == ["decomposed.pt2", "decomposed.pth"]


def test_an_8_bit_file_is_made_too(run):
    pytest.importorskip("onnxruntime")
    result = decomp_command("decompose", "--run", run, "--speedup", "2x", "--export", "onnx-int8", "--json")
    assert result.code == 0, result.err
    (made,) = json.loads(result.out)["exports"].values()
    assert [(item["format"], Path(item["path"]).name) for item in made["exported"]] == [
        ("onnx-int8", "decomposed.int8.onnx")
    ]
    assert [path.name for path in (run / "export").iterdir()] == ["decomposed.int8.onnx"]


def test_a_network_that_cannot_be_exported_is_refused_before_the_survey(run, monkeypatch):
    def write(network, *arguments):
        raise RuntimeError(f"{type(network).__name__} has no such form")

    monkeypatch.setitem(FORMATS, "pt2", replace(FORMATS["pt2"], write=write))
    result = decomp_command("decompose", "--run", run, "--speedup", "2x", "--export", "state-dict,pt2")
    assert result.errors == [
        "error: pt2: a network of this kind cannot be exported (cannot be written as pt2 (GraphModule has no such "
        "form)), as random weights show; leave this format out."
    ]
    assert result.code == 1 and not (run / "curves.npz").exists() and not (run / "export").exists()
    assert decomp_command("decompose", "--run", run, "--speedup", "2x", "--export", "state-dict").code == 0


def test_a_member_that_cannot_be_exported_does_not_keep_the_others_from_it(run, monkeypatch):
    def refuse(name, network, *arguments):
        if "run-2x" in str(arguments[1]):
            raise decomp.errors.DecompError(name, "is broken")
        return real(name, network, *arguments)

    real = stage._write
    monkeypatch.setattr(stage, "_write", refuse)
    result = decomp_command("decompose", "--run", run, "--speedup", "1.5x,2x", "--export", "state-dict")
    assert result.code == 1 and f"{run}-2x: not exported: state-dict: is broken." in result.out
    assert Path(f"{run}-1.5x", "export", "decomposed.pth").is_file()
    assert f"{run}-1.5x" in result.out and not Path(f"{run}-2x", "export").exists()


@pytest.mark.parametrize("arguments, line", [
    (("--export", "pt2", "--plan-only"), "error: --export: needs a finished network, got --plan-only; leave one of "
                                         "them out."),
    (("--export", "onnxx"), "error: --export: must be one or more of pt2, onnx, torchscript, state-dict, safetensors, "
                            "onnx-int8, separated by commas, got 'onnxx'; did you mean onnx."),
])  # fmt: skip
def test_mistakes_end_in_one_line(run, arguments, line):
    result = decomp_command("decompose", "--run", run, "--speedup", "2x", *arguments)
    assert result.errors == [line] and result.code == 2 and not (run / "plan.json").exists()
