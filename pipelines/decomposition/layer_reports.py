"""Lines that announce a plan layer by layer."""


def announce(plan, view, reporter):
    """List before any work what each layer gets and what is left alone, with the reason."""
    width = max(len(layer.name) for layer in view.layers)
    reporter.step(f"plan: {plan.words()}")
    for item in plan.layers:
        reasons = "; ".join(f"no {step}: {why}" for step, why in item.left_alone.items())
        held = f"  [{item.limits['skip']}]" if "skip" in item.limits else ""
        reporter.step(f"  {item.layer:<{width}}  {item.words()}{held}" + (f"  ({reasons})" if reasons else ""))
    for name in view.functional_convs:
        reporter.step(f"  {name:<{width}}  left alone: a functional convolution, not a module")
