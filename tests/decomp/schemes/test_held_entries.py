import pytest
import torch
from torch import nn

from decomp.schemes.held_entries import HeldEntries, find_tensor, optimizer_buffers

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
}
ROWS, COLUMNS = torch.tensor([0, 2]), torch.tensor([1])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def places():
    return {
        ("0.weight", 0): ROWS, ("0.weight", 1): COLUMNS, ("0.bias", 0): ROWS, ("1.running_mean", 0): ROWS,
        ("1.weight", 0): ROWS, ("3.weight", 1): torch.tensor([0, 1, 8, 9]),
    }  # fmt: skip


def step(model, optimizer, held, seed):
    x = torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().sum().backward()
    if held is not None:
        held.clear_gradients()
    optimizer.step()
    if held is not None:
        held.write_back()
        held.clear_optimizers([optimizer])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_held_entries_stay_to_the_bit_and_all_others_move(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    for seed in range(3):
        step(model, optimizer, None, seed)
    held = HeldEntries(model, places())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for seed in range(3, 8):
        step(model, optimizer, held, seed)
    after = model.state_dict()
    moved = {key: after[key] != before[key] for key in before}
    for key, axis in places():
        assert not moved[key].index_select(axis, places()[key, axis]).any()
    assert moved["0.weight"].sum() == 2 * 1 * 9 and moved["0.bias"].tolist() == [False, True, False, True]
    assert moved["1.running_mean"].sum() == 2 and moved["1.running_var"].all() and moved["3.weight"].sum() == 3 * 12


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_forget_held_entries(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    step(model, optimizer, None, 0)
    buffers = list(optimizer_buffers([optimizer], model[0].weight))
    assert len(buffers) == {"sgd": 1, "nesterov": 1, "adam": 2, "adamw": 3}[name]
    HeldEntries(model, {("0.weight", 0): ROWS}).clear_optimizers([optimizer])
    for buffer in buffers:
        assert (buffer[ROWS] == 0).all() and (buffer[[1, 3]] != 0).all()


def test_gradients_of_held_entries_are_cleared_before_they_are_clipped():
    model = network()
    held = HeldEntries(model, places())
    model(torch.randn(4, 2, 2, 2)).square().sum().backward()
    held.clear_gradients()
    gradient = model[0].weight.grad
    assert (gradient[ROWS] == 0).all() and (gradient[:, COLUMNS] == 0).all() and (gradient[1, 0] != 0).all()


def test_the_state_holds_the_values_of_its_time():
    model = network()
    held = HeldEntries(model, places())
    wanted = model[0].weight.detach().clone()
    state = held.state_dict()
    other = network()
    with torch.no_grad():
        other[0].weight += 1
    again = HeldEntries.from_state(other, state)
    again.write_back()
    assert torch.equal(other[0].weight[ROWS], wanted[ROWS])
    assert torch.equal(other[0].weight[[1, 3], 0], wanted[[1, 3], 0] + 1)


def test_nothing_is_held_by_none_and_tensors_are_found_by_name():
    model = network()
    empty = HeldEntries(model, {})
    empty.write_back()
    empty.clear_gradients()
    assert len(empty) == 0 and len(HeldEntries(model, places())) == 6
    assert find_tensor(model, "1.running_mean") is model[1].running_mean
