"""Modules of our own, and the exchange of modules in a network."""
