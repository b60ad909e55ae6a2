import pytest
import torch

from decomp.execution.output_change import Outputs, kl_divergence
from decomp.execution.output_kinds import Output
from decomp.execution.output_spread import Spread


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(values, kinds, batch):
    outputs = Outputs(tuple(Output(name, kinds[name], tuple(y.shape[1:])) for name, y in values.items()))
    spread = Spread(outputs)
    for start in range(0, len(next(iter(values.values()))), batch):
        spread.add({name: y[start : start + batch] for name, y in values.items()})
    return {entry.name: entry for entry in spread.measured().each}


@pytest.mark.parametrize("batch", [1, 4, 30])
def test_the_variance_is_that_of_all_images_about_their_mean(batch, monkeypatch):
    monkeypatch.setattr("decomp.execution.output_spread.ENTRIES_AT_A_TIME", 70)
    values = {"boxes": normal(30, 4) * 640 + 300, "maps": normal(30, 2, 3, 5, seed=1) * 1e-3}
    # Sorted: the mean of a batch is far from that of all images.
    values["boxes"] = values["boxes"].sort(0).values
    found = measured(values, dict.fromkeys(values, "values"), batch)
    for name, y in values.items():
        assert found[name].spread == pytest.approx((y - y.mean(0)).square().mean().item(), rel=1e-9)
        assert not found[name].constant


@pytest.mark.parametrize("batch", [1, 7, 20])
@pytest.mark.parametrize("probabilities", [False, True])
def test_the_spread_of_scores_is_their_divergence_from_the_mean_probabilities(batch, probabilities):
    logits = normal(20, 6) * 2
    mean = logits.softmax(1).mean(0, keepdim=True).log().expand(20, 6)
    outputs = Outputs((Output("s", "scores", (6,), probabilities=probabilities),))
    spread = Spread(outputs)
    for part in (logits.softmax(1) if probabilities else logits).split(batch):
        spread.add({"s": part})
    (found,) = spread.measured().each
    assert found.spread == pytest.approx(kl_divergence(logits, mean).mean().item(), rel=1e-9)
    given = logits.softmax(1) if probabilities else logits
    assert found.variance == pytest.approx((given - given.mean(0)).square().mean().item(), rel=1e-9)


def test_an_output_that_is_the_same_for_all_images_counts_by_its_size():
    values = {
        "constant": torch.full((10, 3), 5.0).double(),
        "zero": torch.zeros(10, 3).double(),
        "nearly": 1000 + 1e-5 * normal(10, 3),
        "small": 1e-9 * normal(10, 3),
        "scores": torch.tensor([[1.0, 2.0]]).expand(10, 2).double(),
    }
    kinds = {**dict.fromkeys(values, "values"), "scores": "scores"}
    found = measured(values, kinds, 4)
    assert {name: entry.constant for name, entry in found.items()} == {
        "constant": True, "zero": True, "nearly": True, "small": False, "scores": True,
    }  # fmt: skip
    assert found["constant"].spread == pytest.approx(25)
    assert found["zero"].spread == 1
    assert found["nearly"].spread == pytest.approx(1e6, rel=1e-6)
    assert found["small"].spread == pytest.approx(1e-18, rel=1)
    assert found["scores"].spread == 1


@pytest.mark.parametrize("cut", [0, 7, 30])
def test_spreads_of_two_parts_of_the_images_are_that_of_all(cut):
    outputs = Outputs((Output("boxes", "values", (4,)), Output("s", "scores", (3,))))
    values = {"boxes": (normal(30, 4) * 640 + 300).sort(0).values, "s": normal(30, 3, seed=1) * 5}
    one, other, whole = Spread(outputs), Spread(outputs), Spread(outputs)
    whole.add(values)
    for spread, part in ((one, slice(0, cut)), (other, slice(cut, 30))):
        if len(values["s"][part]):
            spread.add({name: value[part] for name, value in values.items()})
    one.merge(other)
    for found, wanted in zip(one.measured().each, whole.measured().each):
        assert found.variance == pytest.approx(wanted.variance, rel=1e-12)
        assert found.information == pytest.approx(wanted.information, rel=1e-12)


def test_batches_give_the_same_bits_in_whatever_groups_they_are_added():
    outputs = Outputs((Output("boxes", "values", (4,)), Output("s", "scores", (3,))))
    values = {"boxes": normal(30, 4).float() * 640 + 300, "s": normal(30, 3, seed=1).float() * 5}
    one, other, whole = Spread(outputs), Spread(outputs), Spread(outputs)
    for start in range(0, 30, 6):
        batch = {name: value[start : start + 6] for name, value in values.items()}
        whole.add(batch)
        (one if start in (6, 24) else other).add(batch)
    one.merge(other)
    assert one.measured() == whole.measured()
