"""Products of activations, against their sums written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from decomp.cost.count import cost
from decomp.cost.products import LINEAR_CALLS, PRODUCTS

N, C, HEADS = 12, 8, 2  # positions of a 3×4 map, channels, heads
BOTH = {PRODUCTS: 2 * N * N * C}  # each position meets each, and each is a sum over all


class Attention(nn.Module):
    """A map as a sequence of its positions, multiplied with itself in one of several ways."""

    def __init__(self, how):
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.randn(5, C))
        self.heads = nn.MultiheadAttention(C, HEADS, batch_first=True)

    def forward(self, x):
        t = x.flatten(2).transpose(1, 2)
        return self.how(self, t)


def scores(t):
    return torch.softmax(t @ t.transpose(1, 2), -1)


def functional_attention(module, t):
    t, heads = t.transpose(0, 1), module.heads
    inner, outer = (heads.in_proj_weight, heads.in_proj_bias), (heads.out_proj.weight, heads.out_proj.bias)
    return F.multi_head_attention_forward(t, t, t, C, HEADS, *inner, None, None, False, 0.0, *outer, False)[0]


PROJECTIONS = 4 * N * C * C
WAYS = {
    "matmul": (lambda m, t: scores(t) @ t, BOTH),
    "matmul by name": (lambda m, t: torch.matmul(scores(t), t), BOTH),
    "bmm": (lambda m, t: torch.bmm(torch.bmm(t, t.transpose(1, 2)), t), BOTH),
    "einsum": (lambda m, t: torch.einsum("bqk,bkc->bqc", torch.einsum("bqc,bkc->bqk", t, t), t), BOTH),
    "of the channels": (lambda m, t: t.transpose(1, 2) @ t, {PRODUCTS: N * C * C}),
    "baddbmm": (lambda m, t: torch.baddbmm(t[:, :, :1], t, t.transpose(1, 2)), {PRODUCTS: N * N * C}),
    "scaled": (lambda m, t: F.scaled_dot_product_attention(t[None], t[None], t[None]), BOTH),
    "heads": (lambda m, t: m.heads(t, t, t)[0], {"heads": PROJECTIONS + 2 * N * N * C}),
    "heads without scores": (
        lambda m, t: m.heads(t, t, t, need_weights=False)[0], {"heads": PROJECTIONS + 2 * N * N * C}
    ),
    "heads as a function": (functional_attention, {LINEAR_CALLS: PROJECTIONS, **BOTH}),
    "linear as a function": (lambda m, t: F.linear(t, m.weight), {LINEAR_CALLS: N * C * 5}),
    "elementwise": (lambda m, t: torch.einsum("bqc,bqc->bqc", t, t) * t.sigmoid(), {}),
    "outer": (lambda m, t: t[:, :, :1] @ t[:, :1, :1], {}),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_products_are_counted_by_what_they_sum_up(way):
    how, wanted = WAYS[way]
    counted = cost(Attention(how).eval(), (C, 3, 4))
    assert counted.per_layer == wanted and counted.macs == sum(wanted.values())


def test_keys_of_another_length_and_values_of_another_width_are_counted_by_their_own_sizes():
    def how(module, t):
        return F.scaled_dot_product_attention(t[None], t[None, :, :7], t[None, :, :7, :5])

    assert cost(Attention(how).eval(), (C, 3, 4)).per_layer == {PRODUCTS: N * 7 * C + N * 7 * 5}


def test_a_layer_that_is_counted_by_itself_is_not_counted_again():
    linear = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 5)).eval()
    assert cost(linear, (3, 2, 2)).per_layer == {"0": 48, "2": 80}
    transformer = nn.TransformerEncoderLayer(C, HEADS, 16, batch_first=True)
    module = nn.Sequential(nn.Flatten(2), transformer).eval()
    wanted = {"1.self_attn": 4 * 3 * C * C + 2 * 9 * C, "1.linear1": 3 * C * 16, "1.linear2": 3 * C * 16}
    assert cost(module, (3, 2, 4)).per_layer == wanted
