"""Counts of correct images: by class, and against the original, whatever the batches."""

import pytest
import torch

from decomp.pipelines.measure.class_counts import ClassCounts

LABELS = [0, 2, 2, 0, 4, 2]
ORIGINAL = [True, True, False, True, False, True]
OTHER = [True, False, True, False, False, True]


@pytest.mark.parametrize("size", [1, 2, 6])
def test_the_counts_are_those_of_a_loop_over_the_images_for_every_batch_size(size):
    counts = ClassCounts()
    for start in range(0, 6, size):
        part = slice(start, start + size)
        hits = {"original": torch.tensor(ORIGINAL[part]), "decomposed": torch.tensor(OTHER[part])}
        counts.add(torch.tensor(LABELS[part]), hits)
    assert counts.to_json() == {
        "names": None,
        "images": [2, 0, 3, 0, 1],
        "correct": {"original": [2, 0, 2, 0, 0], "decomposed": [1, 0, 2, 0, 0]},
        "changed": {"original": {"lost": 0, "won": 0}, "decomposed": {"lost": 2, "won": 1}},
    }


def test_every_named_class_has_a_count_also_without_an_image():
    counts = ClassCounts(("cat", "dog", "owl"))
    counts.add(torch.tensor([0]), {"original": torch.tensor([True])})
    assert counts.to_json()["images"] == [1, 0, 0] and counts.to_json()["names"] == ["cat", "dog", "owl"]


def test_nothing_counted_is_empty():
    assert ClassCounts(("a",)).to_json() == {}


def test_counts_of_two_parts_add_up_also_where_one_has_fewer_classes():
    parts = []
    for part in (slice(0, 4), slice(4, 6), slice(6, 6)):
        parts.append(ClassCounts())
        if LABELS[part]:
            hits = {"original": torch.tensor(ORIGINAL[part]), "decomposed": torch.tensor(OTHER[part])}
            parts[-1].add(torch.tensor(LABELS[part]), hits)
    last = parts.pop()
    for counts in parts:
        last.merge(counts)
    assert last.to_json() == {
        "names": None,
        "images": [2, 0, 3, 0, 1],
        "correct": {"original": [2, 0, 2, 0, 0], "decomposed": [1, 0, 2, 0, 0]},
        "changed": {"original": {"lost": 0, "won": 0}, "decomposed": {"lost": 2, "won": 1}},
    }
