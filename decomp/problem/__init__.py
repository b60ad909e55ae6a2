"""The fitting problem of one layer and the values it is made of."""

from decomp.problem.layer_problem import LayerProblem

__all__ = ["LayerProblem"]
