import pytest
import shared_layers
import torch
from networks import CHAIN_INPUT, block, chain
from torch import nn

from decomp.execution.footprint import measure
from decomp.execution.replay import InMemory, Replay
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.decomposition.spill_store import SpillStore
from decomp.surgery.narrow_network import shrink


def replay_of(module, shape, n=23, **options):
    images = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
    view = NetworkGraph(trace(module), shape)
    return images, view, Replay(view.module, lambda a, b: images[a:b], n, batch_size=5, **options)


@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize(("make", "shape"), [(chain, CHAIN_INPUT), (block, (3, 8, 8))])
def test_replay_gives_what_the_layers_read_with_and_without_keeping(make, shape, budget):
    images, view, replay = replay_of(make(), shape, budget=budget)
    seen = {}
    for layer in view.layers:
        module = view.module.get_submodule(layer.name)

        def remember(module, inputs, output, name=layer.name):
            seen[name] = inputs[0].clone()

        module.register_forward_hook(remember)
    with torch.no_grad():
        wanted = view.module(images)
    for layer in view.layers:
        view.module.get_submodule(layer.name)._forward_hooks.clear()
    for layer in view.layers:
        replay.advance(view.node(layer))
        # Twice: in-place operations further on must not spoil what is kept.
        for _ in range(2):
            got = torch.cat([x for _, _, x in replay.inputs(view.node(layer))])
            assert torch.allclose(got, seen[layer.name], atol=1e-5)
        outputs = torch.cat([y for _, _, y in replay.outputs()])
        assert torch.allclose(outputs, wanted, atol=1e-5)


def test_keeping_values_saves_work():
    _, view, kept = replay_of(chain(), CHAIN_INPUT, budget=1 << 30)
    _, _, lost = replay_of(chain(), CHAIN_INPUT, budget=0)
    for replay in (kept, lost):
        names = {layer.node for layer in view.layers}
        for node in [node for node in replay.nodes if node.name in names]:
            replay.advance(node)
            list(replay.inputs(node))
    assert kept.forward_images <= 23 * 1.01 < lost.forward_images


def test_visit_sees_values_before_anything_changes_them_in_place():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True))
    images, view, replay = replay_of(module, (1, 4, 4))
    node = view.node(view.layers[0])
    values = []
    for _, _, _, value, other in replay.visit({node}):
        assert other is None
        values.append(value.clone())
    with torch.no_grad():
        assert torch.allclose(torch.cat(values), module[0](images), atol=1e-6)
    assert torch.cat(values).min() < 0


def test_narrowed_values_are_those_of_a_narrow_producer():
    images, view, replay = replay_of(chain(), CHAIN_INPUT)
    for name, keep in (("3", torch.tensor([0, 2, 5])), ("13", torch.tensor([1, 4]))):
        layer = view.layer(name)
        replay.advance(view.node(layer))
        space = layer.input_space
        before = torch.cat([x for _, _, x in replay.inputs(view.node(layer))])
        replay.narrow(view.columns_kept(layer, keep))
        after = torch.cat([x for _, _, x in replay.inputs(view.node(layer))])
        wanted = before.reshape(23, space.width, -1)[:, keep].reshape(after.shape)
        assert torch.equal(after, wanted)
        shrink(view.module, view.spaces, {view.own_space(layer).name: keep.numpy()})
        fresh = Replay(view.module, lambda a, b: images[a:b], 23, batch_size=5)
        again = torch.cat([x for _, _, x in fresh.inputs(view.node(layer))])
        assert torch.allclose(again, after, atol=1e-5)


def run_through(replay, view):
    """Everything that a replay gives on its way through all layers, moving its stored values along."""
    seen = []
    for layer in view.layers:
        node = view.node(layer)
        replay.advance(node)
        seen += [x.clone() for _, _, x in replay.inputs(node)]
    return seen + [y.clone() for _, _, y in replay.outputs()]


@pytest.mark.parametrize(("make", "shape"), [(chain, CHAIN_INPUT), (block, (3, 8, 8))])
@pytest.mark.parametrize("memory", [0, 3000, 1 << 30])
def test_a_store_that_spills_to_disk_gives_the_same_bits_as_one_in_memory(make, shape, memory, tmp_path):
    module = make()
    _, view, in_memory = replay_of(module, shape, store=InMemory(1 << 30))
    store = SpillStore(memory, 1 << 30, tmp_path / "spilled", least_work=0.0)
    _, same, spilling = replay_of(module, shape, store=store)
    wanted, got = run_through(in_memory, view), run_through(spilling, same)
    assert len(got) == len(wanted) and all(torch.equal(a, b) for a, b in zip(got, wanted))
    assert (store.most_on_disk > 0) == (memory < 1 << 30)
    assert spilling.forward_images == in_memory.forward_images
    store.clear()
    assert not list((tmp_path / "spilled").glob("*"))


def test_values_beyond_the_budget_are_not_stored():
    _, view, replay = replay_of(chain(), CHAIN_INPUT, store=InMemory(0))
    replay.advance(view.node(view.layers[3]))
    list(replay.inputs(view.node(view.layers[3])))
    first = replay.forward_images
    list(replay.inputs(view.node(view.layers[3])))
    # advance has run the first batch of 5 before it was refused; both readings then start at the image.
    place = replay.nodes.index(view.node(view.layers[3]))
    share = place / len(replay.nodes)
    assert first == pytest.approx((23 + 5) * share) and replay.forward_images == pytest.approx((46 + 5) * share)


def test_a_step_that_saves_little_is_not_stored():
    module, shape = chain(), CHAIN_INPUT
    work = measure(trace(module), torch.zeros(1, *shape)).work
    store = InMemory(1 << 30)
    store.least_work = 1.0
    _, view, replay = replay_of(module, shape, store=store, work=work)
    replay.advance(view.node(view.layers[-1]))
    assert replay.forward_images == 0
    store.least_work = 0.5
    replay.advance(view.node(view.layers[-1]))
    assert replay.forward_images == pytest.approx(23 * sum(work[: replay.nodes.index(view.node(view.layers[-1]))]))


def test_the_store_in_memory_gives_copies_and_can_be_emptied():
    store = InMemory(100)
    assert store.admits(100) and not store.admits(101)
    store.put(0, {"a": torch.zeros(3), "n": 5})
    store.get(0)["a"].fill_(1)
    assert store.get(0)["a"].tolist() == [0, 0, 0] and store.get(0)["n"] == 5
    store.clear()
    with pytest.raises(KeyError):
        store.get(0)


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        y = self.one(x)
        return y + self.two(torch.relu(y))


@pytest.mark.parametrize("advanced", [False, True])
def test_the_value_beside_is_that_of_the_same_images(advanced):
    module = Skip()
    images, view, replay = replay_of(module, (2, 4, 4))
    node, beside = view.node(view.layer("two")), view.node(view.layer("one"))
    if advanced:
        replay.advance(node)
    with torch.no_grad():
        y = module.one(images)
    pairs = [pair for _, _, pair in replay.inputs(node, beside)]
    assert torch.allclose(torch.cat([x for x, _ in pairs]), y.relu(), atol=1e-6)
    assert torch.allclose(torch.cat([other for _, other in pairs]), y, atol=1e-6)
    # While visiting, too: the values beside are those at the moment of the visit.
    visited = [(value.clone(), other.clone()) for *_, value, other in replay.visit({node}, {node: beside})]
    with torch.no_grad():
        assert torch.allclose(torch.cat([value for value, _ in visited]), module.two(y.relu()), atol=1e-5)
    assert torch.allclose(torch.cat([other for _, other in visited]), y, atol=1e-6)


def test_channels_narrowed_twice_are_those_of_both_selections():
    _, view, replay = replay_of(chain(), CHAIN_INPUT)
    layer = view.layer("3")
    replay.advance(view.node(layer))
    before = torch.cat([x for _, _, x in replay.inputs(view.node(layer))])
    node = view.node(layer).args[0]
    replay.narrow({node: torch.tensor([1, 3, 4])})
    replay.narrow({node: torch.tensor([0, 2])})
    after = torch.cat([x for _, _, x in replay.inputs(view.node(layer))])
    assert torch.equal(after, before[:, [1, 4]])


@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize("name", shared_layers.SHARED)
def test_the_inputs_of_all_calls_are_those_of_a_forward_pass(name, budget):
    images, view, replay = replay_of(shared_layers.make(name), shared_layers.INPUT, budget=budget)
    for layer in view.layers:
        seen, module = [], view.module.get_submodule(layer.name)
        hook = module.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0].clone()))
        with torch.no_grad():
            view.module(images)
        hook.remove()
        replay.advance(view.node(layer))
        got = {node: [] for node in view.calls(layer)}
        for _, _, node, x, other in replay.call_inputs(view.calls(layer)):
            assert other is None
            got[node].append(x.clone())
        assert len(seen) == len(got) == len(layer.calls)
        for parts, wanted in zip(got.values(), seen):
            assert torch.allclose(torch.cat(parts), wanted, atol=1e-5)


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_parts_of_the_batches_together_give_the_values_of_all(budget):
    _, view, whole = replay_of(chain(), CHAIN_INPUT, budget=budget)
    parts = [
        replay_of(chain(), CHAIN_INPUT, budget=budget, own=lambda n, own=own: own) for own in (range(1, 3), range(3, 5))
    ]
    assert parts[0][2].batches() == [(5, 10), (10, 15)] and parts[1][2].batches() == [(15, 20), (20, 23)]
    for layer in view.layers[:3]:
        whole.advance(view.node(layer))
        for _, own, replay in parts:
            replay.advance(own.node(own.layer(layer.name)))
        wanted = {(a, b): x for a, b, x in whole.inputs(view.node(layer))}
        for _, own, replay in parts:
            for a, b, x in replay.inputs(own.node(own.layer(layer.name))):
                assert torch.equal(x, wanted[a, b])
    if budget:  # otherwise each first tries with one batch whether values can be stored
        images = sum(replay.forward_images for *_, replay in parts)
        assert images == pytest.approx(whole.forward_images * 18 / 23)
