"""The record beside trained weights: the command that repeats it, and the comparison with an earlier one."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from decomp.data.formats.digests import digest_file
from decomp.errors import UsageError
from decomp.pipelines.console.options import TrainOptions
from decomp.pipelines.training.recipe import Recipe
from decomp.pipelines.training.training_record import Place, finished_record, identity, record_options, write_record

RECIPE = Recipe(epochs=40, learning_rate=0.1)
TRAINING = SimpleNamespace(module=torch.nn.Linear(2, 3), history=[{"validation_accuracy": 0.5}])


def options(**more):
    return TrainOptions(model="zoo:a", data="digits", epochs=40, learning_rate=0.1, batch_size=128, **more)


def written(folder, given):
    place = Place(Path(folder, "w.safetensors"), "remove it")
    place.weights.write_bytes(b"weights")
    return place, write_record(place, given, RECIPE, {"test": 0.5}, {"test": 10}, TRAINING, {"steps": 7})


def test_a_standard_training_is_recorded_as_before_and_a_scheme_with_all_of_its_settings(tmp_path):
    plain, scheme = options(), options(scheme="repr", s1=5, first=True, schedule="constant")
    assert identity(plain) == {"model": "zoo:a", "data": "digits", "label_smoothing": 0.1}
    assert identity(scheme)["scheme"]["name"] == "repr" and identity(scheme)["scheme"]["s2"] == 10
    assert record_options(plain, RECIPE)["epochs"] == 40
    assert record_options(plain, RECIPE) == record_options(options(precision="auto"), RECIPE)
    assert identity(options(precision="bfloat16"))["precision"] == "bfloat16"
    record = written(tmp_path, options(precision="bfloat16"))[1]
    assert record["command"].endswith("--seed 0 --precision bfloat16 --out w.safetensors")
    record = written(tmp_path, scheme)[1]
    assert record["command"].endswith("--seed 0 --schedule constant --scheme repr --s1 5 --first --out w.safetensors")
    assert record["steps"] == 7 and record["parameters"] == 9
    assert record["sha256"] == digest_file(tmp_path / "w.safetensors")


def test_an_earlier_record_is_taken_for_the_same_options_and_refused_for_others(tmp_path):
    place, record = written(tmp_path, options())
    assert finished_record(place, record_options(options(), RECIPE))["sha256"] == record["sha256"]
    with pytest.raises(UsageError, match="must not name weights that were trained otherwise"):
        finished_record(place, record_options(options(scheme="repr"), RECIPE))
    place.weights.unlink()
    assert finished_record(place, record_options(options(), RECIPE)) is None
