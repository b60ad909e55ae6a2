"""Exchange a module, or its parameters, at a path of a network."""

from torch import nn


def set_module(root, path, module):
    """Put a module in the place of another."""
    parent, _, name = path.rpartition(".")
    holder = root.get_submodule(parent) if parent else root
    if isinstance(holder, (nn.Sequential, nn.ModuleList)):
        holder[int(name) if name.isdigit() else list(holder._modules).index(name)] = module
    else:
        setattr(holder, name, module)


def linear(weight, bias):
    """A linear layer with these weights (n, p) and bias (n,) or None."""
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return with_parameters(module, weight, bias)


def with_parameters(module, weight, bias):
    """The module with copies of a weight and a bias as its parameters."""
    module.weight = nn.Parameter(weight.detach().clone().contiguous())
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone().contiguous())
    return module
