import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from layer_problems import make, output_metric, relative

from decomp.allocation.plan import LayerPlan
from decomp.errors import DecompError, UsageError
from decomp.exact_sum import ExactSum
from decomp.problem.layer_problem import columns_of
from decomp.problem.moments import Moments
from decomp.solvers import channel, refine, selection, spatial
from decomp.solvers.half_quadratic import ACTIVATIONS
from decomp.solvers.linalg import least_squares
from decomp.solvers.selectors import CHANNEL_SELECTORS, SELECTORS
from decomp.solvers.solve_layer import FitSettings, choose, solve_layer

ITEMS = [
    LayerPlan("l", 3),
    LayerPlan("l", 3, 4),
    LayerPlan("l", None, 4, 3),
    LayerPlan("l", 2, None, 2),
    LayerPlan("l"),
]


def responses(solution, rows):
    """Responses of the solved layer on the rows, from its own factors."""
    X = rows.X if solution.selection is None else rows.X[:, solution.selection.channels]
    return X.flatten(1) @ solution.factored.compose()[0].flatten(1).T + solution.factored.compose()[1]


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_full_sizes_reproduce_an_unchanged_layer(activation):
    rows = make(noise=0.0, activation=activation)
    solution, report = solve_layer(rows.problem, LayerPlan("l", 4, 12, 6))
    assert torch.allclose(responses(solution, rows), rows.Y, atol=1e-5)
    assert solution.factored.names == ("vertical", "horizontal", "pointwise") and solution.factored.ranks == (12, 6)
    assert solution.selection.channels.tolist() == [0, 1, 2, 3]
    assert report["errors"]["channel"]["fitted"] < 1e-9 and report["errors"]["refine"]["fitted"] < 1e-9


@pytest.mark.parametrize("item", ITEMS, ids=lambda i: i.words())
def test_the_mean_error_of_a_fitted_layer_is_zero_on_its_rows(item):
    rows = make(activation="identity")
    solution, _ = solve_layer(rows.problem, item)
    assert (responses(solution, rows) - rows.Y).mean(dim=0).abs().max() < 1e-9 * rows.Y.std()


@pytest.mark.parametrize("metric", [None, output_metric(6)])
@pytest.mark.parametrize("item", ITEMS, ids=lambda i: i.words())
def test_reported_errors_are_those_of_the_rows(item, metric):
    rows, other = make(seed=1), make(seed=1, n_rows=500)
    problem = dataclasses.replace(rows.problem, metric=metric)
    held_out = Moments.of_rows(other.flat, other.Y)
    solution, report = solve_layer(problem, item, held_out=held_out)
    errors, last = report["errors"], list(report["errors"])[-1]
    assert errors["before"]["fitted"] == pytest.approx(relative(rows.Y, rows.flat @ problem.matrix()), rel=1e-6)
    assert errors["before"]["held_out"] == pytest.approx(relative(other.Y, other.flat @ problem.matrix()), rel=1e-6)
    assert errors[last]["fitted"] == pytest.approx(relative(rows.Y, responses(solution, rows)), rel=1e-6)
    assert errors[last]["held_out"] == pytest.approx(relative(other.Y, responses(solution, other)), rel=1e-6)
    assert ("output_error" in errors[last]) == (metric is not None)
    if metric is not None:
        wanted = relative(rows.Y, responses(solution, rows), metric)
        assert errors[last]["output_error"] == pytest.approx(wanted, rel=1e-6)


def test_without_held_out_rows_only_the_fitted_ones_are_reported():
    rows = make()
    for held_out in (None, Moments.zeros(36, 6)):
        _, report = solve_layer(rows.problem, LayerPlan("l", 3), held_out=held_out)
        assert all(set(entry) == {"fitted"} for entry in report["errors"].values())


@pytest.mark.parametrize(
    ("item", "steps"),
    [
        (LayerPlan("l"), ["before", "refit"]),
        (LayerPlan("l", 3), ["before", "prune", "refine"]),
        (LayerPlan("l", None, 4), ["before", "refit", "spatial", "refine"]),
        (LayerPlan("l", 3, 4, 3), ["before", "prune", "spatial", "channel", "refine"]),
    ],
    ids=str,
)
def test_the_planned_steps_are_applied_and_no_others(item, steps):
    rows = make(activation="identity")
    solution, report = solve_layer(rows.problem, item)
    assert list(report["errors"]) == steps
    assert (solution.selection is None) == (item.keep is None)
    wanted = tuple(size for size in (item.spatial_rank, item.channel_rank) if size is not None)
    assert solution.factored.ranks == wanted
    fitted = [report["errors"][step]["fitted"] for step in steps]
    # Least squares gains on the weights before; a step of low rank costs; the refinement gains again.
    assert fitted[1] <= fitted[0] + 1e-12 or item.keep is not None
    if len(steps) == 5:
        assert fitted[1] <= fitted[2] <= fitted[3] >= fitted[4]
    _, plain = solve_layer(rows.problem, item, FitSettings(refined=False))
    assert list(plain["errors"]) == [step for step in steps if step != "refine"]


def test_the_steps_are_those_of_the_solvers_one_after_the_other():
    rows = make(activation="relu", seed=4)
    solution, report = solve_layer(rows.problem, LayerPlan("l", 3, 5, 3), FitSettings("backward"))
    chosen = selection.select(rows.problem, 3, "backward")
    weight, bias = selection.reconstruct(rows.problem, chosen)
    narrow = dataclasses.replace(rows.problem.narrowed(chosen), weight=weight, bias=bias)
    chain = channel.decompose(narrow, 3, base=spatial.split(narrow, 5))
    chain = refine.refine_responses(narrow, chain)
    assert torch.equal(solution.selection.channels, chosen.channels)
    for got, wanted in zip(solution.factored.factors, chain.factors):
        assert torch.equal(got.weight, wanted.weight)
    assert report["refine"]["refine_responses"] == chain.report["refine_responses"]


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_minding_the_activation_lowers_the_error_after_it(activation):
    rows, r = make(n=8, activation=activation, seed=5), ACTIVATIONS[activation]

    def error(**settings):
        solution, report = solve_layer(rows.problem, LayerPlan("l", 3, 4, 3), FitSettings(**settings))
        difference = r(responses(solution, rows)) - r(rows.Y)
        return float(difference.square().sum()), report

    aware, report = error()
    linear, linear_report = error(activation_aware=False)
    assert aware < linear
    assert "refine_responses" in report["refine"] and "refine_responses" not in linear_report["refine"]
    assert linear_report["channel"]["form"] == "linear" and report["channel"]["form"] == "activation-aware"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_best_selector_is_the_better_of_the_two_it_tries(seed, keep):
    problem = make(seed=seed, activation="identity").problem
    found = {name: choose(problem, keep, name) for name in ("best", "lasso", "backward")}
    errors = {name: selection.reconstruct(problem, chosen).report["error"] for name, chosen in found.items()}
    assert errors["best"] == min(errors["lasso"], errors["backward"])
    report = found["best"].report
    assert (report["error_lasso"], report["error_backward"]) == (errors["lasso"], errors["backward"])
    assert torch.equal(found["best"].channels, found[report["selector"]].channels)


@pytest.mark.parametrize("selector", SELECTORS)
def test_every_selector_is_used_as_chosen(selector):
    problem = make(c=7, kernel=(2, 2), seed=6).problem
    solution, report = solve_layer(problem, LayerPlan("l", 3), FitSettings(selector, seed=9, refined=False))
    assert torch.equal(solution.selection.channels, choose(problem, 3, selector, seed=9).channels)
    if selector in CHANNEL_SELECTORS:
        assert report["selection"]["selector"] == selector
        wanted = selection.select(problem, 3, selector, seed=9)
        assert torch.equal(solution.selection.channels, wanted.channels)


def test_an_unknown_selector_is_refused_before_any_work():
    problem = make().problem
    problem.moments.K[0, 0] = float("nan")  # any work would end in an error about it
    wanted = r"^selector: must be one of best, lasso, .*, got 'bset'; did you mean best\.$"
    for item in (LayerPlan("l", 3), LayerPlan("l")):
        with pytest.raises(UsageError, match=wanted):
            solve_layer(problem, item, FitSettings("bset"))
    with pytest.raises(UsageError, match="did you mean backward"):
        choose(problem, 3, "backwards")


@pytest.mark.parametrize("item", [LayerPlan("l", 5), LayerPlan("l", None, 13), LayerPlan("l", None, None, 7)], ids=str)
def test_sizes_out_of_range_are_refused(item):
    with pytest.raises(DecompError, match="^conv: .* must be in 1.."):
        solve_layer(make().problem, item)


class Holder:
    """One of two threads that hold the rows of a problem together."""

    def __init__(self, place, barrier, given):
        self.place, self.barrier, self.given = place, barrier, given

    def _exchanged(self, values):
        self.given[self.place] = values
        self.barrier.wait(10)
        both = self.given[0], self.given[1]
        self.barrier.wait(10)
        return both

    def summed(self, *sums):
        found = []
        for one, other in zip(*self._exchanged(sums)):
            total = ExactSum(one.high.shape)
            total.merge(one)
            total.merge(other)
            found.append(total.rounded())
        return tuple(found)

    def agreed(self, *values):
        return self._exchanged(values)[0]

    def each(self, tasks):
        own = {place: task() for place, task in enumerate(tasks) if place % 2 == self.place}
        one, other = self._exchanged(own)
        return [{**one, **other}[place] for place in range(len(tasks))]


def solved_by_two(rows, item, other_moments):
    """What each of two threads finds that have the rows before and behind a place."""
    barrier, given, shares = threading.Barrier(2), {}, (slice(0, 194), slice(194, None))

    def solve(place):
        def own():
            return zip(rows.X[shares[place]].split(97), rows.Y[shares[place]].split(97))

        moments = rows.problem.moments if place == 0 else other_moments
        problem = dataclasses.replace(
            rows.problem, rows=own, moments=moments, holders=Holder(place, barrier, given)
        )  # fmt: skip
        return solve_layer(problem, item)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(solve, range(2)))


@pytest.mark.parametrize("item", ITEMS, ids=lambda i: i.words())
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_holders_of_shares_of_the_rows_find_the_solution_of_all_rows(item, activation):
    rows = make(activation=activation)
    alone, report = solve_layer(rows.problem, item)
    for solution, other in solved_by_two(rows, item, rows.problem.moments):
        for before, after in zip(alone.factored.factors, solution.factored.factors):
            assert torch.allclose(before.weight, after.weight, rtol=1e-6, atol=1e-8)
        assert other["errors"]["before"] == report["errors"]["before"]
        for step, name in (("channel", "response_error"), ("channel", "iterations"), ("refine", "refine_error")):
            if name in report.get(step, {}):
                assert other[step][name] == pytest.approx(report[step][name], rel=1e-6)


def test_a_holder_that_rounds_otherwise_does_not_change_what_the_first_one_finds():
    rows, item = make(), LayerPlan("l", 2, None, 3)
    alone, _ = solve_layer(rows.problem, item)
    # As if its processor rounded far worse.
    scale = 1 + 1e-3 * torch.linspace(0, 1, 4, dtype=torch.float64)[:, None, None]
    others = Moments.of_rows(rows.X * scale, rows.Y)
    (first, _), (second, _) = solved_by_two(rows, item, others)
    for before, after in zip(alone.factored.factors, first.factored.factors):
        assert torch.allclose(before.weight, after.weight, rtol=1e-6, atol=1e-8)
    one, other = (found.factored.factors[0].weight for found in (first, second))
    assert not torch.allclose(one, other, rtol=1e-5)


def test_errors_of_the_halves_are_those_of_fits_to_each_on_the_other():
    rows = make(noise=0.5)
    X, Y = rows.X.flatten(1).double(), rows.Y.double()
    n = len(X) // 2
    halves = Moments.of_rows(X[:n], Y[:n]), Moments.of_rows(X[n:], Y[n:])
    _, report = solve_layer(rows.problem, LayerPlan("l", 3), halves=halves)
    solution, _ = solve_layer(rows.problem, LayerPlan("l", 3), FitSettings(refined=False))
    columns = columns_of(solution.selection.channels, rows.problem.kernel)
    prior = rows.problem.matrix()[columns]

    def squared(B, own):
        centred_x, centred_y = own[0] - own[0].mean(0), own[1] - own[1].mean(0)
        return float((centred_y - centred_x @ B).square().sum() / centred_y.square().sum())

    parts = [(X[:n][:, columns], Y[:n]), (X[n:][:, columns], Y[n:])]
    # A half of the rows has half of the mean diagonal: the ridge of all rows is twice its share.
    ridge = 2 * report["least_squares"]["ridge"]
    fits = [least_squares(Moments.of_rows(*own), ridge=ridge, prior=prior).weight for own in parts]
    assert report["halves"]["fitted"] == pytest.approx(sum(map(squared, fits, parts)) / 2, rel=1e-5)
    assert report["halves"]["other"] == pytest.approx(sum(map(squared, fits, parts[::-1])) / 2, rel=1e-5)
    assert "halves" not in solve_layer(rows.problem, LayerPlan("l", 3))[1]


@pytest.mark.parametrize("selector", ["best", "lasso"])
def test_chosen_channels_are_fitted_once_for_each_selector_tried(selector, monkeypatch):
    problem, fits = make(c=7, seed=6).problem, []

    def reconstruct(*arguments):
        fits.append(plain(*arguments))
        return fits[-1]

    plain = selection.reconstruct
    monkeypatch.setattr(selection, "reconstruct", reconstruct)
    solution, report = solve_layer(problem, LayerPlan("l", 3), FitSettings(selector, refined=False))
    chosen = {name: choose(problem, 3, name).channels.tolist() for name in ("backward", "lasso")}
    differ = selector == "best" and chosen["backward"] != chosen["lasso"]
    assert len(fits) == (2 if differ else 1)
    again = plain(problem, solution.selection)
    assert torch.equal(solution.factored.compose()[0], again.weight) and report["least_squares"] == again.report
