"""Sanity of the original: its accuracy with interval, labels in another order, confidence, values that never change."""

import pytest
import torch
from torch.nn.functional import one_hot

from decomp.pipelines.measure import sanity
from decomp.pipelines.measure.intervals import wilson


def checked(output, labels=None, names=None, batch=7):
    collector = sanity.Sanity(output.shape[1] > 1)
    for part in output.split(batch):
        collector.add(part)
    return collector.facts(labels, names)


def scores(classes, n_classes, sure=8.0):
    return sure * one_hot(classes, n_classes).float()


LABELS = torch.arange(200) % 10


def test_the_accuracy_is_the_share_of_right_top_classes_with_its_interval():
    top = torch.where(torch.arange(200) < 150, LABELS, (LABELS + 1) % 10)
    facts = checked(scores(top, 10), LABELS)
    assert facts["accuracy"] == 0.75 and facts["interval"] == list(wilson(150, 200)) and facts["chance"] == 0.1
    assert not facts["near_chance"] and facts["order"] is None
    (line,) = sanity.lines(facts)
    assert "accuracy of the original on the 200 calibration images: 75.0 % (95 % interval 68.6 to 80.5)" in line


@pytest.mark.parametrize(("n_right", "near"), [(20, True), (64, True), (65, False), (180, False)])
def test_near_chance_is_a_quarter_of_the_way_from_the_most_frequent_class(n_right, near):
    top = torch.where(torch.arange(200) < n_right, LABELS, (LABELS + 1 + torch.arange(200) // 10 % 9) % 10)
    facts = checked(scores(top, 10), LABELS)
    assert facts["accuracy"] == n_right / 200 and facts["near_chance"] == near
    assert any("near chance; likely causes: other mean and std" in line for line in sanity.lines(facts)) == near


def test_always_the_most_frequent_of_two_classes_is_near_chance():
    labels = (torch.arange(100) < 15).long()
    assert checked(scores(torch.zeros(100, dtype=torch.int64), 2), labels)["near_chance"]
    assert not checked(scores(labels, 2), labels)["near_chance"]


@pytest.mark.parametrize("n_classes", [10, 12])
def test_labels_in_another_order_are_found_and_told(n_classes):
    order = torch.tensor([3, 1, 0, 2, 5, 4, 9, 8, 7, 6])
    top = order[LABELS]
    top[::9] = 2
    facts = checked(scores(top, n_classes), LABELS)
    assert facts["order"]["classes"] == order.tolist() and facts["order"]["accuracy"] == pytest.approx(0.9, abs=0.05)
    warning = sanity.lines(facts)[1]
    assert "in another order than the network's classes: reordered, " in warning and "0→3, 2→0, 3→2" in warning
    assert "00, 01" not in warning


def test_folders_numbered_in_alphabetical_order_are_named_as_the_cause():
    names = sorted(map(str, range(12)))
    labels = torch.arange(240) % 12
    facts = checked(scores(torch.tensor([int(name) for name in names])[labels], 12), labels, names)
    assert facts["near_chance"] and "name them 00, 01, 02" in sanity.lines(facts)[1]
    assert not sanity.numbered_out_of_order(["0", "1", "2"]) and not sanity.numbered_out_of_order(["10", "a"])


def test_no_order_is_found_in_predictions_without_meaning():
    generator = torch.Generator().manual_seed(0)
    for n_images in (10, 40, 400):
        labels, top = (torch.randint(0, 10, (n_images,), generator=generator) for _ in range(2))
        assert sanity.best_order(labels, top) is None


@pytest.mark.parametrize(
    ("top", "words"),
    [
        (
            torch.full((200,), 8),
            "all images have one label, 0, and get one other class; the label of an image in a folder",
        ),
        (1 + LABELS % 4, "all images have one label, 0, and mostly get other classes; the label of an image in a fold"),
    ],
)
def test_images_of_one_class_do_not_tell_the_order_of_the_labels(top, words):
    """One label can be renamed to whatever the network says of it."""
    facts = checked(scores(top, 10), torch.zeros(200, dtype=torch.int64))
    assert facts["order"] is None and facts["n_labels"] == 1
    said, warning = sanity.lines(facts)
    assert warning.startswith(f"warning: {words}") and "reordered" not in warning


def test_images_of_one_class_that_are_right_are_not_near_chance():
    top = torch.where(torch.arange(200) < 150, 0, LABELS)
    facts = checked(scores(top, 10), torch.zeros(200, dtype=torch.int64))
    assert facts["chance"] == 1 and not facts["near_chance"] and len(sanity.lines(facts)) == 1


def test_one_class_for_images_of_several_is_said_to_be_one():
    facts = checked(scores(torch.full((200,), 8), 10), LABELS)
    assert facts["order"] is None
    warning = sanity.lines(facts)[1]
    assert warning.startswith("warning: all images get one class; likely causes: other mean and std than in training,")
    labels = (torch.arange(200) < 20).long()  # 8 for nine of ten: no order, though most would be right with it
    assert checked(scores(torch.full((200,), 8), 10), labels)["order"] is None


def test_two_exchanged_classes_are_found_though_the_accuracy_is_far_from_chance():
    top = LABELS.clone()
    top[LABELS == 3], top[LABELS == 7] = 7, 3
    facts = checked(scores(top, 1000), LABELS)
    assert facts["accuracy"] == 0.8 and not facts["near_chance"] and facts["order"]["accuracy"] == 1
    assert "label→class 3→7, 7→3;" in sanity.lines(facts)[1]
    assert checked(scores(top[:19], 10), LABELS[:19])["order"] is None


def test_labels_beyond_the_outputs_are_told():
    facts = checked(scores(LABELS % 4, 4), LABELS * 3)
    assert "the labels go up to 27, the network has 4 outputs" in sanity.lines(facts)[1]


def test_without_labels_confidence_and_the_number_of_top_classes():
    facts = checked(scores(LABELS % 6, 10, sure=2.0))
    assert facts["n_top_classes"] == 6 and facts["confidence"] == pytest.approx(float(torch.e**2 / (torch.e**2 + 9)))
    (line,) = sanity.lines(facts)
    assert "mean probability of its top class 45.1 %, 6 of 10 classes are a top class" in line
    assert checked(torch.full((20, 4), 0.1) + 0.6 * one_hot(torch.arange(20) % 4, 4))["confidence"] == pytest.approx(
        0.7
    )


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (scores(torch.full((30,), 4), 10), "all images get one class"),
        (scores(LABELS, 10, sure=0.1), "does not decide for any class"),
    ],
)
def test_without_labels_a_network_that_decides_nothing_is_warned_of(output, words):
    warning = sanity.lines(checked(output))[1]
    assert warning.startswith("warning") and words in warning and "order" not in warning


def test_values_are_told_by_range_and_deviation_and_constant_ones_are_warned_of():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, 1, generator=generator)
    collector = sanity.Sanity(False)
    for part in values.split(20):
        collector.add({"depth": part[:, :, None, None].expand(-1, 1, 3, 3), "bias": torch.full((len(part), 4), 2.0)})
    facts = collector.facts(None)["values"]
    assert facts["depth"]["low"] == float(values.min()) and facts["depth"]["high"] == float(values.max())
    assert facts["depth"]["deviation"] == pytest.approx(float(values.std(correction=0)))
    said = sanity.lines({"values": facts})
    assert len(said) == 3 and said[2].startswith("warning: bias is the same for all images")
    assert list(checked(values)["values"]) == ["output"]
