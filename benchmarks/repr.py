"""RePr against standard training on paired seeds, with ablations: table, numbers and pictures.

    python -m benchmarks.repr --out repr-digits
    python -m benchmarks.repr --out repr-c3 --data cifar10:DIR --model c3-32 --epochs 100 --s1 20 --s2 10 --lr 0.01
    python -m benchmarks.repr --out repr-resnet --data fashion-mnist --n-train 3000 --halve --model resnet20-fashion

A pair of trainings has the same seed: the same weights at the start, held-out images, order and augmentation, and
exactly as many steps of the optimizer. A tenth of the training images is held out; test images are read once, after the
training, with the weights of the last epoch and with those that were best on the held-out images. What is finished is
kept in OUT/results.json, so a call that was interrupted can be repeated.
"""

import argparse
import json
import math
import time
from pathlib import Path

import matplotlib
import torch
from scipy import stats

from benchmarks.common import machine, markdown, write_csv
from decomp.data import zoo
from decomp.data.sources import open_source
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.measure.accuracy import accuracy
from decomp.pipelines.reporting.figure_style import ACCENT, DARK, STYLE
from decomp.pipelines.reporting.figures import draw
from decomp.pipelines.reporting.tables import Table
from decomp.pipelines.reporting.training_tables import epochs_table
from decomp.pipelines.training.hold_out import hold_out
from decomp.pipelines.training.hooks import Hooks
from decomp.pipelines.training.loop import fit
from decomp.pipelines.training.recipe import Recipe
from decomp.pipelines.training.repr_hooks import NAME, ReprHooks, on_off_rows
from decomp.schemes import RePr
from decomp.schemes.overlap_metrics import live_overlaps

matplotlib.use("Agg")
STANDARD = "standard"
#: Settings of the scheme by the name of the arm; the first is the control.
ARMS = {
    STANDARD: None, "RePr": {}, "ranking reversed": {"order": "reversed"}, "random drop": {"order": "random"},
    "random new filters": {"method": "random"}, "next slice kept": {"next_slice": "keep"},
}  # fmt: skip
MEASURES = {"last": "test, last epoch", "best": "test, best on held-out"}


def build(name, shape, n_classes, seed):
    """A network with random weights: ``c3-N`` with N filters in each of three layers, or one of the zoo."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name.startswith("c3-"):
            return zoo.three_convolutions(int(name.removeprefix("c3-")), 0.0, name)(n_classes, shape)
        return zoo.build(name, n_classes=n_classes, input_shape=shape)


def chosen_images(source, options, seed):
    """Images to train on and held-out ones: all training images, or as many of the first ones as are asked for.

    The images of all sources stand in an order without meaning; every seed has the same ones, and holds out others.
    """
    return hold_out(min(len(source.train), options.n_train or len(source.train)), seed)


def halved(batches):
    """Batches of images of half the height and width, each pixel the mean of four."""

    def made(*asked, **options):
        for images, labels in batches(*asked, **options):
            yield torch.nn.functional.avg_pool2d(images, 2), labels

    return made


def train(options, source, arm, seed):
    """One training; returns its accuracies, times and history."""
    shape, batches = source.input_shape, source.train.batches
    if options.halve:
        shape, batches = (shape[0], shape[1] // 2, shape[2] // 2), halved(batches)
    module = build(options.model, shape, source.n_classes, seed)
    trained_on, held_out = chosen_images(source, options, seed)
    n_train, device = len(trained_on), options.device

    def measure(network, split=source.train, indices=held_out):
        if options.halve:
            network = torch.nn.Sequential(torch.nn.AvgPool2d(2), network)
        return accuracy(network, split, indices, torch.device(device))

    def validate(network):
        return {"score": (value := measure(network)), "validation_accuracy": value}

    hooks, settings = None, ARMS[arm]
    if settings is not None:
        scheme = RePr(
            module, shape, epochs=options.epochs, s1=options.s1, s2=options.s2, drop=options.drop,
            seed=seed, **settings,
        )  # fmt: skip
        hooks = ReprHooks(scheme, measure, len(held_out))
    recipe = Recipe(
        epochs=options.epochs, learning_rate=options.lr, batch_size=options.batch_size, schedule="constant",
        warmup_epochs=0, seed=seed,
    )  # fmt: skip
    training = fit(
        module, recipe, stage="repr", n_images=n_train, validate=validate, n_validation=len(held_out),
        batches=lambda order, size, augment: batches(
            trained_on[order], size, augment_seed=augment if options.augment else None
        ),
        loss=lambda network, images, labels: torch.nn.functional.cross_entropy(network(images), labels),
        hooks=[] if hooks is None else [Hooks.of(hooks, NAME)], device=device,
    )  # fmt: skip
    every = torch.arange(len(source.test))
    convolutions = [part for part in module.modules() if isinstance(part, torch.nn.Conv2d) and part.groups == 1][1:]
    overlap = torch.cat([live_overlaps(part.weight.cpu()) for part in convolutions]).mean()
    result = {"last": measure(module, source.test, every), "overlap": float(overlap)}
    module.load_state_dict(training.best_state)
    seconds = sorted(line["seconds"] for line in training.history[1:])
    return result | {
        "best": measure(module, source.test, every), "best_epoch": training.best_epoch,
        "seconds_per_epoch": seconds[len(seconds) // 2], "history": training.history,
        "steps": options.epochs * max(1, n_train // options.batch_size),
        "scheme": None if hooks is None else hooks.record(),
    }  # fmt: skip


def interval(differences):
    """Mean, standard error, and half the width of the 95 % interval (Student's t) of paired differences."""
    n = len(differences)
    mean = sum(differences) / n
    if n < 2:
        return mean, math.nan, math.nan
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    return mean, error, error * float(stats.t.ppf(0.975, n - 1))


def table(results, arms, seeds):
    """Rows of the table: accuracies, and differences from the control, all in points of a percent."""
    rows = []
    for arm in arms:
        runs = [results[f"{arm}/{seed}"] for seed in range(seeds)]
        row = {"training": arm, "seeds": seeds, "steps": runs[0]["steps"]}
        for name, title in MEASURES.items():
            values = [100 * run[name] for run in runs]
            mean, error, _ = interval(values)
            row[title] = f"{mean:.2f} ± {error * math.sqrt(seeds):.2f}"
            if arm != STANDARD:
                pairs = [v - 100 * results[f"{STANDARD}/{seed}"][name] for seed, v in enumerate(values)]
                mean, error, half = interval(pairs)
                row[f"difference, {name}"] = f"{mean:+.2f} ± {error:.2f} ({mean - half:+.2f} to {mean + half:+.2f})"
        row["overlap"] = sum(run["overlap"] for run in runs) / seeds
        row["s per epoch"] = sum(run["seconds_per_epoch"] for run in runs) / seeds
        rows.append(row)
    return rows


def draw_differences(results, arms, seeds, path):
    """The paired differences of every seed, with their means and 95 % intervals."""
    from matplotlib import pyplot

    compared = [arm for arm in arms if arm != STANDARD]
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(7.6, 0.9 + 0.55 * len(compared)))
        for place, arm in enumerate(reversed(compared)):
            for shift, name, colour in ((0.14, "last", DARK), (-0.14, "best", ACCENT)):
                pairs = [
                    100 * (results[f"{arm}/{s}"][name] - results[f"{STANDARD}/{s}"][name]) for s in range(seeds)
                ]  # fmt: skip
                mean, _, half = interval(pairs)
                y = place + shift
                axes.plot(pairs, [y] * seeds, "o", color=colour, alpha=0.35, markersize=4)
                label = MEASURES[name] if place == 0 else None
                mark = "s" if name == "last" else "^"
                axes.errorbar(mean, y, xerr=half, color=colour, fmt=mark, capsize=3, label=label)
        axes.axvline(0, color="#000000", linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(compared)), list(reversed(compared)))
        axes.set(xlabel="difference from standard training, points of test accuracy (means, 95 % intervals, seeds)")
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside upper left", ncols=2)
        figure.savefig(path, dpi=140)


def draw_first_seed(results, out):
    """Curves of both arms and the on/off map, for the first seed."""
    first = {arm: results[f"{arm}/0"] for arm in ("RePr", STANDARD) if f"{arm}/0" in results}
    tables = [epochs_table(arm, run["history"], run["scheme"]) for arm, run in first.items()]
    draw(Table("training", tables[0].header, [row for one in tables for row in one.rows]), out / "curves.png")
    if scheme := first.get("RePr", {}).get("scheme"):
        rows = on_off_rows(scheme["filters"], scheme["events"])
        draw(Table("filters", tuple(rows[0]), [tuple(row.values()) for row in rows]), out / "filters.png")


def arguments():
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.repr", description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/repr-benchmark"), help="folder for results")
    parser.add_argument("--data", default="digits", help="digits, fashion-mnist, cifar10:DIR, …")
    parser.add_argument("--model", default="c3-8", help="c3-N, or a network of the zoo such as resnet20-fashion")
    parser.add_argument("--seeds", type=int, default=5, help="number of pairs")
    parser.add_argument("--arms", default=",".join(ARMS), help="with commas between; standard is always trained")
    parser.add_argument("--epochs", type=int, default=50, help="of every training")
    parser.add_argument("--s1", type=int, default=10, help="epochs before each drop")
    parser.add_argument("--s2", type=int, default=5, help="epochs without the dropped filters")
    parser.add_argument("--drop", type=float, default=0.3, help="share of the filters")
    parser.add_argument("--lr", type=float, default=0.05, help="learning rate")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step")
    parser.add_argument("--n-train", type=int, default=0, help="the first training images alone; 0 takes all")
    parser.add_argument("--halve", action="store_true", help="images of half the height and width")
    parser.add_argument("--no-augment", dest="augment", action="store_false", help="train without it")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    if unknown := [arm for arm in options.arms.split(",") if arm not in ARMS]:
        parser.error(f"--arms: there is no {unknown[0]!r}; there are {', '.join(ARMS)}")
    options.arms = [arm for arm in ARMS if arm == STANDARD or arm in options.arms.split(",")]
    return options


def main():
    """Train what is not trained yet, then write table and pictures."""
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    kept, source, reporter = options.out / "results.json", open_source(options.data), Reporter()
    conditions = {name: value for name, value in vars(options).items() if name not in ("out", "arms", "seeds")}
    done = json.loads(kept.read_text()) if kept.exists() else {"conditions": conditions, "results": {}}
    if done["conditions"] != conditions:
        raise SystemExit(f"{kept}: has results of other options; give another --out.")
    results = done["results"]
    for seed in range(options.seeds):
        for arm in options.arms:
            if f"{arm}/{seed}" in results:
                continue
            start = time.monotonic()
            run = results[f"{arm}/{seed}"] = train(options, source, arm, seed)
            kept.write_text(json.dumps(done))
            reporter.step(f"seed {seed}, {arm}: {run['last']:.2%} last, {time.monotonic() - start:.0f} s")
    rows = table(results, options.arms, options.seeds)
    fields = list(dict.fromkeys(name for row in rows[::-1] for name in row))
    write_csv(options.out / "table.csv", fields, rows)
    told = ", ".join(f"{name} {value}" for name, value in conditions.items())
    text = f"{told}; {torch.get_num_threads()} threads, {machine()}\n\n{markdown(fields, rows)}\n"
    (options.out / "table.md").write_text(text)
    draw_differences(results, options.arms, options.seeds, options.out / "differences.png")
    draw_first_seed(results, options.out)
    print(text)


if __name__ == "__main__":
    main()
