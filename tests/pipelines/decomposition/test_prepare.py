import pytest
import torch
from torch import nn

from decomp.data import given
from decomp.data.models import LoadedModel
from decomp.errors import NumericalError, UsageError
from decomp.pipelines.console.options import FreezeOptions
from decomp.pipelines.decomposition.prepare import prepare

SHAPE = (3, 6, 6)


class Net(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.last = last
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.bn(self.conv(x))
        if self.last == "maps":
            return {"maps": [x, None], "mean": x.mean((1, 2, 3))}
        rows = x.mean((2, 3))
        return {
            "rows": rows,
            "classes": rows.argmax(1),
            "whole": rows.mean(),
            "sure": rows > 0,
            "one": (rows > 0).float(),
        }[self.last]


def prepared(last, labels=None, **options):
    torch.manual_seed(0)
    module = Net(last).eval()
    source = given.source_of(torch.randn(12, *SHAPE), 12)
    if labels is not None:
        source.train._labels, source.n_classes = labels, int(labels.max()) + 1
    asked = FreezeOptions(model="net", data="memory", **options)
    return module, source, prepare(LoadedModel(module, "net", SHAPE, "0" * 64, "random"), source, asked)


def test_normalisations_are_folded_and_outputs_described():
    module, source, (network, folded, outputs) = prepared("maps")
    assert folded == [("conv", "bn")]
    assert [(entry.name, entry.kind, entry.shape) for entry in outputs.each] == [
        ("maps.0", "values", (4, 4, 4)), ("mean", "values", (1,)),
    ]  # fmt: skip
    x = source.train.images([0, 1])
    assert isinstance(network.bn, nn.Identity)
    torch.testing.assert_close(network(x)["maps"][0], module(x)["maps"][0])


def test_labels_and_what_is_asked_decide_the_kind():
    labels = torch.arange(12) % 4
    kinds = [prepared("rows")[2][2], prepared("rows", labels)[2][2], prepared("rows", outputs="scores")[2][2]]
    kinds += [prepared("rows", labels, outputs="values")[2][2]]
    assert [outputs.each[0].kind for outputs in kinds] == ["values", "scores", "scores", "values"]


@pytest.mark.parametrize(
    ("last", "got"),
    [
        ("classes", "int64 .as of an argmax"),
        ("whole", "one number a batch"),
        ("sure", "bool"),
        ("one", "an output without a gradient"),
    ],
)
def test_outputs_that_no_gradient_passes_are_refused(last, got):
    with pytest.raises(UsageError, match=f"^net: .*got {got}.*; leave the last step out of the network"):
        prepared(last)


def test_the_first_layer_that_is_not_finite_is_named():
    module = Net("maps").eval()
    with torch.no_grad():
        module.conv.bias[0] = float("nan")
    loaded = LoadedModel(module, "net", SHAPE, "0" * 64, "random")
    with pytest.raises(NumericalError, match="^net, conv: the responses must be finite, got 128 of 512 values"):
        prepare(loaded, given.source_of(torch.randn(12, *SHAPE), 12), FreezeOptions(model="net", data="memory"))
