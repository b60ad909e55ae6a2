"""Running a network: cached activations, sampled rows, output metric, memory footprint."""
