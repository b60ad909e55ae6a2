"""Solvers of one layer's problem: pruning, spatial split, channel decomposition, refinement."""
