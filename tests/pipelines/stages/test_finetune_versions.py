"""Fine-tunings that an older version began: continued as they were, or refused in one line."""

import pytest

from decomp.errors import FileError
from decomp.pipelines.run.replacement import beside
from decomp.pipelines.stages import finetune as stage
from decomp.pipelines.stages.finetune import finetune
from decomp.pipelines.training import outputs
from tests.pipelines.small_runs import make_run, quiet


class Killed(BaseException):
    """The process ends here."""


def die(*arguments):
    raise Killed


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def tune(run, **options):
    return finetune(run, batch_size=64, reporter=quiet(), **options)


def begun_by_an_older_version(run, **options):
    """An interrupted training whose checkpoint does not say how repeated images are augmented."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs.NetworkWriter, "__call__", die)
        patch.setattr(stage, "_repeated_images", lambda *_, **__: {})
        with pytest.raises(Killed):
            tune(run, **options)


def test_a_training_that_augmented_repeated_images_alike_is_refused_and_begun_again(run):
    options = {"labels": "none", "n_images": 200, "epochs": 1}
    begun_by_an_older_version(run, **options)
    rule = "checkpoint.pt: was begun by a version that augmented an image alike each time .*; give --redo to train anew"
    with pytest.raises(FileError, match=rule):
        tune(run, **options)
    assert tune(run, **options, redo=True).facts["epochs"] == 1


def test_a_training_that_repeats_no_image_goes_on_whichever_version_began_it(run):
    begun_by_an_older_version(run, labels="train", epochs=1)
    assert tune(run, labels="train", epochs=1).facts["epochs"] == 1


def test_an_older_training_beside_a_finished_one_is_begun_again(run):
    options = {"labels": "none", "n_images": 200, "epochs": 1}
    tune(run, **options)
    begun_by_an_older_version(run, **options, redo=True)
    assert (beside(run.finetune_dir) / "checkpoint.pt").is_file()
    assert tune(run, **options, redo=True).facts["epochs"] == 1 and not beside(run.finetune_dir).exists()
