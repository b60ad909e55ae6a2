"""Exported networks: what another process makes of them, and what is refused before a file has its name."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import decomp
from decomp.cost import count as cost
from decomp.data.formats import network_file
from decomp.data.formats.exported import FORMATS
from decomp.errors import DecompError, FileError, UsageError
from decomp.pipelines.run import loading, networks
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages import export as stage
from decomp.pipelines.stages.export import EXTRA, _asked_axes, export
from tests.pipelines.small_runs import SHAPE, make_run, quiet

WITHOUT_ONNX = ("pt2", "torchscript", "state-dict", "safetensors")
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in EXTRA), reason='needs pip install "decomp[export]"'
)

# Runs in a process that has torch and cannot import this package.
ELSEWHERE = """
import sys
sys.modules["decomp"] = None
import json, torch
folder, outputs = sys.argv[1], {}
images = torch.load(folder + "/images.pth", weights_only=True)
kept = {"decomp.json": ""}
for batch in (1, 7):
    program = torch.export.load(folder + "/decomposed.pt2", extra_files=kept)
    outputs["pt2", batch] = program.module()(images[:batch])
    outputs["torchscript", batch] = torch.jit.load(folder + "/decomposed.pt")(images[:batch])
about = json.loads(kept["decomp.json"])
assert about["origin"]["network"] == "decomposed" and about["costs"]["macs"] > 0
torch.save({f"{k[0]} {k[1]}": v.detach() for k, v in outputs.items()}, folder + "/outputs.pth")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def exported(run):
    return export(run, formats=WITHOUT_ONNX, reporter=quiet())


def test_a_process_without_this_package_gets_the_same_outputs(run, exported):
    folder, images = run.export_dir, torch.randn(7, *SHAPE)
    torch.save(images, folder / "images.pth")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(folder)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    got = torch.load(folder / "outputs.pth", weights_only=True)
    network = decomp.load(run.model_dir)
    for batch in (1, 7):
        wanted = network(images[:batch])
        for name in ("pt2", "torchscript"):
            assert (got[f"{name} {batch}"] - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_weights_go_into_a_rebuilt_module_by_plain_load_state_dict(run, exported):
    images, network = torch.randn(3, *SHAPE), decomp.load(run.model_dir)
    rebuilt = decomp.load(run.model_dir, into=torch.nn.Sequential(*decomp.load(run.original_dir).children()))
    for module in (rebuilt, decomp.load(run.model_dir)):
        for parameter in module.parameters():
            parameter.data.normal_()
        assert not torch.allclose(module(images), network(images))
        module.load_state_dict(torch.load(run.export_dir / "decomposed.pth", weights_only=True))
        assert torch.equal(module(images), network(images))


def test_every_format_says_where_it_comes_from_and_what_it_costs(run, exported):
    with safe_open(run.export_dir / "decomposed.safetensors", "pt") as file:
        about = json.loads(file.metadata()["decomp"])
    state = torch.load(run.export_dir / "decomposed.pth", weights_only=True)
    kept = {"decomp.json": ""}
    torch.jit.load(run.export_dir / "decomposed.pt", _extra_files=kept)
    assert about == json.loads(state._metadata[""]["decomp"]) == json.loads(kept["decomp.json"])
    counted = cost.cost(decomp.load(run.model_dir), SHAPE)
    assert (about["costs"]["macs"], about["costs"]["params"]) == (counted.macs, counted.params)
    assert about["plan"] == "test" and about["input_shape"] == list(SHAPE)
    assert about["origin"]["network"] == "decomposed"


def test_the_result_names_each_file_with_its_size_and_difference(run, exported):
    assert [item.format for item in exported.exported] == list(WITHOUT_ONNX)
    for item in exported.exported:
        assert os.path.getsize(item.path) == item.bytes and item.difference <= 1e-6
    text = "\n".join(exported.lines())
    assert "decomposed.pt2" in text and "batch sizes 1 and 5" in text


def test_the_code_that_loads_each_file_works_as_written(exported):
    codes = [
        line.removeprefix("next, in Python: ") for line in exported.lines() if line.startswith("next, in Python: ")
    ]
    assert len(codes) == len(exported.exported)
    for item, code in zip(exported.exported, codes):
        assert item.path in code
        eval(code, {"torch": torch, "decomp": decomp, "safetensors": safetensors})


@needs_onnx
def test_onnx_runs_in_onnxruntime_with_any_batch(run):
    import onnxruntime

    (item,) = export(run, formats=["onnx"], reporter=quiet()).exported
    session = onnxruntime.InferenceSession(item.path, providers=["CPUExecutionProvider"])
    network = decomp.load(run.model_dir)
    for batch in (1, 2, 9):
        images = torch.randn(batch, *SHAPE)
        (got,) = session.run(None, {"images": images.numpy()})
        wanted = network(images)
        assert (torch.from_numpy(got) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    about = json.loads(session.get_modelmeta().custom_metadata_map["decomp"])
    assert about["origin"]["network"] == "decomposed"


def test_onnx_without_its_packages_says_what_to_install_before_any_work(run, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DecompError, match=r'pip install "decomp\[export\]"') as caught:
        export(run, formats=["pt2", "onnx"], out=tmp_path / "new", reporter=quiet())
    assert "onnxscript" in str(caught.value) and not (tmp_path / "new").exists()


def test_a_file_with_other_outputs_does_not_get_its_name(run, monkeypatch, tmp_path):
    def write_another(network, example, path, text, axes=()):
        spoiled = decomp.load(run.model_dir)
        spoiled.get_submodule("7").bias.data += 0.01
        form.write(spoiled, example, path, text)

    for name in ("pt2", "state-dict"):
        form = FORMATS[name]
        monkeypatch.setitem(FORMATS, name, replace(form, write=write_another))
        with pytest.raises(DecompError, match="module's outputs"):
            export(run, formats=[name], out=tmp_path, reporter=quiet())
        assert not list(tmp_path.iterdir())


def test_a_network_that_asks_for_the_batch_size_is_refused(run, monkeypatch, tmp_path):
    class Fixed(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1) * (2 if len(x) == stage.TRACED_BATCH else 1)

    monkeypatch.setattr(loading, "load_network", lambda run, path: Fixed())
    for name, words in (("pt2", "cannot be written as pt2"), ("torchscript", "module's outputs to 0.0001")):
        with pytest.raises(DecompError, match=words) as caught:
            export(run, formats=[name], out=tmp_path, reporter=quiet())
        assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


class Levels(torch.nn.Module):
    """Half of the size and back again, joined with the map itself: only even sizes can be."""

    def __init__(self):
        super().__init__()
        self.down, self.up = torch.nn.Conv2d(1, 4, 3, 2, 1), torch.nn.ConvTranspose2d(4, 4, 2, 2)

    def forward(self, x):
        return torch.cat([self.up(self.down(x).relu()), x], 1)


class Line(torch.nn.Module):
    """Columns as steps of a sequence: a linear layer over the whole height."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Linear(4 * SHAPE[1], 5)

    def forward(self, x):
        return self.out(self.conv(x).flatten(1, 2).transpose(1, 2))


def fixed(reshape):
    layers = [torch.nn.Conv2d(1, 4, 3, padding=1), reshape, torch.nn.Linear(4 * SHAPE[1] * SHAPE[2], 3)]
    return torch.nn.Sequential(*layers)


class IntoMoreImages(torch.nn.Module):
    def forward(self, x):
        return x.reshape(-1, 4 * SHAPE[1] * SHAPE[2])


@pytest.mark.parametrize(
    ("make", "axes"),
    [(Levels, (2, 3)), (Line, (3,)), (lambda: fixed(torch.nn.Flatten()), ()), (lambda: fixed(IntoMoreImages()), ())],
)
def test_sizes_are_free_where_the_network_takes_others_and_gives_as_many_outputs(make, axes):
    assert stage.free_axes(make().eval(), SHAPE) == axes


@pytest.mark.parametrize("name", ["pt2", "torchscript", pytest.param("onnx", marks=needs_onnx)])
def test_a_file_takes_images_of_any_size_that_the_network_takes(run, monkeypatch, tmp_path, name):
    network = Levels().eval()
    monkeypatch.setattr(loading, "load_network", lambda run, path: network)
    result = export(run, formats=[name], out=tmp_path, reporter=quiet())
    assert "takes images of other heights and widths too (checked at 16x16)" in result.lines().__next__()
    load, _ = FORMATS[name].read(result.exported[0].path, network)
    for size in ((12, 8), (8, 30), (22, 18)):
        images = torch.randn(2, 1, *size)
        with torch.no_grad():
            (got,) = torch.utils._pytree.tree_leaves(load(images))
            assert torch.allclose(got, network(images), atol=1e-5)


def test_a_file_of_a_network_of_one_size_says_so_and_one_that_depends_on_the_width_is_free_in_it(
    run, monkeypatch, tmp_path
):
    network = Line().eval()
    monkeypatch.setattr(loading, "load_network", lambda run, path: network)
    (item,) = export(run, formats=["pt2"], out=tmp_path, reporter=quiet()).exported
    assert item.sizes == "images of other widths too (checked at 8x16)"
    images = torch.randn(2, 1, 8, 21)
    with torch.no_grad():
        assert torch.allclose(FORMATS["pt2"].read(item.path, network)[0](images), network(images), atol=1e-5)
    # Decided by the size when it was traced: other sizes might give something else without a word.
    before = run.config("freeze")
    run.update_config("freeze", {**(before or {}), "facts": {"branches": ["model.py:3"]}})
    (item,) = export(run, formats=["pt2"], out=tmp_path, reporter=quiet()).exported
    run.update_config("freeze", before)
    assert item.sizes == "images of 8x8 only"


def test_the_sizes_that_are_asked_for_are_open_and_no_others(run, monkeypatch, tmp_path):
    network = Levels().eval()
    monkeypatch.setattr(loading, "load_network", lambda run, path: network)
    (item,) = export(run, formats=["pt2"], out=tmp_path, dynamic="none", reporter=quiet()).exported
    assert item.sizes == "images of 8x8 only"
    (item,) = export(run, formats=["pt2"], out=tmp_path, dynamic="width", reporter=quiet()).exported
    assert item.sizes == "images of other widths too (checked at 8x16)"
    with pytest.raises(AssertionError, match="size"):  # the height is fixed
        FORMATS["pt2"].read(item.path, network)[0](torch.randn(1, 1, 12, 8))
    line = Line().eval()
    monkeypatch.setattr(loading, "load_network", lambda run, path: line)
    with pytest.raises(UsageError, match="^--dynamic: .* it takes another width, got height; leave it out"):
        export(run, formats=["pt2"], out=tmp_path, dynamic="height", reporter=quiet())
    with pytest.raises(UsageError, match="^--dynamic: .* it takes another width, got height,width; leave it out"):
        export(run, formats=["pt2"], out=tmp_path, dynamic="height,width", reporter=quiet())
    with pytest.raises(UsageError, match="sizes there; it takes one size only, got width; leave it out"):
        _asked_axes(("width",), ())
    with pytest.raises(UsageError, match="^--dynamic: must be auto, none, height, width, or height,width, got"):
        export(run, formats=["pt2"], out=tmp_path, dynamic="height,auto", reporter=quiet())


def test_a_format_that_cannot_hold_free_sizes_is_written_for_one(run, monkeypatch, tmp_path):
    form = FORMATS["pt2"]

    def write(network, example, path, text, axes=()):
        if axes:
            raise RuntimeError("no free sizes")
        form.write(network, example, path, text)

    monkeypatch.setitem(FORMATS, "pt2", replace(form, write=write))
    monkeypatch.setattr(loading, "load_network", lambda run, path: Levels().eval())
    pt2, weights = export(run, formats=["pt2", "state-dict"], out=tmp_path, reporter=quiet()).exported
    assert pt2.sizes == "images of 8x8 only" and weights.sizes == ""
    with pytest.raises(DecompError, match="cannot be written as pt2 .no free sizes."):
        export(run, formats=["pt2"], out=tmp_path / "other", dynamic="height", reporter=quiet())


def test_the_best_network_there_is_is_taken_unless_another_is_named(run, tmp_path):
    result = export(run, formats=["state-dict"], which="original", out=tmp_path, reporter=quiet())
    assert result.network == "original" and (tmp_path / "original.pth").is_file()
    assert networks.find_network(run).name == "decomposed"
    with pytest.raises(FileError, match="holds no fine-tuned network yet; run finetune first"):
        export(run, which="finetuned", reporter=quiet())
    with pytest.raises(UsageError, match="--which"):
        export(run, which="best", reporter=quiet())
    with pytest.raises(UsageError, match="--format"):
        export(run, formats=["h5"], reporter=quiet())


# -- what else a loaded network lets be done with it ---------------------------------------------------------


def test_a_loaded_network_can_be_traced_again_and_pickled(run):
    import copy
    import pickle

    network, images = decomp.load(run.model_dir), torch.randn(2, *SHAPE)
    wanted = network(images)
    assert torch.equal(torch.fx.symbolic_trace(network)(images), wanted)
    assert torch.equal(copy.deepcopy(network)(images), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(network))(images), wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_loaded_network_takes_dynamic_int8_quantisation(run):
    quantization = pytest.importorskip("torch.ao.quantization")
    if "none" in (torch.backends.quantized.engine or "none"):
        pytest.skip("this build of PyTorch has no int8 kernels")
    network, images = decomp.load(run.model_dir), torch.randn(20, *SHAPE)
    quantised = quantization.quantize_dynamic(network, {torch.nn.Linear}, dtype=torch.qint8)
    wanted, got = network(images), quantised(images)
    # Eight bits a weight: close, and not the same.
    assert 0 < (got - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_files_are_in_the_precision_in_which_the_original_came(run, tmp_path, dtype):
    kept = make_kept(run, tmp_path / "run", str(dtype).removeprefix("torch."))
    result = export(kept, formats=WITHOUT_ONNX, which="decomposed", reporter=quiet())
    x = torch.randn(4, *SHAPE)
    wanted = decomp.load(kept.model_dir)
    assert wanted(x.to(dtype)).dtype == dtype and len(result.exported) == 4
    assert torch.equal(torch.export.load(kept.export_dir / "decomposed.pt2").module()(x.to(dtype)), wanted(x.to(dtype)))
    state = torch.load(kept.export_dir / "decomposed.pth", weights_only=True)
    assert {value.dtype for value in state.values()} == {dtype}
    plain = loading.load_network(kept, kept.model_dir)  # for the stages, which work in float32
    assert plain(x).dtype == torch.float32 and torch.allclose(plain(x), wanted(x.to(dtype)).float(), atol=0.05)


def make_kept(run, path, dtype):
    """A copy of the run whose networks were in another precision."""
    shutil.copytree(run.path, path, ignore=shutil.ignore_patterns("export", "finetune"))
    kept = RunDirectory(path)
    for folder in (kept.original_dir, kept.model_dir):
        structure = network_file.read_structure(folder)
        network_file.save(
            network_file.load(folder), folder, edited=[edit["module"] for edit in structure["edits"]],
            input_shape=SHAPE, meta={**structure["meta"], "dtype": dtype},
        )  # fmt: skip
    return kept


@needs_onnx
def test_a_file_of_8_bits_is_calibrated_on_the_images_of_the_run(run, tmp_path):
    import onnxruntime

    result = export(run, formats="onnx-int8,onnx", out=tmp_path, reporter=quiet())
    small, whole = result.exported
    assert small.path == str(tmp_path / "decomposed.int8.onnx") and small.bytes < whole.bytes
    assert 0 < small.difference < 0.01 and small.sizes == "images of 8x8 only"
    session = onnxruntime.InferenceSession(small.path)
    assert json.loads(session.get_modelmeta().custom_metadata_map["decomp"])["origin"]["network"] == "decomposed"
    lines = list(result.lines())
    assert any("on 30 held-out calibration images, beside the network in float32" in line for line in lines)
    assert any("each file but that of 8 bits checked on random inputs" in line for line in lines)


@needs_onnx
def test_no_file_of_8_bits_is_left_where_the_quantiser_fails(run, tmp_path, monkeypatch):
    def failing(*_):
        raise ValueError("node 7 has no range")

    monkeypatch.setattr(stage.int8.quantised, "quantise", failing)
    with pytest.raises(DecompError, match="cannot be written as onnx-int8 .node 7 has no range.; leave this format"):
        export(run, formats="onnx-int8", out=tmp_path, reporter=quiet())
    assert list(tmp_path.iterdir()) == []
