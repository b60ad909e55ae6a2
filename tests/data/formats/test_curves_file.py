"""Curves file: a survey read back bit by bit, or the reason why it cannot be used."""

import numpy as np
import pytest
import torch

from decomp.allocation.layer_curves import LayerCurves
from decomp.data.formats.curves_file import Survey, read_curves, write_curves
from decomp.errors import FileError


@pytest.fixture
def survey():
    rng = np.random.default_rng(0)
    return Survey(
        own={"a.conv": LayerCurves(prune=rng.random(9), channel=rng.random(5)), "fc": LayerCurves()},
        output={"a.conv": LayerCurves(prune=rng.random(9)), "fc": LayerCurves(spatial=rng.random(3))},
        metrics={"a.conv": torch.from_numpy(rng.random((4, 4)))},
    )


@pytest.fixture
def path(tmp_path, survey):
    write_curves(tmp_path / "curves.npz", "points", survey)
    return tmp_path / "curves.npz"


def test_a_survey_is_read_back_bit_by_bit(path, survey):
    again = read_curves(path, "points", ["a.conv", "fc"])
    for part in ("own", "output"):
        for layer, curves in getattr(survey, part).items():
            for step in ("prune", "spatial", "channel"):
                written, read = getattr(curves, step), getattr(getattr(again, part)[layer], step)
                assert (written is None) == (read is None) and (read is None or np.array_equal(written, read))
    assert list(again.metrics) == ["a.conv"] and torch.equal(again.metrics["a.conv"], survey.metrics["a.conv"])


def test_only_the_layers_of_the_network_are_read(path):
    again = read_curves(path, "points", ["fc", "new"])
    assert list(again.own) == list(again.output) == ["fc", "new"] and again.metrics == {}
    assert again.own["new"] == LayerCurves()


def test_a_survey_of_other_points_is_not_used(path):
    assert read_curves(path, "other points", ["a.conv"]) is None
    assert read_curves(path, None, ["a.conv"]).own["a.conv"].prune is not None  # not compared


def rewritten(path, save=np.savez, **changes):
    with np.load(path) as data:
        arrays = {**dict(data), **changes}
    with open(path, "wb") as file:
        save(file, **arrays)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b"PK\x03\x04 not an archive"), "zip"),
        (lambda path: path.write_bytes(b"another file"), "it is no zip archive: cut short, or another file"),
        (lambda path: rewritten(path, **{"own/a.conv/prune": np.zeros(9)}), "does not match the digest in it"),
        (lambda path: rewritten(path, np.savez_compressed), "compressed"),
        (lambda path: rewritten(path, extra=np.array([{}], dtype=object)), "allow_pickle"),
    ],
    ids=["missing", "foreign", "other", "edited", "compressed", "objects"],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(path, damage, reason):
    damage(path)
    with pytest.raises(FileError, match=reason) as caught:
        read_curves(path, "points", ["a.conv"])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
