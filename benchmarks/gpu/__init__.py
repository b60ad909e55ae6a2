"""Benchmark on a GPU: one layer, a large network, fine-tuning, planned latency, agreement with the CPU."""
