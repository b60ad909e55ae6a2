"""Weights from files: nothing is run, nothing is half loaded, and what does not fit is named."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from decomp.data import weights
from decomp.data.weights import digest_state_dict, load_into, load_weights, read_checkpoint, split_key
from decomp.errors import FileError, NumericalError, WeightsError


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def equal(a, b):
    return list(sorted(a)) == list(sorted(b)) and all(torch.equal(a[k], b[k]) for k in a)


class Payload:
    """What a malicious file holds: unpickling it makes a folder."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def saved(tmp_path, content, name="w.pt", **options):
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize(
    ("place", "wrap"),
    [
        ("", lambda s: s),
        ("state_dict", lambda s: {"state_dict": s, "epoch": 3}),
        ("model", lambda s: {"model": s, "optimizer": {"lr": 0.1}}),
        ("model.state_dict", lambda s: {"model": {"state_dict": s}}),
        ("net", lambda s: {"net": s, "acc": 91.0}),
        ("anything.inside", lambda s: {"anything": {"inside": s, "steps": [1, 2]}, "config": {"lr": {"first": 0.1}}}),
    ],
)
def test_the_only_state_dict_in_a_file_is_found_whatever_its_name(tmp_path, place, wrap, new_format):
    state = dict(network().state_dict())
    path = saved(tmp_path, wrap(state), _use_new_zipfile_serialization=new_format)
    found = read_checkpoint(path)
    assert list(found) == [place] and equal(found[place], state)
    target = network(1)
    assert load_weights(target, path) == "" and equal(target.state_dict(), state)


def test_weights_are_chosen_by_their_place_and_the_choice_is_told(tmp_path):
    one, other = network(2).state_dict(), network(3).state_dict()
    path = saved(tmp_path, {"ema": {"model": other, "decay": 0.9}, "model": one, "stats": {"loss": torch.ones(1)}})
    target = network(1)
    note = load_weights(target, path)
    assert equal(target.state_dict(), one)
    assert note == f"{path}: took model, which others fit as well as: --weights {path}:ema.model"
    for key in ("ema.model", "ema"):
        assert load_weights(target, f"{path}:{key}") == "" and equal(target.state_dict(), other)
    assert load_weights(target, f"{path}:model") == "" and equal(target.state_dict(), one)
    with pytest.raises(FileError, match="holds no weights at this place, got mdoel; it has model, stats, ema.model"):
        load_weights(target, f"{path}:mdoel")
    with pytest.raises(WeightsError, match="0 of 7 entries that fit; .*left over: loss"):
        load_weights(target, f"{path}:stats")


def test_averaged_weights_beside_others_in_one_state_dict_are_chosen_by_their_prefix(tmp_path):
    one, other = network(2).state_dict(), network(3).state_dict()
    state = {f"ema_model.{k}": v for k, v in other.items()} | {f"net.{k}": v for k, v in one.items()}
    path = saved(tmp_path, {"state_dict": state | {"criterion.weight": torch.ones(3)}})
    target = network(1)
    note = load_weights(target, path)
    assert (
        equal(target.state_dict(), one)
        and f"took state_dict.net, which others fit as well as: --weights {path}:state_dict.ema_model" in note
    )
    assert "entries of something else are ignored" in note
    load_weights(target, f"{path}:state_dict.ema_model")
    assert equal(target.state_dict(), other)


def test_a_colon_in_a_name_of_a_file_or_drive_splits_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.pt", "plain.pt"):
        saved(tmp_path, network().state_dict(), name)
    assert split_key("a:b.pt") == (Path("a:b.pt"), None)
    assert split_key("a:b.pt:ema") == (Path("a:b.pt"), "ema")
    assert split_key("plain.pt:ema.model") == (Path("plain.pt"), "ema.model")
    assert split_key(Path("plain.pt")) == (Path("plain.pt"), None)
    for name in ("C:\\nets\\w.pt", "C:w.pt", "missing.pt:ema", "DEFAULT"):
        assert split_key(name) == (Path(name), None)
    with pytest.raises(FileError, match="missing.pt:ema: there is no such weights file"):
        load_weights(network(), "missing.pt:ema")


def test_safetensors_are_known_by_content_not_by_suffix(tmp_path):
    state = dict(network().state_dict())
    safetensors.torch.save_file({f"model.{k}": v for k, v in state.items()}, tmp_path / "w.bin")
    target = network(1)
    load_weights(target, tmp_path / "w.bin")
    assert equal(target.state_dict(), state)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_payload_is_refused_and_does_not_run(tmp_path, how):
    path, target = tmp_path / "w.pt", tmp_path / "was_run"
    content = {"state_dict": {"weight": Payload(target)}}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(FileError, match="can run code when it is opened: not opened") as caught:
        read_checkpoint(path)
    assert "mkdir" in str(caught.value) or how == "pickle"  # a bare pickle is given up before its names are read
    assert not target.exists()
    assert "\n" not in str(caught.value)
    if how == "pickle":  # the payload is a real one
        pickle.loads(path.read_bytes())
        assert target.exists()


def test_a_whole_module_and_a_torchscript_archive_are_refused(tmp_path):
    torch.save(network(), tmp_path / "module.pt")
    with pytest.raises(FileError, match="not opened, got torch.nn.modules.container.Sequential"):
        read_checkpoint(tmp_path / "module.pt")
    torch.jit.trace(network().eval(), torch.zeros(1, 3, 4, 4)).save(tmp_path / "script.pt")
    with pytest.raises(FileError, match="a TorchScript archive, not a state dict; .*torch.save"):
        read_checkpoint(tmp_path / "script.pt")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_files_cut_short_are_named(tmp_path, kind, keep):
    path = tmp_path / "w"
    if kind == "safetensors":
        safetensors.torch.save_file(dict(network().state_dict()), path)
    else:
        torch.save(network().state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(FileError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_empty_and_foreign_files_are_told_apart(tmp_path):
    with pytest.raises(FileError, match="no such weights file"):
        read_checkpoint(tmp_path / "none.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(FileError, match="is empty"):
        read_checkpoint(tmp_path / "empty.pt")
    (tmp_path / "page.pt").write_text("<html>404 not found</html>")
    with pytest.raises(FileError, match="neither a safetensors file nor a torch state dict"):
        read_checkpoint(tmp_path / "page.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(FileError, match="is a folder"):
        read_checkpoint(tmp_path)
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    with pytest.raises(FileError, match=r"a numpy archive, .*torch.save\(\{k: torch.as_tensor"):
        read_checkpoint(tmp_path / "arrays.npz")
    (tmp_path / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(20))
    with pytest.raises(FileError, match="got an HDF5 file"):
        read_checkpoint(tmp_path / "keras.h5")
    torch.save({"epoch": 3, "loss": 0.5}, tmp_path / "numbers.pt")
    with pytest.raises(FileError, match="holds no state dict, got a dict of epoch, loss"):
        read_checkpoint(tmp_path / "numbers.pt")
    torch.export.save(torch.export.export(network().eval(), (torch.zeros(1, 3, 4, 4),)), tmp_path / "program.pt2")
    with pytest.raises(FileError, match="a torch.export program"):
        read_checkpoint(tmp_path / "program.pt2")
    with pytest.raises(FileError, match="no state dict, got a list"):
        read_checkpoint(tmp_path / "list.pt")
    torch.save({"a": torch.ones(1), "lr": 0.1}, tmp_path / "mixed.pt")
    with pytest.raises(FileError, match="also lr"):
        read_checkpoint(tmp_path / "mixed.pt")


def test_loading_gives_the_same_outputs():
    source, target = network(0).eval(), network(1).eval()
    x = torch.randn(2, 3, 4, 4)
    assert not torch.allclose(source(x), target(x))
    load_into(target, {"": source.state_dict()}, "w.pt")
    assert torch.equal(source(x), target(x))


def test_half_precision_and_weights_without_batch_counters_load():
    state = {k: v.half() if v.is_floating_point() else v for k, v in network(0).state_dict().items()}
    del state["1.num_batches_tracked"]
    target = network(1)
    load_into(target, {"": state}, "w.pt")
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, state["0.weight"].float())


def test_what_does_not_fit_is_named_and_nothing_is_loaded():
    state = dict(network(0).state_dict())
    state["4.weight"] = torch.zeros(10, 16)
    state["head.weight"] = torch.zeros(1)
    del state["0.weight"]
    target = network(1)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_into(target, {"": state}, "w.pt")
    line = str(caught.value)
    assert line.startswith("w.pt: the weights do not fit the model")
    assert "missing: 0.weight" in line and "left over: head.weight" in line and "5 of 7 entries that fit" in line
    assert "4.weight is 10x16 where the model has 2x16" in line
    assert equal(target.state_dict(), before)


def test_only_the_first_few_names_are_listed():
    state = {f"layer{i}": torch.zeros(1) for i in range(50)}
    with pytest.raises(WeightsError, match=r"left over: layer0, layer1, layer2 and 47 more"):
        load_into(network(), {"": state}, "w.pt")


def test_integer_weights_are_not_taken_for_real_ones():
    state = dict(network(0).state_dict())
    state["0.weight"] = torch.zeros(4, 3, 3, 3, dtype=torch.int8)
    with pytest.raises(WeightsError, match="0.weight is torch.int8"):
        load_into(network(1), {"": state}, "w.pt")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_nan_and_inf_name_the_tensor(value):
    state = {k: v.clone() for k, v in network(0).state_dict().items()}
    state["1.running_var"][2] = value
    with pytest.raises(NumericalError, match=r"1.running_var holds NaN or Inf \(1 of 4 values\)"):
        load_into(network(1), {"": state}, "w.pt")


def test_the_digest_sees_names_types_shapes_and_bits_but_not_order():
    base = {"a": torch.arange(6.0), "b": torch.tensor(1.0), "c": torch.ones(2, dtype=torch.bfloat16)}
    digest = digest_state_dict(base)
    assert digest == digest_state_dict(dict(reversed(base.items())))
    assert digest == digest_state_dict({**base, "a": torch.arange(12.0)[::2] / 2})  # strided, the same values
    flipped = base["a"].clone()
    flipped.view(torch.int32)[3] ^= 1
    others = [
        {**base, "a": flipped},
        {**base, "a": base["a"].reshape(2, 3)},
        {**base, "a": base["a"].view(torch.int32)},
        {"A": base["a"], "b": base["b"], "c": base["c"]},
        {"a": base["a"], "b": base["b"]},
        {**base, "a": -base["a"] * -1 + 0, "b": torch.tensor(-1.0)},
    ]
    assert len({digest, *map(digest_state_dict, others)}) == len(others) + 1


def test_a_file_tells_the_shape_of_its_network_and_others_tell_none(tmp_path):
    path, state = tmp_path / "net.safetensors", {"a": torch.ones(2)}
    weights.write(state, path, input_shape=(3, 8, 9), n_classes=7)
    assert weights.read_shape(path) == ((3, 8, 9), 7)
    assert torch.equal(weights.read_checkpoint(path)[""]["a"], state["a"])
    weights.write(state, path, input_shape=(3, 8, 9), n_classes=None)
    assert weights.read_shape(path) == (None, None)
    for metadata in (None, {}, {"decomp network": "["}, {"decomp network": "[1]"}, {"decomp network": "7"},
                     {"decomp network": '{"input_shape": [3, -1, 9], "n_classes": 7}'},
                     {"decomp network": '{"input_shape": "389", "n_classes": 7}'},
                     {"decomp network": '{"input_shape": [3, 8], "n_classes": 7}'}):  # fmt: skip
        safetensors.torch.save_file(state, path, metadata=metadata)
        assert weights.read_shape(path) == (None, None), metadata
    path.write_bytes(b"nothing of the kind")
    assert weights.read_shape(path) == weights.read_shape(tmp_path / "missing") == (None, None)
