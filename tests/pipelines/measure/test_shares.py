import pytest
import torch
from torch import nn

from decomp.errors import UsageError
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.measure.class_counts import ClassCounts
from decomp.pipelines.measure.shares import images_at_a_time, measure_shares, topk_hits


@pytest.mark.parametrize("k", [1, 2, 5, 7, 20])
def test_topk_agrees_with_a_naive_count(k):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 4, (60, 7), generator=generator).float()  # with many ties
    labels = torch.randint(0, 7, (60,), generator=generator)
    hits = 0
    for row, label in zip(logits.tolist(), labels.tolist()):
        ranked = sorted(range(7), key=lambda c: (-row[c], c))
        hits += label in ranked[:k]
    assert topk_hits(logits, labels, k) == hits


def test_an_answer_that_is_no_number_is_no_hit():
    logits = torch.tensor([[float("nan")] * 4, [0.0, 0.0, 0.0, 1.0]])
    assert topk_hits(logits, torch.tensor([0, 3]), 1) == 1


class Two(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        flat = x.flatten(1)
        return {"scores": flat[:, :3] * self.factor, "map": x * self.factor}


class First(Two):
    def forward(self, x):
        return [super().forward(x)["scores"]]


SCORES = Output("scores", "scores", (3,))
TWO = Outputs((SCORES, Output("map", "values", (1, 2, 3))))
FIRST = Outputs((Output("0", "scores", (3,)),))


def shares(networks, outputs, n=10, labels=None, batch=4):
    images = torch.randn(n, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    parts = ((images[i : i + batch], None if labels is None else labels[i : i + batch]) for i in range(0, n, batch))
    counts, quiet = ClassCounts(), Reporter(quiet=True)
    found = measure_shares(networks, parts, n, outputs, "data", torch.device("cpu"), quiet, counts)
    assert bool(counts.to_json()) == any(one.top1 is not None for one in found.values())
    return images, found


def test_several_outputs_have_a_share_each_and_no_accuracy():
    labels = torch.zeros(10, dtype=torch.long)
    images, found = shares({"original": Two(1.0), "half": Two(0.5)}, TWO, labels=labels)
    for output, y in (("scores", images.flatten(1)[:, :3].double()), ("map", images.double())):
        lost = 0.25 * y.square().sum() / (y - y.mean(0)).square().sum()
        assert found["half"].close["outputs"][output]["relative"] == pytest.approx(lost.item(), rel=1e-6)
        assert found["original"].close["outputs"][output]["relative"] == 0
    assert found["half"].close["outputs"]["scores"]["agreement"] == 1
    assert (found["half"].top1, found["half"].top5) == (None, None)


def test_class_scores_in_a_list_have_an_accuracy():
    images, found = shares({"original": First(1.0), "other": First(-1.0)}, FIRST)
    assert found["original"].top1 is None
    rows = images.flatten(1)[:, :3]
    labels = rows.argmax(1)
    labels[0] = rows[0].argmin()
    _, found = shares({"original": First(1.0), "other": First(-1.0)}, FIRST, labels=labels)
    assert found["original"].top1 == 0.9 and found["other"].top1 == 0.1 and found["other"].top5 == 1
    with pytest.raises(UsageError, match="labels must be below 3"):
        shares({"original": First(1.0)}, FIRST, labels=labels + 1)


def test_batches_of_big_images_and_outputs_are_small():
    assert images_at_a_time(FIRST, (3, 2000, 2000)) == 1
    assert images_at_a_time(FIRST, (3, 224, 224)) == 111 and images_at_a_time(FIRST, (3, 32, 32)) == 250
    assert images_at_a_time(TWO, (1, 2, 3)) == 250
    big = Outputs((Output("maps", "values", (16, 512, 512)),))
    assert images_at_a_time(big, (3, 512, 512)) == 4
    assert images_at_a_time(TWO, (3, 4000, 4000)) == 1
