"""Accuracy and closeness on images: the columns without images (all others are tested with `evaluate`)."""

import torch

from decomp.pipelines.measure import tested
from tests.pipelines.small_runs import SHAPE, make_run, quiet


def test_without_any_images_all_columns_are_empty(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", n_images=10)
    run.frozen.unlink()
    monkeypatch.setattr(tested, "open_images", lambda run: type("Source", (), {"test": None, "name": "none"}))
    found = tested.measure_on_images(run, {"original": None}, SHAPE, torch.device("cpu"), quiet())
    empty = {"top1": None, "top5": None, "agreement": None, "divergence": None, "lost": None, "outputs": {}}
    assert found.columns == {"original": empty} and tuple(empty) == tested.ON_IMAGES
    assert found.facts == {"data": "digits", "n_images": 0, "images": "", "test_digest": None} and found.notes == []
