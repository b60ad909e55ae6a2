import pytest

from decomp.errors import UsageError
from decomp.schemes.repr_settings import ReprSettings


def test_the_defaults_are_those_of_the_paper_with_the_first_convolution_left_out():
    settings = ReprSettings(epochs=100)
    assert (settings.s1, settings.s2, settings.drop, settings.cycles) == (20, 10, 0.3, 3)
    assert not settings.first and not settings.coupled
    assert (settings.metric, settings.method, settings.scale) == ("absolute", "orthogonal", "norm")
    assert settings.next_slice == "zero"
    assert [(cycle.drop_at, cycle.restore_at) for cycle in settings.planned_cycles] == [(20, 30), (50, 60), (80, 90)]
    assert settings.to_json()["drop"] == 0.3


@pytest.mark.parametrize(
    "values, message",
    [
        ({"s1": 0}, "s1: must be a whole number of at least 1, got 0"),
        ({"s2": 1.5}, "s2: must be a whole number of at least 1, got 1.5"),
        ({"drop": 1.0}, "drop: must be a number between 0 and 1, both excluded, got 1.0"),
        ({"drop": "a"}, "drop: must be a number between 0 and 1, both excluded, got a"),
        ({"drop": float("nan")}, "drop: must be a number between 0 and 1, both excluded, got nan"),
        ({"min_keep": -0.1}, "min_keep: must be a number in 0..1 (1 excluded), got -0.1"),
        ({"scale": "norms"}, "scale: must be one of norm, clip, got 'norms'; did you mean norm"),
        ({"method": "svd"}, "method: must be one of orthogonal, qr, random, got 'svd'"),
        ({"next_slice": 0}, "next_slice: must be one of zero, keep, init, got 0"),
        ({"epochs": 30}, "epochs: must be at least 31 for one cycle (s1 20 + s2 10) and a full epoch after it, got 30"),
    ],
)
def test_values_out_of_range_are_named(values, message):
    with pytest.raises(UsageError) as error:
        ReprSettings(**{"epochs": 100, **values})
    assert str(error.value).startswith(message)
