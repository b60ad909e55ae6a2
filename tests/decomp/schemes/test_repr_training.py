import copy
import io

import pytest
import torch
from small_graphs import INPUT, make
from torch import nn

import decomp
from decomp.criteria.filters import filter_overlap
from decomp.errors import UsageError
from decomp.schemes.repr_training import RePr

SHAPE = (1, 8, 8)
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3),
}


def network(width=8, activation=nn.ReLU):
    torch.manual_seed(0)
    layers = []
    for n_in in (1, width, width):
        layers += [nn.Conv2d(n_in, width, 3, padding=1), nn.BatchNorm2d(width), activation()]
    return nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(4 * width, 10))


def images(seed=0, n=16, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=generator), torch.randint(0, 5, (n,), generator=generator)


def run(model, scheme, optimizer, epochs, steps=2, clip=None, shape=SHAPE):
    """Epochs of a plain loop, whose images follow from the epoch alone."""
    for epoch in epochs:
        scheme.before_epoch(epoch, optimizer)
        for step in range(steps):
            x, y = images(100 * epoch + step, shape=shape)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.train()(x), y).backward()
            scheme.after_backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheme.after_step()
    return model


def begun(kind="sgd", epochs=2, width=8, total=8, **settings):
    """A model, its scheme of cycles of 2 + 2 epochs, and its optimizer, after some epochs."""
    model = network(width)
    scheme = RePr(model, SHAPE, **{"epochs": total, "s1": 2, "s2": 2, "drop": 0.4, **settings})
    optimizer = OPTIMIZERS[kind](model.parameters())
    run(model, scheme, optimizer, range(epochs))
    return model, scheme, optimizer


def logits(model, seed=9):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(images(seed)[0])


def entries_of_dropped(model, event):
    """Every number that belongs to a dropped filter of the chain, in one vector."""
    parts, readers = [], {"3": "6", "6": "11"}
    tensors = model.state_dict()
    for path, filters in event["dropped"].items():
        norm = str(int(path) + 1)
        names = [f"{path}.weight", f"{path}.bias"]
        names += [f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
        parts += [tensors[name][filters].flatten() for name in names]
        reader = tensors[f"{readers[path]}.weight"]
        columns = filters if path == "3" else [4 * f + i for f in filters for i in range(4)]
        parts.append(reader[:, columns].flatten())
    return torch.cat(parts).clone()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_nothing_of_a_dropped_filter_moves_under_momentum_weight_decay_and_adam(kind):
    model, scheme, optimizer = begun(kind)
    event = scheme.before_epoch(2, optimizer)
    before, kept = entries_of_dropped(model, event), model[3].weight.clone()
    assert scheme.state == "sub" and set(event["dropped"]) == {"3", "6"}
    run(model, scheme, optimizer, [2, 3], steps=4, clip=0.5)
    assert torch.equal(entries_of_dropped(model, event), before)
    assert (before[before != 1] == 0).all()
    assert not torch.equal(model[3].weight, kept)


def test_dropped_filters_are_absent_behind_an_activation_that_is_not_zero_at_zero():
    model = network(activation=nn.Sigmoid)
    scheme = RePr(model, SHAPE, epochs=8, s1=2, s2=2, drop=0.4)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    run(model, scheme, optimizer, range(2))
    event = scheme.before_epoch(2, optimizer)
    wanted = logits(model)
    with torch.no_grad():
        for path, filters in event["dropped"].items():
            model[int(path)].bias[filters] = 7.0
            model[int(path) + 1].bias[filters] = -3.0
    assert torch.equal(logits(model), wanted)


def test_the_function_does_not_change_when_filters_come_back_read_with_zero():
    model, scheme, optimizer = begun(epochs=4)
    before = logits(model)
    event = scheme.before_epoch(4, optimizer)
    assert event["event"] == "restore" and scheme.state == "full"
    assert torch.equal(logits(model), before)
    path, filters = next(iter(event["dropped"].items()))
    assert (model[int(path)].weight[filters].flatten(1).norm(dim=1) > 0.1).all()


@pytest.mark.parametrize("next_slice", ["keep", "init"])
def test_the_following_layer_gets_its_old_weights_or_new_ones_where_asked(next_slice):
    model, scheme, optimizer = begun(next_slice=next_slice)
    old = model[11].weight.detach().clone()
    event = scheme.before_epoch(2, optimizer)
    columns = [4 * f + i for f in event["dropped"]["6"] for i in range(4)]
    assert (model[11].weight[:, columns] == 0).all()
    run(model, scheme, optimizer, [2, 3])
    before = logits(model)
    scheme.before_epoch(4, optimizer)
    now = model[11].weight[:, columns]
    assert torch.equal(now, old[:, columns]) == (next_slice == "keep")
    assert (now != 0).all() and now.abs().max() <= (1.0 if next_slice == "keep" else 32**-0.5)
    assert not torch.allclose(logits(model), before, atol=1e-3)


@pytest.mark.parametrize("next_slice", ["zero", "keep", "init"])
def test_filters_come_back_orthogonal_to_their_old_values_the_kept_ones_and_each_other(next_slice):
    model, scheme, optimizer = begun(next_slice=next_slice, drop=0.5)
    old = {path: model[int(path)].weight.detach().flatten(1).clone() for path in ("3", "6")}
    run(model, scheme, optimizer, [2, 3])
    event = scheme.before_epoch(4, optimizer)
    assert len(event["dropped"]) == 2  # so that slices of new filters are columns of dropped channels
    for path, filters in event["dropped"].items():
        rows = model[int(path)].weight.detach().flatten(1).double()
        kept = [f for f in range(8) if f not in filters]
        others = torch.cat([old[path][filters].double(), rows[kept]])
        unit = nn.functional.normalize(rows[filters])
        assert (unit @ nn.functional.normalize(others).T).abs().max() < 1e-5
        assert (unit @ unit.T).fill_diagonal_(0).abs().max() < 1e-5
        norms = rows.norm(dim=1)
        assert torch.allclose(norms[filters], norms[kept].quantile(0.5), rtol=1e-5)
    assert 0 < event["max_cosine"] < 1e-5 and event["max_cosine_any"] < 1e-5


def test_clipping_breaks_the_orthogonality_and_the_report_says_so():
    model, scheme, optimizer = begun(epochs=4, scale="clip")
    assert scheme.before_epoch(4, optimizer)["max_cosine"] > 0.01
    model, scheme, optimizer = begun(epochs=4, method="qr")
    assert scheme.before_epoch(4, optimizer)["max_cosine_any"] > 0.01


def test_filters_come_back_with_fresh_normalisations_and_no_memory_of_the_optimizer():
    model, scheme, optimizer = begun("adam", epochs=4)
    event = scheme.before_epoch(4, optimizer)
    for path, filters in event["dropped"].items():
        norm = model[int(path) + 1]
        assert model[int(path)].bias[filters].abs().max() == 0 == norm.bias[filters].abs().max()
        assert (norm.weight[filters] == 1).all() and (norm.running_var[filters] == 1).all()
        assert (norm.running_mean[filters] == 0).all()
        for moment in ("exp_avg", "exp_avg_sq"):
            assert (optimizer.state[model[int(path)].weight][moment][filters] == 0).all()
            assert (optimizer.state[norm.weight][moment][filters] == 0).all()
    run(model, scheme, optimizer, [4])
    assert (model[4].running_var != 1).all()


def test_the_most_overlapping_filters_of_all_layers_together_are_dropped():
    model, scheme, optimizer = begun()
    scores = torch.cat([filter_overlap(model[i].weight) for i in (3, 6)])
    wanted = sorted(scores.argsort(descending=True)[:6].tolist())
    dropped = scheme.before_epoch(2, optimizer)["dropped"]
    assert sorted([*dropped.get("3", []), *(8 + f for f in dropped.get("6", []))]) == wanted
    assert scheme.filters == {"3": 8, "6": 8} and scheme.left_out == {"0": "reads the image"}


def test_the_report_of_an_event_has_the_overlaps_and_the_accuracies_around_it():
    model, scheme, optimizer = begun(next_slice="keep")
    before = torch.cat([filter_overlap(model[i].weight) for i in (3, 6)]).mean()
    seen = []
    event = scheme.before_epoch(2, optimizer, judge=lambda: seen.append(logits(model)) or float(len(seen)))
    assert event["overlap_before"] == pytest.approx(float(before)) and event["overlap_after"] < before
    assert (event["accuracy_before"], event["accuracy_after"]) == (1.0, 2.0)
    assert not torch.equal(*seen) and torch.equal(seen[1], logits(model))
    assert event == scheme.events[-1] and (event["epoch"], event["cycle"]) == (2, 0)
    run(model, scheme, optimizer, [2, 3])
    after = scheme.before_epoch(4, optimizer)
    assert after["dropped"] == event["dropped"] and after["overlap_after"] < before
    assert scheme.before_epoch(5, optimizer) is None


@pytest.mark.parametrize("epochs, s1, s2", [(5, 2, 2), (6, 1, 1), (7, 2, 3), (8, 1, 6), (9, 2, 2), (10, 3, 1)])
def test_every_training_ends_with_all_filters_live(epochs, s1, s2):
    model, scheme, optimizer = begun(epochs=epochs, total=epochs, s1=s1, s2=s2)
    assert scheme.state == "full" and [event["event"] for event in scheme.events][-1] == "restore"
    for layer in (3, 6):
        assert (model[layer].weight.flatten(1).norm(dim=1) > 0.1).all()
        assert (model[layer + 1].weight != 0).all()
    assert (model[6].weight.abs().amax((0, 2, 3)) > 0).all() and (model[11].weight.abs().amax(0) > 0).all()


def test_a_training_that_is_ended_early_gets_its_filters_back():
    model, scheme, optimizer = begun(epochs=3)
    assert scheme.state == "sub"
    before = logits(model)
    assert scheme.finish(optimizer)["event"] == "restore" and scheme.finish(optimizer) is None
    assert scheme.state == "full" and torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("killed_after", range(1, 9))
def test_a_training_resumed_after_any_epoch_ends_bit_for_bit_alike(kind, killed_after):
    whole, scheme, _ = begun(kind, epochs=9, total=9)
    model, first, optimizer = begun(kind, epochs=killed_after, total=9)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), first.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    again = network()
    with torch.no_grad():
        again[3].weight.add_(1)
    resumed = RePr(again, SHAPE, epochs=9, s1=2, s2=2, drop=0.4)
    optimizer = OPTIMIZERS[kind](again.parameters())
    for part, state in zip((again, optimizer, resumed), states):
        part.load_state_dict(state)
    run(again, resumed, optimizer, range(killed_after, 9))
    assert all(torch.equal(whole.state_dict()[name], value) for name, value in again.state_dict().items())
    assert resumed.events == scheme.events and len(scheme.events) == 4


@pytest.mark.parametrize("graph", ["residual", "dense", "depthwise separable", "squeeze-excite", "u-net", "twice"])
def test_networks_that_are_no_chains_keep_their_function_when_filters_come_back(graph):
    model = make(graph).train()
    scheme = RePr(model, INPUT, epochs=8, s1=2, s2=2, drop=0.4, coupled=True, first=True)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    run(model, scheme, optimizer, range(4), steps=1, shape=INPUT)
    x = images(5, shape=INPUT)[0]
    with torch.no_grad():
        before = copy.deepcopy(model).eval()(x)
        event = scheme.before_epoch(4, optimizer)
        assert (copy.deepcopy(model).eval()(x) - before).abs().max() <= 1e-6 * before.abs().max()
    assert event["dropped"] and event["max_cosine"] < 1e-5
    run(model, scheme, optimizer, range(5, 8), steps=1, shape=INPUT)
    assert scheme.state == "full"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"drop": 0.05}, "drop: must drop at least one of 16 filters, got 0.05; raise it."),
        ({"min_keep": 0.99}, "min_keep: must leave a filter that can be dropped, got 0.99; lower it."),
        ({"metric": "cosine"}, "metric: must be one of absolute, signed, got 'cosine'"),
        ({"s1": 7}, "epochs: must be at least 10 for one cycle (s1 7 + s2 2) and a full epoch after it, got 8; lower"),
    ],
)
def test_settings_that_leave_nothing_to_do_are_refused(settings, message):
    with pytest.raises(UsageError) as error:
        begun(epochs=0, **settings)
    assert str(error.value).startswith(message)


def test_a_network_without_such_filters_is_refused_with_the_reason():
    model = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten(), nn.Linear(4, 10))
    with pytest.raises(UsageError, match=r"can be dropped \(0 reads the image\); give first=True\."):
        RePr(model, SHAPE, epochs=40)
    assert RePr(model, SHAPE, epochs=40, first=True).filters == {"0": 4}
    with pytest.raises(UsageError, match="network: must have a convolution whose filters.*; train another"):
        RePr(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), SHAPE, epochs=40)


def test_a_state_of_other_settings_or_of_another_network_is_refused():
    _, scheme, _ = begun()
    for other, message in (
        (begun(epochs=0, s2=1)[1], "RePr: the saved training has s2 2, got 1; give the same"),
        (begun(epochs=0, width=10)[1], "RePr: the saved training has 3 8, got 10; give the same"),
    ):
        with pytest.raises(UsageError, match=message):
            other.load_state_dict(scheme.state_dict())


def test_the_scheme_is_offered_by_the_package():
    assert decomp.schemes.RePr is RePr
    with pytest.raises(AttributeError, match="no attribute 'Repr'"):
        _ = decomp.schemes.Repr
