"""Results in the form of the network that was given: class, precision, layout, trainability."""

import pytest
import torch
from networks import Detector, block, chain
from torch import nn

import decomp
from decomp.data.formats import network_file
from decomp.graph.tracing import trace
from decomp.pipelines.recipes.give_back import as_it_came, in_class_of

SHAPE, GREY = (3, 8, 8), (1, 8, 8)


def images(n):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_a_class_that_does_not_take_the_edits_gives_a_traced_network(tmp_path):
    network = trace(block())
    network_file.save(network, tmp_path / "net", input_shape=SHAPE)
    same, reason = in_class_of(block(), tmp_path / "net")
    assert type(same) is type(block()) and reason == ""
    other = chain()
    alone, reason = in_class_of(other, tmp_path / "net")
    assert type(alone) is not type(other)
    assert reason.startswith("a traced network, not a Sequential: the layers do not go into that class (does not fit")
    hooked = block()
    hooked.register_forward_hook(lambda module, inputs, output: output * 2)
    alone, reason = in_class_of(hooked, tmp_path / "net")
    assert "not a Block: the layers do not go into that class (with the exchanged modules its outputs are" in reason
    assert torch.equal(alone(images(2)), network(images(2)))


def test_a_traced_part_goes_into_a_copy_of_the_bigger_model(tmp_path):
    whole = nn.Sequential(block(), nn.Softmax(1)).eval()
    other = block()
    nn.init.normal_(other.head.weight)
    network_file.save(trace(other), tmp_path / "net", input_shape=SHAPE, part="0")
    whole[0].register_forward_hook(lambda module, inputs, output: output * 2)  # so that its class is not taken
    result, reason = in_class_of(whole, tmp_path / "net")
    assert reason.startswith("0 is a traced network, not a Block")
    assert torch.allclose(result(images(2)), other(images(2)).softmax(1))
    assert not torch.allclose(whole[0].head.weight, other.head.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_and_layout_are_those_of_the_original(dtype):
    original = block().to(dtype).to(memory_format=torch.channels_last)
    result = as_it_came(block(), original)
    assert {value.dtype for value in result.parameters()} == {dtype}
    assert result.conv1.weight.stride() == original.conv1.weight.stride() != block().conv1.weight.stride()
    assert as_it_came(block(), block()).conv1.weight.is_contiguous()


def test_layers_that_alone_have_their_channels_last_are_given_back_so():
    original, result = block(), block()
    original.conv1.to(memory_format=torch.channels_last)
    result.conv1 = nn.Sequential(nn.Conv2d(8, 3, 3), nn.Conv2d(3, 12, 3))
    result = as_it_came(result, original)
    assert [conv.weight.is_contiguous() for conv in (*result.conv1, result.stem, result.conv2)] == [0, 0, 1, 1]


def test_layers_are_trainable_where_they_were():
    original, network = block(), block()
    original.conv1.requires_grad_(False)
    original.conv2.weight.requires_grad_(False)
    network.conv1 = nn.Sequential(nn.Conv2d(8, 3, 1, bias=False), nn.Conv2d(3, 12, 3, padding=1))
    network.conv2 = nn.Sequential(nn.Conv2d(12, 3, 1), nn.Conv2d(3, 8, 3, padding=1))
    as_it_came(network, original)
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert {name for name in frozen if name.startswith("conv1")} == {"conv1.0.weight", "conv1.1.weight", "conv1.1.bias"}
    assert {name for name in frozen if name.startswith("conv2")} == {
        f"conv2.{n}.{p}" for n in (0, 1) for p in ("weight", "bias")
    }
    assert network.stem.weight.requires_grad
    assert not any(value.requires_grad for value in as_it_came(block(), block().requires_grad_(False)).parameters())


def test_the_backbone_of_a_detector_is_put_back(tmp_path):
    detector = Detector().eval()
    network_file.save(trace(detector.backbone), tmp_path / "net", input_shape=GREY, part="backbone")
    result, reason = in_class_of(detector, tmp_path / "net")
    assert type(result) is Detector and reason == ""


@pytest.mark.parametrize("used", [True, False])
def test_a_branch_that_nobody_uses_is_told_where_the_class_computes_it(used, tmp_path):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.aux, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 16, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            aux = self.aux(x) if self.training or not used else None
            y = self.b(self.a(x).relu())
            return (y, aux) if self.training else y

    torch.manual_seed(0)
    images, place = torch.randn(40, 3, 10, 10), tmp_path / "run"
    network, report = decomp.compress(Branch().eval(), images, 1.2, run=place, quiet=True)
    assert type(network) is Branch
    extra = 16 * 27 * 64 / 1e6
    told = [note for note in report.notes if f"also computes {extra:.2f} M multiply-accumulates" in note]
    assert len(told) == (0 if used else 1)
    # The stage says the same, for the command line.
    lines = decomp.decompose(place, speedup=1.2).lines()
    assert [line for line in lines if "whose result nobody uses" in line] == told


class Decoder(nn.Module):
    """A transposed convolution that is given its output size."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 12, 3, 2, 1), nn.ConvTranspose2d(12, 12, 3, 2, 1)
        self.out = nn.Conv2d(12, 3, 1)

    def forward(self, x):
        return self.out(self.up(self.down(x).relu(), output_size=x.shape[2:]).relu())


def test_a_chain_takes_the_place_of_a_transposed_convolution_with_an_output_size(tmp_path):
    torch.manual_seed(0)
    model, images = Decoder().eval(), torch.randn(40, 3, 10, 9)
    network, report = decomp.compress(model, images, 1.3, steps=["spatial", "channel"], n_points=4, quiet=True)
    assert type(network) is Decoder and isinstance(network.up, nn.Sequential) and report.notes == []
    decomp.save(network, tmp_path / "saved")
    with torch.no_grad():
        wanted = network(images)
        assert torch.equal(decomp.load(tmp_path / "saved", into=Decoder())(images), wanted)
        torch.testing.assert_close(decomp.load(tmp_path / "saved")(images), wanted)
