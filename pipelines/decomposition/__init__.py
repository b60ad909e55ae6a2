"""The parts of the decompose stage."""
