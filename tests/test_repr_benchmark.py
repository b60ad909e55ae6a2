"""The benchmark of RePr: paired differences and their intervals, and trainings that are pairs."""

from argparse import Namespace

import pytest
import torch

from benchmarks import repr as benchmark
from decomp.data.sources import open_source

RESULTS = {
    f"{arm}/{seed}": {"last": last, "best": best, "steps": 7, "overlap": 0.1, "seconds_per_epoch": 2.0}
    for arm, values in (
        ("standard", [(0.50, 0.60), (0.70, 0.70), (0.90, 0.80)]), ("RePr", [(0.51, 0.59), (0.73, 0.69), (0.92, 0.79)]),
    )
    for seed, (last, best) in enumerate(values)
}  # fmt: skip


def test_the_interval_is_that_of_student_on_paired_differences():
    mean, error, half = benchmark.interval([1.0, 3.0, 2.0])
    assert (mean, error) == (2.0, pytest.approx(3**-0.5)) and half == pytest.approx(4.30265 * 3**-0.5, rel=1e-5)


def test_the_table_compares_equal_seeds():
    standard, scheme = benchmark.table(RESULTS, ["standard", "RePr"], 3)
    assert scheme["difference, last"].startswith("+2.00 ± 0.58 (-0.48 to +4.48)")
    assert scheme["difference, best"].startswith("-1.00 ± 0.00")
    assert "difference, last" not in standard and standard["test, last epoch"] == "70.00 ± 20.00"


@pytest.mark.parametrize("part, steps", [({}, 8), ({"n_train": 1000, "batch_size": 200}, 16)])
def test_both_trainings_of_a_pair_begin_alike_and_take_as_many_steps(part, steps):
    options = Namespace(**{
        "model": "c3-4", "epochs": 4, "s1": 1, "s2": 1, "drop": 0.3, "lr": 0.05, "batch_size": 512, "augment": True,
        "device": "cpu", "n_train": 0, "halve": False, **part,
    })  # fmt: skip
    source = open_source("digits")
    pair = [benchmark.train(options, source, arm, 3) for arm in ("standard", "RePr")]
    assert pair[0]["steps"] == pair[1]["steps"] == steps and pair[0]["scheme"] is None
    first, second = ([line["loss"] for line in one["history"]] for one in pair)
    assert first[:2] == second[:2] and first[2] != second[2]
    assert len(pair[1]["scheme"]["events"]) == 2
    other = benchmark.build("c3-4", (1, 8, 8), 10, 4)
    assert not torch.equal(other[0].weight, benchmark.build("c3-4", (1, 8, 8), 10, 3)[0].weight)


def test_halved_images_are_means_of_four_pixels():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    ((small, labels),) = benchmark.halved(lambda order, size: [(images, order)])(torch.tensor([3]), 1)
    assert torch.equal(small, torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]])) and labels.tolist() == [3]


def test_without_options_it_writes_below_runs_and_arms_that_there_are_not_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["repr.py"])
    assert benchmark.arguments().out.parts == ("runs", "repr-benchmark")
    monkeypatch.setattr("sys.argv", ["repr.py", "--arms", "RePr,random"])
    with pytest.raises(SystemExit):
        benchmark.arguments()
    assert "--arms: there is no 'random'; there are standard, RePr," in capsys.readouterr().err
