"""Network slimming: accuracy against the share of channels that are removed, before any fine-tuning.

    python -m benchmarks.slimming --out slimming
    python -m benchmarks.slimming --out slimming-vgg --model zoo:vgg-bn --images 54000 --epochs 15

One network is trained without and with the penalty on scale factors, from the same weights and on the same images in
the same order; then the channels with the smallest scale factors of all layers are removed, at several ratios, and the
test images are read.
What is finished is kept in OUT/results.json, so a call that was interrupted can be repeated.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import torch

from benchmarks.common import machine, markdown, write_csv
from decomp.criteria.choose import by_rank
from decomp.criteria.ranking import Limits
from decomp.criteria.scale_factors import scaled_channels
from decomp.criteria.scores import score
from decomp.data import zoo
from decomp.data.sources import open_source
from decomp.graph.tracing import trace
from decomp.modules.copies import deep_copy
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.measure.accuracy import accuracy
from decomp.pipelines.reporting.figure_style import ACCENT, DARK, STYLE
from decomp.pipelines.training.loop import fit
from decomp.pipelines.training.recipe import Recipe
from decomp.pipelines.training.sparse import NEAR_ZERO, SparseTraining, shrink_budget
from decomp.schemes.sparsity import ScalePenalty, start_scales
from decomp.surgery.narrow_network import shrink

matplotlib.use("Agg")
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FLOOR = 0.05


def train(options, source, sparsity):
    """A trained network in evaluation mode, the penalty's budget, and the share of its scale factors near 0."""
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        module = zoo.build(options.model.removeprefix("zoo:"), source.n_classes, source.input_shape)
    start_scales(module)
    penalty = ScalePenalty(module, source.input_shape, sparsity or 1.0)
    kept = torch.randperm(len(source.train), generator=torch.Generator().manual_seed(options.seed))[: options.images]
    recipe = Recipe(epochs=options.epochs, learning_rate=options.lr, batch_size=options.batch_size, seed=options.seed)
    fit(
        module, recipe, stage="slimming", n_images=len(kept),
        batches=lambda order, size, augment: source.train.batches(kept[order], size, augment_seed=augment),
        loss=lambda network, images, labels: torch.nn.functional.cross_entropy(network(images), labels),
        hooks=[SparseTraining(penalty, options.proximal).hooks()] if sparsity else [], reporter=Reporter(),
    )  # fmt: skip
    near = float((penalty.values().abs() < NEAR_ZERO).double().mean())
    return module.eval(), shrink_budget(sparsity, recipe, len(kept)), near


def curve(module, source, n_test):
    """Accuracy on test images and kept channels at every ratio."""
    found = scaled_channels(trace(module, shape=source.input_shape), source.input_shape)
    scores = score(found.network, found.graph.spaces, found.spaces, "bn-scale")
    rows, test = [], torch.arange(min(n_test, len(source.test)))
    for ratio in RATIOS:
        choice = by_rank(scores, ratio, Limits(floor=FLOOR))
        network = deep_copy(found.network)
        shrink(network, found.graph.spaces, choice.keep)
        share = accuracy(network, source.test, test, torch.device("cpu"))
        rows.append({
            "ratio": ratio, "channels": sum(choice.counts.values()), "accuracy": share,
            "at a limit": len(choice.limited),
        })  # fmt: skip
    return rows


def draw(curves, path):
    """One line for each training."""
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6.4, 3.8))
        for (name, rows), color in zip(curves.items(), (DARK, ACCENT, "0.6")):
            axes.plot([row["ratio"] for row in rows], [100 * row["accuracy"] for row in rows], "o-", color=color,
                      label=name)  # fmt: skip
        axes.set_xlabel("share of the channels removed, smallest scale factors first")
        axes.set_ylabel("test accuracy before fine-tuning, %")
        axes.set_ylim(0, 100)
        axes.legend(loc="lower left")
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="zoo:c3-32")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--sparsity", type=float, default=0.01)
    parser.add_argument("--proximal", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    source = open_source(options.data)
    for sparsity in (0.0, options.sparsity):
        name = f"λ = {sparsity:g}"
        if name not in results:
            module, budget, near = train(options, source, sparsity)
            rows = curve(module, source, options.test_images)
            results[name] = {"budget": budget, "near zero": near, "rows": rows}
            kept.write_text(json.dumps(results, indent=2, ensure_ascii=False))
    curves = {name: result["rows"] for name, result in results.items()}
    table = [
        {"removed": f"{ratio:.0%}", **{name: f"{100 * rows[i]['accuracy']:.1f}" for name, rows in curves.items()}}
        for i, ratio in enumerate(RATIOS)
    ]
    fields = ["removed", *curves]
    write_csv(options.out / "curve.csv", fields, table)
    draw(curves, options.out / "curve.png")
    budgets = ", ".join(f"{name}: budget {r['budget']:.2g}, {r['near zero']:.0%} near 0" for name, r in results.items())
    text = f"{machine()}; {budgets}\n\n{markdown(fields, table)}\n"
    (options.out / "curve.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
