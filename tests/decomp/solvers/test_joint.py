"""Choosing the channels of a space for all of its readers."""

import dataclasses
import itertools

import pytest
import torch
from layer_problems import make, output_metric

from decomp.errors import DecompError
from decomp.solvers import selection
from decomp.solvers.joint import grouped, select_jointly


def remaining_error(problem, own, keep):
    """Relative error of a reader refitted by least squares on the kept channels of the space and all its others."""
    space = set(own.tolist())
    channels = sorted((set(range(problem.n_channels)) - space) | {int(own[i]) for i in keep})
    chosen = selection.Selection(torch.tensor(channels), problem.n_channels)
    return selection.reconstruct(problem, chosen).report["error"]


@pytest.mark.parametrize("metric", [None, output_metric(6)])
@pytest.mark.parametrize("keep", [1, 3, 7])
def test_one_reader_is_what_backward_elimination_gives(keep, metric):
    from dataclasses import replace

    problem = replace(make(c=8).problem, metric=metric)
    wanted = selection.select(problem, keep, "backward").channels
    assert torch.equal(select_jointly([problem], [torch.arange(8)], keep).channels, wanted)
    assert torch.equal(select_jointly([problem, problem], [torch.arange(8)] * 2, keep).channels, wanted)


def test_each_step_takes_what_costs_all_readers_least():
    """Against trying every channel: refit both readers without it and add up their errors."""
    problems = [make(c=6, seed=1).problem, make(c=7, n=5, kernel=(1, 1), seed=2).problem]
    members = [torch.tensor([5, 3, 1, 0, 2]), torch.tensor([0, 1, 2, 4, 6])]
    left = list(range(5))
    for keep in (4, 3, 2):
        options = itertools.combinations(left, keep)
        errors = {o: sum(remaining_error(p, m, o) for p, m in zip(problems, members)) for o in options}
        left = list(min(errors, key=errors.get))
        assert select_jointly(problems, members, keep, ridge=1e-9).channels.tolist() == left


def test_channels_that_go_together_are_one():
    problem = make(c=6, kernel=(1, 2)).problem
    columns = torch.tensor([[0, 3], [5, 1], [2, 4]])
    joined = grouped(problem, columns)
    assert joined.n_channels == 3 and joined.kernel == (2, 2)
    keep = select_jointly([joined], [torch.arange(3)], 2).channels
    errors = {}
    for pair in itertools.combinations(range(3), 2):
        chosen = selection.Selection(columns[list(pair)].flatten().sort().values, 6)
        errors[pair] = selection.reconstruct(problem, chosen).report["error"]
    assert tuple(keep.tolist()) == min(errors, key=errors.get)


@pytest.mark.parametrize("keep", [0, 5])
def test_counts_out_of_range_are_refused(keep):
    with pytest.raises(DecompError, match=r"must be in 1\.\.4"):
        select_jointly([make().problem], [torch.arange(4)], keep)


def test_with_metrics_costs_count_in_units_of_the_output_and_without_relative_to_each_reader():
    one, two = (make(c=6, n=4, kernel=(2, 2), seed=seed).problem for seed in (1, 5))
    members, eye = [torch.arange(6)] * 2, torch.eye(4, dtype=torch.float64)

    def chosen(*problems):
        return select_jointly(list(problems), members[: len(problems)], 3).channels.tolist()

    weighted = [dataclasses.replace(each, metric=eye * scale) for each, scale in ((one, 1e-9), (two, 1.0))]
    assert chosen(*weighted) == chosen(two) != chosen(one, two)
    assert chosen(*reversed(weighted)) == chosen(two)
