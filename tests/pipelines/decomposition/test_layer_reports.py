"""Lines about a plan and about its solved layers."""

from networks import CHAIN_INPUT, chain

from decomp.allocation.plan import LayerPlan, Plan
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.decomposition.layer_reports import announce, layer_words, more_images, reason_words
from tests.pipelines.digit_runs import Collected


def plan_of(items):
    return Plan(2.0, ("prune",), "joint", items, macs_before=400, macs_after=200)


def test_every_layer_is_announced_with_its_sizes_its_option_and_the_reasons_against_steps():
    graph, reporter = NetworkGraph(trace(chain()), CHAIN_INPUT), Collected()
    items = [LayerPlan(layer.name, left_alone=dict(layer.left_alone)) for layer in graph.layers]
    items[1].keep, items[1].spatial_rank = 5, 7
    items[2].limits = {"skip": "--skip 5"}
    announce(plan_of(items), graph, reporter)
    first, *lines = reporter.messages
    assert first.startswith("plan: ") and len(lines) == len(graph.layers)
    for layer, item, line in zip(graph.layers, items, lines):
        assert line.split()[0] == layer.name and item.words() in line
        assert all(line.count(why) == 1 for why in layer.left_alone.values())
    assert "reads 5 channels, spatial rank 7" in lines[1] and "[--skip 5]" in lines[2] and "[" not in lines[3]


def test_steps_of_one_reason_are_named_together():
    assert reason_words({"prune": "reads the image itself"}) == "no prune: reads the image itself"
    wide = {"spatial": "a 1×1 kernel has nothing to split", "prune": "too wide", "channel": "too wide"}
    assert reason_words(wide) == "no spatial: a 1×1 kernel has nothing to split; no prune, channel: too wide"
    depthwise = dict.fromkeys(("spatial", "channel", "prune"), "depthwise convolution")
    assert reason_words(depthwise) == "left alone: depthwise convolution" and reason_words({}) == ""


def test_a_convolution_without_a_module_is_announced_as_left_alone():
    graph, reporter = NetworkGraph(trace(chain()), CHAIN_INPUT), Collected()
    graph.functional_convs = ["conv2d"]
    announce(plan_of([LayerPlan(layer.name) for layer in graph.layers]), graph, reporter)
    assert reporter.messages[-1].split() == "conv2d unchanged: a functional convolution, not a module".split()


def test_a_solved_layer_is_reported_with_the_errors_after_its_last_step():
    layer = NetworkGraph(trace(chain()), CHAIN_INPUT).layers[1]
    sizes, errors = LayerPlan(layer.name, keep=5), {"before": {"fitted": 0.5}, "prune": {"fitted": 0.031}}
    assert layer_words(layer, sizes, {"errors": errors}) == "3: reads 5 channels; error of its outputs 3.10 %"
    errors["prune"]["held_out"] = 0.04
    assert layer_words(layer, sizes, {"errors": errors}).endswith(
        "error of its outputs 3.10 %, on held-out images 4.00 %"
    )


def test_the_errors_of_either_half_tell_what_twice_as_many_images_bring():
    # Errors 4 + 12/n on new images and 4 - 12/n on fitted ones: of a half, n = 6, they are 6 and 2.
    reports = [{"halves": {"fitted": 0.02, "other": 0.06}}, {"halves": {"fitted": 0.02, "other": 0.06}}, {}]
    now, then = 0.04 + 0.12 / 12, 0.04 + 0.12 / 24
    (line,) = more_images(reports, 1200)
    assert f"about {100 * (1 - then / now):.2g} % lower, each layer by itself" in line
    assert "either half of the 1,200 fitted ones" in line
    assert line.startswith("warning: few images for this network: with twice as many")


def test_few_images_are_warned_of_once():
    reports = [{"halves": {"fitted": 0.02, "other": 0.06}}]
    assert more_images(reports, 90, "warning: the 90 fitted images are too few for this network") == [
        more_images(reports, 90)[0].partition(": few images for this network: ")[2]
    ]


def test_a_warning_of_few_images_is_not_followed_by_a_line_that_says_the_opposite():
    reports = [{"halves": {"fitted": 0.03, "other": 0.035}}]
    assert len(more_images(reports, 180)) == 1
    assert more_images(reports, 180, "warning: the 180 fitted images are too few for this network") == []


def test_halves_that_agree_are_told_without_a_warning_and_layers_without_halves_not_at_all():
    (line,) = more_images([{"halves": {"fitted": 0.03, "other": 0.06}}], 90)
    assert line.startswith("with twice as many images")
    assert more_images([{}], 90) == [] == more_images([{"halves": {"fitted": 0.0, "other": 0.0}}], 90)
