import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import make, output_metric, relative

from decomp.errors import DecompError, NumericalError
from decomp.problem.factors import ConvFactor, FactoredConv, Geometry
from decomp.problem.moments import Moments
from decomp.solvers import half_quadratic, spatial
from decomp.solvers import refine as refine_module
from decomp.solvers.channel import decompose
from decomp.solvers.half_quadratic import ACTIVATIONS
from decomp.solvers.linalg import choose_ridge, least_squares
from decomp.solvers.refine import refine, refine_responses

FREE = {"ridge": 0.0}


def chains(problem):
    split = spatial.split(problem, 4)
    return {
        "split": split,
        "three": decompose(problem, 3, base=split),
        "two": decompose(problem, 3),
        "free": spatial.split(problem, 4, data=False),
        "dense": FactoredConv.dense(problem.weight, problem.bias, problem.geometry),
    }


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 200),
    kind=st.sampled_from(["split", "three", "two", "free", "dense"]),
    with_metric=st.booleans(),
    ridge=st.sampled_from([0.0, "evidence"]),
    n_rows=st.sampled_from([20, 300]),
)
def test_the_error_never_rises_and_is_told_truly(seed, kind, with_metric, ridge, n_rows):
    rows = make(n_rows=n_rows, seed=seed)
    problem = dataclasses.replace(rows.problem, metric=output_metric(6) if with_metric else None)
    start = chains(problem)[kind]
    found = refine(problem, start, ridge=ridge, iterations=20)
    report = found.report["refine"]
    assert report["error"] <= report["error_before"]
    assert report["error_before"] == pytest.approx(relative(rows.Y, rows.fitted(start), problem.metric), rel=1e-7)
    assert report["error"] == pytest.approx(relative(rows.Y, rows.fitted(found), problem.metric), rel=1e-7, abs=1e-12)
    assert found.names == start.names and found.ranks == start.ranks
    if found.factors is not start.factors:
        assert (rows.Y - rows.fitted(found)).mean(0).abs().max() < 1e-9


@pytest.mark.parametrize("kind", ["split", "three"])
@pytest.mark.parametrize("metric", [None, output_metric(6)])
@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_what_is_found_is_stationary(kind, metric, ridge, monkeypatch):
    """The gradient by automatic differentiation of the error over the rows, against the one at the start."""
    monkeypatch.setattr(refine_module, "TOLERANCE", 1e-12)
    rows = make()
    problem = dataclasses.replace(rows.problem, metric=metric)
    start = chains(problem)[kind]
    found = refine(problem, start, iterations=1000, ridge=ridge)
    penalty = ridge * problem.moments.K.diagonal().mean()

    def gradient(factored):
        weights = [factor.weight.clone().requires_grad_() for factor in factored.factors]
        factors = [ConvFactor(w, None, f.geometry) for w, f in zip(weights, factored.factors)]
        kernel, _ = FactoredConv(tuple(factors), factored.names).compose()
        residual = rows.Y - rows.flat @ kernel.flatten(1).T
        residual = residual - residual.mean(0)
        distance = (kernel - problem.weight).flatten(1).T
        F = torch.eye(6).double() if metric is None else metric
        loss = ((residual @ F) * residual).sum() + penalty * ((distance @ F) * distance).sum()
        # Scale-free: the change of the loss with a relative change of each factor.
        gradients = torch.autograd.grad(loss, weights)
        return sum(float((g * w.detach()).square().sum()) for g, w in zip(gradients, weights))

    assert gradient(found) < 1e-3 * gradient(start)


def test_what_is_no_better_is_not_taken(monkeypatch):
    rows = make()
    start = spatial.split(rows.problem, 4)
    weights = [factor.weight * 0.9 for factor in start.factors]
    monkeypatch.setattr(refine_module._Search, "run", lambda self, iterations: (weights, 1))
    found = refine(rows.problem, start)
    assert found.factors is start.factors
    assert found.report["refine"]["error"] == found.report["refine"]["error_before"]


def test_it_reaches_at_least_what_many_alternations_reach():
    rows = make(n=8, c=6)
    start = spatial.split(rows.problem, 5, ridge=1e-10)
    alternated = spatial.split(rows.problem, 5, ridge=1e-10, alternate=20)
    found = refine(rows.problem, start, iterations=200, **FREE)
    assert found.report["refine"]["error"] <= alternated.report["error"] * 1.001
    assert found.report["refine"]["error"] < 0.95 * start.report["error"]


def test_the_linear_optimum_cannot_be_refined():
    rows = make()
    start = decompose(rows.problem, 3, activation_aware=False, ridge=1e-12)
    found = refine(rows.problem, start, **FREE)
    assert found.report["refine"]["error"] == pytest.approx(start.report["error"], rel=1e-8)


def test_a_single_factor_becomes_the_least_squares_solution():
    rows = make()
    start = FactoredConv.dense(rows.problem.weight, rows.problem.bias, Geometry())
    found = refine(rows.problem, start, ridge=1e-10)
    wanted = least_squares(rows.problem.moments, ridge=1e-10)
    assert torch.allclose(found.compose()[0].flatten(1).T, wanted.weight, atol=1e-6)
    assert torch.allclose(found.compose()[1], wanted.bias, atol=1e-6)


def test_the_metric_is_what_is_lowered():
    rows = make(n=8)
    F = output_metric(8, floor=0.02)
    start = spatial.split(rows.problem, 4)
    plain = refine(rows.problem, start, **FREE)
    weighted = refine(rows.problem, start, metric=F, **FREE)
    assert relative(rows.Y, rows.fitted(weighted), F) < 0.95 * relative(rows.Y, rows.fitted(plain), F)
    assert relative(rows.Y, rows.fitted(weighted)) > relative(rows.Y, rows.fitted(plain))
    own = refine(dataclasses.replace(rows.problem, metric=F), start, **FREE)
    assert torch.equal(own.compose()[0], weighted.compose()[0])


def test_few_rows_are_not_fitted_to_the_letter():
    whole = make(n_rows=3000, n=6, c=4, noise=0.5)
    held_out = Moments.of_rows(whole.flat[1000:], whole.Y[1000:])
    few = dataclasses.replace(whole.problem, moments=Moments.of_rows(whole.flat[:40], whole.Y[:40]), rows=None)
    start = spatial.split(few, 8)

    def elsewhere(factored):
        return held_out.error(factored.compose()[0].flatten(1).T)

    free, held = refine(few, start, **FREE), refine(few, start)
    assert free.report["refine"]["error"] < held.report["refine"]["error"]
    assert elsewhere(held) < 0.8 * elsewhere(free)
    assert elsewhere(held) < 1.05 * elsewhere(start)


def test_few_rows_without_noise_still_leave_a_ridge():
    """Nothing but the covariance is uncertain then, and the evidence, which does not know that, asks for none."""
    whole = make(n_rows=3000, n=12, c=4, noise=0.0)
    few = dataclasses.replace(whole.problem, moments=Moments.of_rows(whole.flat[:40], whole.Y[:40]), rows=None)
    held_out = Moments.of_rows(whole.flat[1000:], whole.Y[1000:])
    start = spatial.split(few, 6)
    kernel = start.compose()[0].flatten(1).T
    floor = refine_module.SHRINKAGE * 36 / 40
    assert choose_ridge(few.moments, kernel) < floor
    found = refine(few, start)
    assert found.report["refine"]["ridge"] == pytest.approx(floor)
    bare = refine(few, start, ridge=1e-6)
    assert held_out.error(found.compose()[0].flatten(1).T) < held_out.error(bare.compose()[0].flatten(1).T)


def test_equal_input_gives_equal_bytes():
    first, second = (refine(p, spatial.split(p, 4)) for p in (make().problem, make().problem))
    for a, b in zip(first.factors, second.factors):
        assert torch.equal(a.weight, b.weight)


def test_geometry_and_type_stay():
    geometry = Geometry((2, 1), (1, 2))
    rows = make(dtype=torch.float32, geometry=geometry)
    found = refine(rows.problem, spatial.split(rows.problem, 4))
    assert found.factors[0].geometry == geometry.vertical() and found.factors[1].geometry == geometry.horizontal()
    assert {factor.weight.dtype for factor in found.factors} == {torch.float32}
    double = make()
    wanted = refine(double.problem, spatial.split(double.problem, 4)).report["refine"]["error"]
    assert found.report["refine"]["error"] == pytest.approx(wanted, rel=1e-3)


def response_error(rows, factored):
    r = ACTIVATIONS[rows.problem.activation]
    wanted = r(rows.Y)
    return float((wanted - r(rows.fitted(factored))).square().sum() / (wanted - wanted.mean(0)).square().sum())


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 100),
    kind=st.sampled_from(["split", "three", "two"]),
    activation=st.sampled_from(["relu", "relu6"]),
)
def test_refining_responses_is_never_worse_after_the_activation(seed, kind, activation):
    rows = make(seed=seed, activation=activation)
    start = chains(rows.problem)[kind]
    found = refine_responses(rows.problem, start)
    report = found.report["refine_responses"]
    assert report["response_error_before"] == pytest.approx(response_error(rows, start))
    assert report["response_error"] == pytest.approx(response_error(rows, found))
    assert report["response_error"] <= report["response_error_before"]


def test_refining_responses_gains_over_each_step_alone():
    rows = make(n=12, c=6, seed=1)
    start = decompose(rows.problem, 4, base=spatial.split(rows.problem, 6))
    plain = refine(rows.problem, start)
    found = refine_responses(rows.problem, start)
    assert response_error(rows, found) < 0.95 * min(response_error(rows, start), response_error(rows, plain))


@pytest.mark.parametrize("n_rows", [1, 5, 36])
@pytest.mark.parametrize("kind", ["split", "three", "two", "free", "dense"])
def test_what_is_singular_has_a_defined_answer(n_rows, kind):
    def awkward(X, Y, weight):
        X[:, 1] = 0
        X[:, 2] = 1.7
        Y[:, 0] = 0.5

    rows = make(n_rows=n_rows, change=awkward, dtype=torch.float32)
    start = chains(rows.problem)[kind]
    for found in (
        refine(rows.problem, start),
        refine(rows.problem, start, **FREE),
        refine_responses(rows.problem, start),
    ):
        assert all(torch.isfinite(factor.weight).all() for factor in found.factors)


def test_what_cannot_be_refined_is_refused():
    rows = make()
    start = spatial.split(rows.problem, 3)
    with pytest.raises(DecompError, match=r"conv: factors must compose to \(6, 4, 3, 3\), got \(5, 4, 3, 3\)"):
        refine(rows.problem, spatial.split(make(n=5).problem, 3))
    for problem in (make(with_rows=False).problem, make(activation="gelu").problem):
        with pytest.raises(DecompError, match="refining responses needs rows and a known activation"):
            refine_responses(problem, start)
    rows.problem.moments.K[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="entries of K NaN or Inf"):
        refine(rows.problem, start)
    assert half_quadratic.why_linear(make().problem) is None


def residual_of(problem, chain):
    start = refine_module._start_of(problem.moments, chain.compose()[0], problem.metric)
    return refine_module._Residual(problem.moments, start)


@pytest.mark.parametrize("kind", ["split", "two"])
@pytest.mark.parametrize("metric", [None, output_metric(6)])
@pytest.mark.parametrize("n_rows", [60, 900])
def test_products_in_float32_lead_to_the_same_error(kind, metric, n_rows, monkeypatch):
    """With few rows too, where K is a product of their root."""
    rows = make(c=30, n_rows=n_rows, noise=0.5, dtype=torch.float32)
    problem = dataclasses.replace(rows.problem, metric=metric)
    start = chains(problem)[kind]
    single = refine(problem, start)
    assert residual_of(problem, start).single
    monkeypatch.setattr(refine_module, "SHARP", float("inf"))
    double = refine(problem, start)
    errors = [found.report["refine"]["error"] for found in (single, double)]
    assert errors[0] == pytest.approx(errors[1], rel=2e-3) and errors[0] < single.report["refine"]["error_before"]


def test_residual_of_a_kernel_near_the_start_is_that_of_float64():
    problem = make(c=30, n_rows=900, dtype=torch.float32).problem
    start = spatial.split(problem, 4)
    moments, residual = problem.moments, residual_of(problem, start)
    B = start.compose()[0].double().flatten(1).T
    near = B + 0.01 * torch.randn(B.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * B.std()
    exact, plain = moments.K @ near - moments.C, (moments.K.float() @ near.float()).double() - moments.C
    assert torch.equal(residual(B), moments.K @ B - moments.C)
    assert 0 < (residual(near) - exact).norm() < 0.05 * (plain - exact).norm()


def test_an_exact_chain_and_few_inputs_stay_in_float64():
    exact = make(c=30, n_rows=900, noise=0.0)
    whole = FactoredConv.dense(exact.problem.weight, exact.problem.bias, exact.problem.geometry)
    assert not residual_of(exact.problem, whole).single
    small = make(c=4)
    assert not residual_of(small.problem, spatial.split(small.problem, 2)).single


def started_from(rows, monkeypatch):
    """The chains from which the rounds began, those that they found, and the error of each start."""
    begun, found, errors = [], [], []
    plain_targets, plain_refine = refine_module.activation_targets, refine_module.refine

    def targets(problem, chain, penalty):
        error, moments = plain_targets(problem, chain, penalty)
        begun.append(chain)
        errors.append(error)
        return error, moments

    def refined(*arguments, **options):
        found.append(plain_refine(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(refine_module, "activation_targets", targets)
    monkeypatch.setattr(refine_module, "refine", refined)
    best = refine_responses(rows.problem, spatial.split(rows.problem, 4))
    return begun, found, errors, best


def test_rounds_begin_ahead_of_the_chain_found_last(monkeypatch):
    begun, found, errors, best = started_from(make(n=8, noise=0.4), monkeypatch)
    assert begun[1] is found[0] and len(begun) > 2
    for place in (0, 1):
        one, two = (chain.factors[place].weight for chain in found[:2])
        assert torch.allclose(begun[2].factors[place].weight, two + refine_module.MOMENTUM * (two - one))
    bias = found[1].factors[1].bias + refine_module.MOMENTUM * (found[1].factors[1].bias - found[0].factors[1].bias)
    assert torch.allclose(begun[2].factors[1].bias, bias) and begun[2].factors[0].bias is None
    assert best.report["refine_responses"]["response_error"] == min(errors)


def test_a_step_too_far_is_taken_back(monkeypatch):
    monkeypatch.setattr(refine_module, "MOMENTUM", 30.0)
    begun, found, errors, best = started_from(make(n=8, noise=0.4), monkeypatch)
    assert errors[2] > errors[1] and begun[3] is found[1] and errors[3] < errors[1]
    assert best.report["refine_responses"]["response_error"] == min(errors)


def test_rounds_end_where_they_gain_little(monkeypatch):
    monkeypatch.setattr(refine_module, "PATIENCE", 0.9)
    begun, found, _, best = started_from(make(n=8, noise=0.4), monkeypatch)
    assert len(begun) == 2 and len(found) == 1 and best.factors is found[0].factors
