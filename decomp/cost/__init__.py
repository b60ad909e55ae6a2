"""Cost models: multiply-accumulates, parameters, latency."""
