import pytest
import torch
import torchvision
from torch import nn

from decomp.errors import UsageError
from decomp.execution.output_kinds import Output, decide_kinds, is_classifier, logits
from decomp.execution.outputs import named_tensors


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kinds(output, module=None, **options):
    found = decide_kinds(named_tensors(output), module or nn.ReLU(), **options)
    return {entry.name: entry.kind for entry in found}


def test_rows_are_values_where_nothing_is_known():
    (found,) = decide_kinds({"output": normal(8, 5)}, nn.Sequential(nn.Linear(3, 5)))
    assert found == Output("output", "values", (5,)) and found.may_be_scores


@pytest.mark.parametrize(
    ("n_classes", "columns", "kind"),
    [
        (10, 10, "scores"),
        (9, 10, "scores"),
        (None, 10, "values"),
        (10, 128, "values"),
        (10, 4, "values"),
        (1, 1, "values"),
    ],
)
def test_labels_make_scores_of_an_output_that_has_their_classes(n_classes, columns, kind):
    assert kinds(normal(8, columns), n_classes=n_classes) == {"output": kind}


def test_one_column_and_maps_are_never_scores():
    classifier = torchvision.models.squeezenet1_0(weights=None)
    for output in (normal(8, 1), normal(8), normal(8, 5, 3, 3)):
        assert kinds(output, classifier, n_classes=5) == {"output": "values"}
    assert kinds(torch.ones(8, 1)) == {"output": "values"}  # a softmax of one


def test_probabilities_and_their_logarithms_are_scores():
    rows = normal(8, 5) * 3
    for value, probabilities in ((rows.softmax(1), True), (rows.log_softmax(1), False)):
        (found,) = decide_kinds({"output": value}, nn.ReLU())
        assert (found.kind, found.probabilities) == ("scores", probabilities)
        torch.testing.assert_close(logits(value, found).softmax(1), rows.softmax(1))
    assert kinds(rows.sigmoid()) == kinds(rows) == kinds(nn.functional.normalize(rows)) == {"output": "values"}
    assert kinds(normal(8, 5, 2, 2).softmax(1)) == {"output": "values"}


def test_what_is_said_decides_over_all_that_is_known():
    rows = normal(8, 5)
    assert kinds(rows, asked="scores") == {"output": "scores"}
    assert kinds(rows.softmax(1), asked="values", n_classes=5) == {"output": "values"}
    (found,) = decide_kinds({"output": rows}, nn.ReLU(), asked="values")
    assert not found.may_be_scores
    (found,) = decide_kinds({"output": rows.softmax(1)}, nn.ReLU(), asked="scores")
    assert found.probabilities


def test_each_of_several_outputs_has_a_kind_of_its_own():
    output = {"classes": normal(8, 10), "boxes": normal(8, 4), "maps": normal(8, 10, 2, 2), "age": normal(8)}
    values = dict.fromkeys(output, "values")
    assert kinds(output) == values
    assert kinds(output, n_classes=10) == {**values, "classes": "scores"}
    assert kinds(output, asked="scores") == {**values, "classes": "scores", "boxes": "scores"}
    assert kinds(output, asked="values", n_classes=10) == values


def test_scores_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="^outputs: class scores are a row .*, got 1, 4×3×3; say values"):
        decide_kinds({"age": normal(8, 1), "maps": normal(8, 4, 3, 3)}, nn.ReLU(), asked="scores")


class Headed(nn.Sequential):
    def __init__(self, classes):
        super().__init__()
        self.num_classes = classes


class OwnForward(torchvision.models.ResNet):
    def forward(self, x):
        return self.avgpool(x)


def resnet(kind=torchvision.models.ResNet):
    return kind(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7)


def test_classifiers_are_known_by_their_number_of_classes_or_their_library():
    assert is_classifier(Headed(7), 7) and not is_classifier(Headed(7), 512) and not is_classifier(Headed(0), 512)
    assert is_classifier(resnet(), 7)
    assert not is_classifier(nn.Sequential(resnet()), 7)
    assert not is_classifier(resnet(OwnForward), 7)
    embedding = resnet()
    embedding.fc = nn.Identity()
    assert not is_classifier(embedding, 512)
    segmentation = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    assert not is_classifier(segmentation, 21)
