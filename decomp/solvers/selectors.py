"""Names of the channel selectors. Imports no torch, so that options and help can use the names."""

# The selectors of `selection.select`.
CHANNEL_SELECTORS = ("lasso", "backward", "l1", "max-response", "first-k", "random")
# Those of `solve_layer.solve_layer`; 'best' tries two of them.
SELECTORS = ("best", *CHANNEL_SELECTORS)
