"""Error curves of a layer."""

import numpy as np
import pytest

from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import LayerPlan

CURVES = LayerCurves(prune=np.array([9.0, 3.0, 1.0]), spatial=np.array([8.0, 0.5]))


def test_the_loss_of_a_plan_is_the_sum_over_its_sizes():
    assert CURVES.error(LayerPlan("a", 2, 1)) == 1.5 and CURVES.error(LayerPlan("a", 1)) == 3.0
    assert CURVES.error(LayerPlan("a")) == 0.0


def test_a_size_without_a_curve_is_an_error():
    with pytest.raises(ValueError, match="a: there is no curve for channel_rank"):
        CURVES.error(LayerPlan("a", channel_rank=2))


def test_curves_are_listed_by_field_and_can_be_picked_and_mapped():
    assert [name for name, _ in CURVES.by_size()] == ["keep", "spatial_rank", "channel_rank"]
    assert CURVES.only("spatial").prune is None and CURVES.only("spatial").spatial is CURVES.spatial
    mapped = CURVES.map(lambda step, curve: curve * (2 if step == "prune" else 1))
    assert mapped.prune.tolist() == [18, 6, 2] and mapped.spatial.tolist() == [8, 0.5] and mapped.channel is None


def test_pruning_alone_leaves_no_rank_to_choose():
    assert CURVES.available and CURVES.ranked
    assert CURVES.only("prune").available and not CURVES.only("prune").ranked
    assert not LayerCurves().available
