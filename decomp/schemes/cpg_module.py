"""Network of one task in training: shared weights with owners and picks, effective weights made anew in every forward.

Nothing is written into a shared weight by a forward pass, so that a task can be evaluated beside others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from decomp.schemes import cpg_owners, cpg_picks


@dataclass
class TaskState:
    """All values of a network while one task is learned, or as it was committed; copies that alias no module.

    Attributes
    ----------
    width : float
    weights : dict of str to torch.Tensor
        Of the shared layers, by path.
    owners : dict of str to torch.Tensor of uint8
    picks : dict of str to torch.Tensor
        Real values, of a task behind the first; otherwise empty.
    private : dict of str to torch.Tensor
        All other entries of the network's state dict: normalisations, biases, PReLUs and the head, of this task alone.
    """

    width: float
    weights: dict[str, Tensor]
    owners: dict[str, Tensor]
    picks: dict[str, Tensor] = field(default_factory=dict)
    private: dict[str, Tensor] = field(default_factory=dict)

    def effective(self, task: int) -> dict[str, Tensor]:
        """State dict of the task's ordinary network."""
        picked = {layer: cpg_picks.picked(values) for layer, values in self.picks.items()}
        return {**self.private, **effective_state(self.weights, self.owners, task, picked)}


def effective_state(
    weights: Mapping[str, Tensor], owners: Mapping[str, Tensor], task: int, picked: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Effective weights of a task under the names of the network's state dict."""
    return {
        f"{layer}.weight": cpg_owners.effective(weights[layer].detach(), owner, task, picked.get(layer))
        for layer, owner in owners.items()
    }


class TaskModule(nn.Module):
    """A network with shared weights, as the training loop takes it.

    Parameters
    ----------
    network : torch.nn.Module
        Of the state's width; its values become those of the state.
    state : TaskState
    task : int
        From 1.
    """

    def __init__(self, network: nn.Module, state: TaskState, task: int):
        super().__init__()
        self.network, self.task, self.width = network, task, state.width
        self.layers = tuple(state.owners)
        network.load_state_dict(
            {**{f"{layer}.weight": state.weights[layer] for layer in self.layers}, **state.private}
        )  # fmt: skip
        for number, layer in enumerate(self.layers):
            self.register_buffer(f"owner_{number}", state.owners[layer].clone())
        values = [nn.Parameter(state.picks[layer].clone()) for layer in self.layers] if state.picks else []
        self.picks = nn.ParameterList(values)

    @property
    def owners(self) -> dict[str, Tensor]:
        """The owners by layer; the tensors themselves."""
        return {layer: self.get_buffer(f"owner_{number}") for number, layer in enumerate(self.layers)}

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The shared weights by layer; the parameters themselves."""
        return {layer: self.network.get_parameter(f"{layer}.weight") for layer in self.layers}

    @property
    def pick_values(self) -> dict[str, nn.Parameter]:
        """The real picks by layer; empty for the first task."""
        return dict(zip(self.layers, self.picks))

    def forward(self, images: Tensor) -> Tensor:
        picks, owners = self.pick_values, self.owners
        tensors = {
            f"{layer}.weight": cpg_picks.effective_in_training(weight, owners[layer], self.task, picks.get(layer))
            for layer, weight in self.weights.items()
        }
        result: Tensor = functional_call(self.network, tensors, (images,))
        return result

    def state(self) -> TaskState:
        """A copy of all values, on the CPU and contiguous."""
        return state_of(self.state_dict(), self.layers, self.width)


def state_of(values: Mapping[str, Tensor], layers: Sequence[str], width: float) -> TaskState:
    """The values in a state dict of a :class:`TaskModule`, copied to the CPU."""

    def copied(name: str) -> Tensor:
        return values[name].detach().to("cpu", copy=True, memory_format=torch.contiguous_format)

    shared = {f"network.{layer}.weight" for layer in layers}
    private = {
        name.removeprefix("network."): copied(name)
        for name in values
        if name.startswith("network.") and name not in shared
    }
    picks = {layer: copied(f"picks.{number}") for number, layer in enumerate(layers) if f"picks.{number}" in values}
    return TaskState(
        width,
        {layer: copied(f"network.{layer}.weight") for layer in layers},
        {layer: copied(f"owner_{number}") for number, layer in enumerate(layers)},
        picks,
        private,
    )
