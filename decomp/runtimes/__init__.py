"""Runtimes: ways to run a network, and the measurement of their latency."""
