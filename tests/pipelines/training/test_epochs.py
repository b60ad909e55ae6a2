"""Words about an epoch, and the signs of a training that diverges."""

import pytest

from decomp.pipelines.training.epochs import divergence, epoch_words


def line(loss, accuracy=None, score=None):
    values = {"epoch": 1, "loss": loss, "learning_rate": 0.1}
    if accuracy is not None:
        values |= {"score": accuracy if score is None else score, "validation_accuracy": accuracy}
    return values


def test_an_epoch_is_told_in_words_with_the_interval_of_its_accuracy():
    whole = {
        "epoch": 3, "loss": 0.21432, "learning_rate": 0.008117, "score": 1.0, "validation_accuracy": 0.941,
        "validation_loss": 0.11084, "learning_rate_head": 0.1, "seconds": 12.04,
    }  # fmt: skip
    words = "loss 0.214, validation accuracy 94.1 % (92.5–95.4), validation loss 0.111, 12 s"
    assert epoch_words(whole, 1000) == words
    assert "validation accuracy 94.1 %, " in epoch_words(whole)
    assert epoch_words({"epoch": 0, "loss": None, "validation_divergence": 0.004, "seconds": None}) == (
        "validation divergence 0.004"
    )


@pytest.mark.parametrize(
    "losses, first, sign",
    [
        ([329.0], 0.23, "its mean loss is 329, that of its first step was 0.23"),
        ([2.0], 0.23, None),  # not even ten times
        ([2.4], 0.23, "its mean loss is 2.4, that of its first step was 0.23"),
        ([0.5], 0.004, None),  # far above, and small all the same
        ([1.1], 0.004, "its mean loss is 1.1, that of its first step was 0.004"),
        ([0.2, 0.1, 50.0], 2.3, "its mean loss is 50, that of its first step was 2.3"),
    ],
)
def test_a_loss_far_above_that_of_the_first_step_is_a_sign(losses, first, sign):
    assert divergence([line(loss) for loss in losses], first) == sign


def test_a_high_loss_with_the_best_validation_so_far_is_none():
    assert divergence([line(None, 0.5), line(30.0, 0.6)], 0.2, 1000) is None
    assert divergence([line(None, 0.5), line(30.0, 0.5)], 0.2, 1000) is not None


def test_an_accuracy_that_fell_to_chance_is_a_sign_where_the_loss_did_not_fall_either():
    fallen = [line(None, 0.94), line(2.3, 0.1)]
    assert divergence(fallen, 2.3, 500) == (
        "validation accuracy 10.0 % (7.7–12.9) after 94.0 % (91.6–95.8) before, loss 2.3"
    )
    assert divergence([line(None, 0.94), line(1.1, 0.1)], 2.3, 500) is None  # it learns: only its statistics lag
    assert divergence([line(None, 0.94), line(2.3, 0.5)], 2.3, 500) is None  # halved, but far from lost
    assert divergence([line(None, 0.3), line(2.3, 0.1)], 2.3, 10) is None  # one of ten instead of three
    assert divergence([line(2.3, 0.1)], 2.3, 500) is None  # never better
    assert divergence(fallen, 2.3) is None  # of an unknown number of images


def test_an_earlier_epoch_may_have_been_the_best_one():
    history = [line(None, 0.1), line(1.0, 0.9), line(0.9, 0.8), line(2.3, 0.1)]
    assert divergence(history, 2.3, 500).startswith("validation accuracy 10.0 % (7.7–12.9) after 90.0 %")
