"""Filter pruning: the network with its batch normalisations, the choice of channels, the files of the result."""
