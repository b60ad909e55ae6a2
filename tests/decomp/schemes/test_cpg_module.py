"""Network of a task in training: effective weights, copies of its state."""

import torch
from torch import nn

from decomp.schemes.cpg_module import TaskModule, TaskState, effective_state


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))


def state(task=2):
    private = {name: value.clone() for name, value in network().state_dict().items() if name != "0.weight"}
    owner = torch.tensor([1, 2], dtype=torch.uint8).view(2, 1, 1, 1)
    picks = {"0": torch.tensor([0.0, 0.01]).view(2, 1, 1, 1)} if task > 1 else {}
    return TaskState(1.0, {"0": torch.tensor([3.0, 5.0]).view(2, 1, 1, 1)}, {"0": owner}, picks, private)


def test_a_forward_pass_uses_the_effective_weights_and_leaves_the_shared_ones():
    module, images = TaskModule(network(), state(), 2).eval(), torch.randn(4, 1, 1, 1)
    plain = network().eval()
    plain.load_state_dict(state().effective(2) | module.state().private)
    assert torch.equal(module(images), plain(images))
    assert module.weights["0"].flatten().tolist() == [3.0, 5.0]
    assert plain[0].weight.flatten().tolist() == [0.0, 5.0]


def test_a_state_aliases_neither_the_module_nor_what_it_was_made_from():
    begin = state()
    module = TaskModule(network(), begin, 2)
    kept = module.state()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
    assert begin.weights["0"].flatten().tolist() == kept.weights["0"].flatten().tolist() == [3.0, 5.0]
    assert kept.owners["0"].flatten().tolist() == [1, 2] and kept.picks["0"][1] != 0
    assert kept.private["1.running_var"].tolist() == [1.0, 1.0]
    assert not any(tensor.requires_grad for tensor in (*kept.weights.values(), *kept.private.values()))


def test_the_state_of_a_module_is_all_that_was_given_to_it():
    begin = state()
    kept = TaskModule(network(), begin, 2).state()
    assert set(kept.private) == set(begin.private) and kept.width == 1.0
    assert all(torch.equal(kept.private[name], begin.private[name]) for name in begin.private)


def test_evaluating_one_task_after_another_gives_the_same_as_each_alone():
    begin = state()
    first = effective_state(begin.weights, begin.owners, 1, {})
    effective_state(begin.weights, begin.owners, 2, {})
    assert torch.equal(first["0.weight"], effective_state(begin.weights, begin.owners, 1, {})["0.weight"])
    assert first["0.weight"].flatten().tolist() == [3.0, 0.0]
