"""Changes to a network: narrowing, replacing layers by factors, batch normalisation."""
