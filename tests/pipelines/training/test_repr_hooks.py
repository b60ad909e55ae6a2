"""RePr in the training loop: events with accuracies, resume in every state, the on/off map."""

import pytest
import torch
from torch import nn

from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.training.hooks import Hooks
from decomp.pipelines.training.recipe import Recipe
from decomp.pipelines.training.repr_hooks import NAME, ReprHooks, event_words, flat, on_off_rows
from decomp.schemes.repr_training import RePr
from tests.pipelines.training.small_training import Blobs, Interrupted, assert_same, stop_after, train

EPOCHS = 7


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def accuracy(net, data):
    with torch.no_grad():
        return float((net(data.images).argmax(1) == data.labels).float().mean())


def fitted(data, optimizer="sgd", hooks=(), seed=0, reporter=None, **options):
    module = network(seed)
    scheme = RePr(module, data.images.shape[1:], epochs=EPOCHS, s1=1, s2=2, drop=0.4, first=True)
    mine = ReprHooks(scheme, lambda net: accuracy(net, data), len(data.images), reporter)

    def validate(net):
        return {"score": accuracy(net, data), "validation_accuracy": accuracy(net, data)}

    recipe = Recipe(
        epochs=EPOCHS, learning_rate=0.01, batch_size=16, schedule="constant", optimizer=optimizer, weight_decay=1e-3
    )
    hooks = [Hooks.of(mine, NAME), *hooks]
    return train(module, recipe=recipe, validate=validate, hooks=hooks, **options), mine


@pytest.mark.parametrize(
    "optimizer, killed", [("sgd", 1), ("sgd", 2), ("sgd", 3), ("sgd", 4), ("adam", 2), ("adam", 3)]
)
def test_a_training_killed_before_and_inside_the_dropped_phase_resumes_bit_for_bit(tmp_path, optimizer, killed):
    data, checkpoint = Blobs(), tmp_path / "last.pt"
    whole, mine = fitted(data, optimizer)
    assert [(e["event"], e["epoch"]) for e in mine.scheme.events] == [
        ("drop", 1), ("restore", 3), ("drop", 4), ("restore", 6),
    ]  # fmt: skip
    assert mine.changed_after() == 6  # what the network could do before an event does not count for its divergence
    with pytest.raises(Interrupted):
        fitted(data, optimizer, [stop_after(killed)], checkpoint=checkpoint)
    resumed, again = fitted(data, optimizer, seed=5, checkpoint=checkpoint)
    assert_same(whole.module.state_dict(), resumed.module.state_dict())
    assert_same(whole.best_state, resumed.best_state)
    assert again.scheme.events == mine.scheme.events and again.values() == mine.values()


def test_an_event_tells_the_accuracy_just_before_and_just_after_it():
    data = Blobs()
    shown = []
    reporter = Reporter(quiet=True)
    reporter.step = lambda message, **fields: shown.append((message, fields))
    training, mine = fitted(data, reporter=reporter)
    accuracies = {line["epoch"]: line["validation_accuracy"] for line in training.history}
    for event in mine.scheme.events:
        assert event["accuracy_before"] == accuracies[event["epoch"]]
        assert (event["accuracy_after"] == event["accuracy_before"]) or event["event"] == "drop"
    words = [message for message, _ in shown if "filters" in message]
    assert words == [event_words(event, len(data.images)) for event in mine.scheme.events]
    assert words[0].startswith("epoch 2: 4 filters dropped (") and "mean overlap" in words[0]
    assert words[1].startswith("epoch 4: 4 filters back (") and "largest |cos|" in words[1]
    assert "validation accuracy" in words[1] and "→" in words[1]


def test_values_of_events_have_their_kind_and_epoch():
    _, mine = fitted(Blobs())
    values = {(name, epoch): value for name, value, epoch in mine.values()}
    assert values["repr/drop/filters", 1] == 4.0 == values["repr/restore/filters", 3]
    assert values["repr/restore/max_cosine", 6] < 1e-5
    assert flat(mine.scheme.events[0])["event"] == "drop"


EVENTS = [
    {"event": "drop", "epoch": 2, "dropped": {"a": [1], "b": [0, 2]}},
    {"event": "restore", "epoch": 4, "dropped": {"a": [1], "b": [0, 2]}},
    {"event": "drop", "epoch": 5, "dropped": {"b": [1]}},
]


def test_the_map_has_a_row_for_each_filter_and_a_column_for_each_drop():
    rows = on_off_rows({"a": 2, "b": 3}, EVENTS)
    assert [list(row.values()) for row in rows] == [
        ["a", 0, 1, 1], ["a", 1, 0, 1], ["b", 0, 0, 1], ["b", 1, 1, 0], ["b", 2, 0, 1],
    ]  # fmt: skip
    assert list(rows[0]) == ["layer", "filter", "epoch 2", "epoch 5"]
