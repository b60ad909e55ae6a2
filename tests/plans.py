"""Plans of any network, for tests that need one without a survey."""

from decomp.allocation.plan import LayerPlan, limits


def halved(graph):
    """Every step of every layer at half of its largest size."""
    plans = {}
    for layer in graph.layers:
        plan = plans[layer.name] = LayerPlan(layer.name)
        for step, (field, largest, _) in limits(layer).items():
            if step not in layer.left_alone:
                setattr(plan, field, max(1, largest // 2))
    return plans
