"""Allocation of a target cost to the layers: plan, dynamic programming, local search."""
