"""Curves that an allocation minimises."""

import numpy as np
import pytest
from layer_chains import chain_of_layers, random_curves

from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.objective import for_steps, geometric_means, objective_curves
from decomp.errors import TargetError, UsageError

OWN = {"a": LayerCurves(prune=np.array([4.0, 1.0, -1e-9]), spatial=np.array([9.0, 4.0]))}
OUTPUT = {"a": LayerCurves(prune=np.array([1.0, 9.0, 5.0]), spatial=np.array([1.0, 0.25]))}


def test_the_joint_loss_is_the_geometric_mean_and_pruning_counts_twice():
    means = geometric_means(OWN, OUTPUT)["a"]
    assert means.prune.tolist() == [4.0, 6.0, 0.0] and means.spatial.tolist() == [3.0, 1.0] and means.channel is None


def test_each_allocation_has_its_curves_and_an_unknown_one_is_refused():
    assert objective_curves("energy", OWN, OUTPUT) is OWN
    for allocation in ("joint", "uniform"):
        assert objective_curves(allocation, OWN, OUTPUT)["a"].spatial.tolist() == [3.0, 1.0]
    with pytest.raises(UsageError, match="^allocation: .* got 'unifrom'; did you mean uniform"):
        objective_curves("unifrom", OWN, OUTPUT)


def test_only_the_curves_of_the_steps_are_left():
    graph = chain_of_layers((2, 4, 3), [(3, 3), (3, 3)])
    usable = for_steps(random_curves(graph, 0), graph, ("spatial", "prune"))
    assert [c.channel for c in usable.values()] == [None, None] and usable["a"].prune is None
    assert usable["a"].spatial is not None and usable["b"].prune is not None


def test_steps_that_no_layer_allows_are_refused_with_the_reason():
    graph = chain_of_layers((2, 4), [(1, 1)])
    curves = random_curves(graph, 0)
    with pytest.raises(TargetError, match="no layer can be treated with the steps spatial, got a 1×1 kernel; allow"):
        for_steps(curves, graph, ("spatial",))
    with pytest.raises(UsageError, match="^steps: .* got 'chanel'; did you mean channel"):
        for_steps(curves, graph, ("chanel",))
