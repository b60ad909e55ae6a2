"""Layer file: a solution read back bit by bit, older formats, and a file that does not belong there is refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from decomp.data.formats import layer_file
from decomp.data.formats.layer_file import current_report, read_layer, read_selection, write_layer
from decomp.errors import FileError
from decomp.problem.factors import ConvFactor, FactoredConv, Geometry, LayerSolution, Selection

PARENT = "0" * 64


@pytest.fixture
def solution():
    generator = torch.Generator().manual_seed(0)
    vertical = ConvFactor(torch.randn(5, 2, 3, 1, generator=generator), None, Geometry((2, 1), (1, 0)))
    horizontal = ConvFactor(torch.randn(4, 5, 1, 3, generator=generator), torch.arange(4.0), Geometry((1, 2), (0, 1)))
    factored = FactoredConv((vertical, horizontal), ("vertical", "horizontal"))
    return LayerSolution("features.3", Selection(torch.tensor([1, 4]), 6), factored)


REPORT = {"layer": "features.3", "errors": {"prune": {"fitted": 0.1, "output_error": 0.2}, "spatial": {"fitted": 0.3}}}


def test_a_layer_is_read_back_as_it_was_written(solution, tmp_path):
    write_layer(tmp_path / "l.safetensors", solution, REPORT, PARENT)
    back, report = read_layer(tmp_path / "l.safetensors", PARENT, "features.3")
    assert report == REPORT and back.name == "features.3"
    assert back.selection.channels.tolist() == [1, 4] and back.selection.n_total == 6
    assert back.factored.names == solution.factored.names
    for got, wanted in zip(back.factored.factors, solution.factored.factors):
        assert torch.equal(got.weight, wanted.weight) and got.geometry == wanted.geometry
        assert (got.bias is None) == (wanted.bias is None)
    assert torch.equal(back.factored.factors[1].bias, torch.arange(4.0))
    layer, channels, n_total = read_selection(tmp_path / "l.safetensors", "solve it again")
    assert (layer, channels.tolist(), n_total) == ("features.3", [1, 4], 6)


def rewritten(path, version, report):
    """The same file in another format version, its digest in step."""
    with safe_open(str(path), "pt") as file:
        header = json.loads(file.metadata()["decomp"])
    tensors = load_file(str(path))
    header.pop("content")
    header |= {"format_version": version, "report": report}
    header["content"] = layer_file._content_digest(header, tensors)
    save_file(tensors, str(path), metadata={"decomp": json.dumps(header)})


def test_files_of_format_2_are_read_with_their_report_under_the_present_names(solution, tmp_path):
    path = tmp_path / "l.safetensors"
    write_layer(path, solution, REPORT, PARENT)
    old = {"layer": "features.3", "errors": {"prune": {"fitted": 0.1, "felt": 0.2}, "spatial": {"fitted": 0.3}}}
    rewritten(path, 2, old)
    back, report = read_layer(path, PARENT, "features.3")
    assert report == REPORT == current_report(old) == current_report(REPORT)
    assert torch.equal(back.factored.compose()[0], solution.factored.compose()[0])


@pytest.mark.parametrize("version", [1, 4, None])
def test_other_formats_are_refused(solution, tmp_path, version):
    path = tmp_path / "l.safetensors"
    write_layer(path, solution, REPORT, PARENT)
    rewritten(path, version, REPORT)
    with pytest.raises(FileError, match=f"formats 2 and 3 can be read, got format {version}; run decompose again"):
        read_layer(path, PARENT, "features.3")


def test_a_layer_of_another_origin_or_name_is_refused(solution, tmp_path):
    path = tmp_path / "l.safetensors"
    write_layer(path, solution, REPORT, PARENT)
    with pytest.raises(FileError, match="was made from 000000000000, got 111111111111"):
        read_layer(path, "1" * 64, "features.3")
    with pytest.raises(FileError, match="must hold layer features.4, got features.3"):
        read_layer(path, PARENT, "features.4")


@pytest.mark.parametrize("report", [[], "text", {"errors": 3}, {"errors": {"prune": [0.1]}}])
def test_a_report_of_another_shape_is_refused_in_one_line(solution, tmp_path, report):
    path = tmp_path / "l.safetensors"
    write_layer(path, solution, REPORT, PARENT)
    rewritten(path, 3, report)
    with pytest.raises(FileError, match=r"is broken \(.*\); run decompose again"):
        read_layer(path, PARENT, "features.3")


def test_equal_solutions_give_equal_bytes(solution, tmp_path):
    for name in ("one", "other"):
        write_layer(tmp_path / name, solution, REPORT, PARENT)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_layer_that_reads_all_its_channels_has_no_selection(solution, tmp_path):
    write_layer(tmp_path / "l", LayerSolution("fc", None, solution.factored), {}, PARENT)
    assert read_layer(tmp_path / "l", PARENT, "fc")[0].selection is None
    assert read_selection(tmp_path / "l", "solve it again") == ("fc", None, None)


def foreign(path):
    save_file({"x": torch.zeros(1)}, str(path))


def changed_weight(path):
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    tensors = load_file(str(path))
    tensors["vertical.weight"] += 1
    save_file(tensors, str(path), metadata=metadata)


@pytest.mark.parametrize(
    "damage, rule",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not a readable layer file"),
        (foreign, "is not a layer file"),
        (changed_weight, r"does not match the digest in it \(damaged\)"),
    ],
    ids=["cut short", "foreign", "changed"],
)
def test_a_damaged_or_foreign_file_is_refused(solution, tmp_path, damage, rule):
    path = tmp_path / "l.safetensors"
    write_layer(path, solution, REPORT, PARENT)
    damage(path)
    with pytest.raises(FileError, match=rule) as caught:
        read_layer(path, PARENT, "features.3")
    assert str(path) in str(caught.value)
