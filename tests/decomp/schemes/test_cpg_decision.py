"""Decision after a fine-tuning, and the tolerance of a goal."""

import pytest

from decomp.schemes.cpg_decision import COMMIT, GROW, PRUNE, Finetuned, Goal, can_grow, decide, standard_error

GOAL = Goal(0.9, 0.01)


@pytest.mark.parametrize(
    ("validation", "training", "own", "width", "gate", "expected"),
    [
        (0.89, 1.0, 0.5, 1.0, 0.0, (PRUNE, False)),  # within the tolerance
        (0.92, 1.0, 0.0, 1.0, 0.0, (COMMIT, False)),
        (0.80, 1.0, 0.5, 1.0, 0.0, (GROW, False)),
        (0.80, 1.0, 0.0, 1.0, 0.0, (GROW, False)),
        (0.80, 1.0, 0.5, 1.5, 0.0, (PRUNE, True)),
        (0.80, 1.0, 0.0, 1.5, 0.0, (COMMIT, True)),
        (0.92, 0.9, 0.5, 1.0, 0.95, (GROW, False)),
        # a goal that is met with a training accuracy below the gate must not grow for ever
        (0.92, 0.9, 0.5, 1.5, 0.95, (PRUNE, False)),
    ],
)
def test_what_follows_a_fine_tuning(validation, training, own, width, gate, expected):
    assert decide(Finetuned(validation, training, own, width), GOAL, gate, 0.5, 1.5) == expected


def test_growth_ends_also_where_its_steps_never_hit_the_largest_width():
    width, visited = 1.0, []
    while can_grow(width, 0.4, 2.0):
        width = round(width + 0.4, 6)
        visited.append(width)
    assert visited == [1.4, 1.8]
    assert can_grow(1.0, 0.5, 1.5) and not can_grow(1.5, 0.5, 1.5)


def test_the_tolerance_is_one_standard_error_and_never_zero():
    assert standard_error(0.77, 500) == pytest.approx(0.0188, abs=1e-4)
    assert 0 < standard_error(1.0, 50) < 0.02
    assert Goal(0.9).least == 0.9 and Goal(0.9, 0.02).least == pytest.approx(0.88)
