"""Names in checkpoints: prefixes and wrappers in any order and number, leftovers of profilers, the closest reading."""

import pytest
import torch
from torch import nn

from decomp.data.checkpoints import matches, preference, state_dicts


def state():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ModuleDict({"module": nn.Linear(2, 3)}))
    return net.state_dict()


CHANGES = {
    "none": lambda name: name,
    "parallel": lambda name: f"module.{name}",
    "compiled, parallel": lambda name: f"_orig_mod.module.{name}",
    "parallel, compiled, parallel": lambda name: f"module._orig_mod.module.{name}",
    "of Lightning": lambda name: f"model.{name}",
    "of Lightning, compiled": lambda name: f"model._orig_mod.{name}",
    "compiled, of Lightning": lambda name: f"_orig_mod.net.{name}",
    "deep": lambda name: f"a.b.c.{name}",
    "compiled inside": lambda name: name.replace("0.", "0._orig_mod.") if name.startswith("0") else name,
    "parallel inside, wrapped": lambda name: f"model.{name.replace('1.', '1.module.') if name[0] == '1' else name}",
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changed_names_are_read_as_those_of_the_module(change):
    own = state()
    (match,) = matches({CHANGES[change](name): value for name, value in own.items()}, own)
    assert match.fits and set(match.state) == set(own) and not match.outside
    assert all(torch.equal(match.state[name], own[name]) for name in own)


def test_what_profilers_leave_and_counters_of_batches_do_not_matter():
    own = state()
    given = {name: value for name, value in own.items() if "num_batches" not in name}
    given |= {"total_ops": torch.ones(1), "0.total_params": torch.ones(1)}
    (match,) = matches({f"net.{name}": value for name, value in given.items()}, own)
    assert match.fits and set(match.state) == set(own) - {"1.num_batches_tracked"}


def test_entries_of_another_module_are_left_outside():
    own = state()
    given = {f"model.{name}": value for name, value in own.items()} | {
        "loss.weight": torch.ones(3),
        "step": torch.ones(1),
    }
    (match,) = matches(given, own)
    assert match.fits and match.prefix == "model" and match.outside == ["loss.weight", "step"]


def test_of_several_parts_that_fit_averaged_ones_come_last():
    own = state()
    given = {f"{part}.{name}": value for part in ("ema", "zz", "teacher") for name, value in own.items()}
    assert [match.prefix for match in matches(given, own)][0] == "zz" and len(matches(given, own)) == 3
    wider = own | {"0.weight": torch.zeros(8, 3, 3, 3)}
    given = {f"big.{name}": value for name, value in wider.items()} | {f"small.{name}": v for name, v in own.items()}
    assert [match.prefix for match in matches(given, own)] == ["small"]


def test_where_nothing_fits_the_closest_reading_is_told():
    own = state()
    given = {f"module.{name}": value for name, value in own.items() if name != "0.bias"}
    given |= {"module.0.weight": torch.zeros(8, 3, 3, 3), "module.head": torch.ones(1)}
    (match,) = matches(given, own)
    assert (match.missing, match.left_over, match.n_wrong) == (["0.bias"], ["head"], 3)
    assert match.mismatched == ["0.weight is 8x3x3x3 where the model has 4x3x3x3"] and not match.fits
    integers = own | {"0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.int8)}
    assert matches(integers, own)[0].mismatched == ["0.weight is torch.int8"]


def test_state_dicts_are_found_at_any_depth_but_not_in_optimizers():
    a, b = {"w": torch.ones(1)}, {"v": torch.zeros(2), "u": torch.zeros(1)}
    optimizer = {"state": {"w": {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}
    content = {"epoch": 1, "a": a, "deep": {"er": {"b": b}}, "optimizer": optimizer, 3: a, "list": [b]}
    assert list(state_dicts(content)) == []  # names are texts
    del content[3]
    found = dict(state_dicts(content))
    assert list(found) == ["a", "deep.er.b"] and found["deep.er.b"] == b
    assert list(state_dicts(a)) == [("", a)] and list(state_dicts({})) == list(state_dicts([a])) == []


def test_usual_names_come_first_and_averaged_weights_last():
    small, large = {"w": torch.ones(1)}, {"w": torch.ones(1), "v": torch.ones(1)}
    places = {"model_ema": large, "generator": small, "discriminator": large, "model": small, "state_dict": small}
    places |= {"ema.model": large, "": small}
    order = sorted(places, key=lambda place: preference(place, places[place]))
    assert order == ["state_dict", "model", "discriminator", "generator", "", "model_ema", "ema.model"]
