"""Figure of the comparison: loss of accuracy against counted speed-up, without and after training."""

import statistics

from benchmarks.peers.groups import DEFAULT, OURS, by_method, lost, mean_lost, training_in_words

COLOURS = {OURS: "tab:blue", "torch-pruning": "tab:orange", "tensorly": "tab:green", "aimet-torch": "tab:red"}
MARKERS = "os^vD<>PX*phd8|_"
#: Points of accuracy below which untrained networks are drawn as if they lost so little.
LEAST_DRAWN = 0.05


def draw(path, rows):
    """A line for each method, a colour for each tool; a panel for every number of epochs.

    Without training the points are on a logarithmic axis: what is of interest lies between a twentieth of a point and
    all of them. After training they are not, and bars show the range over the seeds. Returns False where there is
    nothing to draw.
    """
    if not rows:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    panels = sorted({row["epochs"] for row in rows})
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(6 + 5 * len(panels), 6.5), sharex=True, squeeze=False)
    styles, handles = _styles(rows), {}
    for axes, epochs in zip(all_axes[0], panels):
        for name, line in _lines([row for row in rows if row["epochs"] == epochs]).items():
            handles.setdefault(name, _draw_line(axes, line, styles[name], trained=epochs > 0))
        if not epochs:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter("")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("times fewer multiply-accumulates, counted")
        axes.set_title(training_in_words(epochs))
        axes.grid(alpha=0.3, which="both")
    _same_limits([axes for axes, epochs in zip(all_axes[0], panels) if epochs])
    for axes in all_axes[0]:
        axes.invert_yaxis()  # better is higher, as with accuracies
    all_axes[0][0].set_ylabel("points of test accuracy lost")
    figure.suptitle(f"{rows[0]['network']} ({rows[0]['original_top1']:.2%})")
    names = [name for name in styles if name in handles]
    figure.legend([handles[n] for n in names], [" ".join(n) for n in names], fontsize=7, loc="outside center right")
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _same_limits(all_axes):
    """So that trainings of different lengths can be compared."""
    limits = [axes.get_ylim() for axes in all_axes]
    for axes in all_axes:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _styles(rows):
    """By tool and method, the same in every panel."""
    styles, drawn = {}, {}
    for tool, method in dict.fromkeys((row["tool"], row["method"]) for row in rows):
        place = drawn[tool] = drawn.get(tool, -1) + 1
        styles[tool, method] = {
            "color": COLOURS.get(tool, "0.4"), "marker": MARKERS[place % len(MARKERS)], "markersize": 5,
            "linewidth": 2.5 if (tool, method) == (OURS, DEFAULT) else 0.8,
        }  # fmt: skip
    return styles


def _draw_line(axes, groups, style, *, trained):
    groups = sorted(groups, key=lambda group: statistics.mean(row["counted"] for row in group))
    x = [statistics.mean(row["counted"] for row in group) for group in groups]
    y = [mean_lost(group) for group in groups]
    if not trained:
        return axes.plot(x, [max(value, LEAST_DRAWN) for value in y], **style)[0]
    ranges = [[100 * part for part in lost(group)] for group in groups]
    bars = [[a - min(r) for a, r in zip(y, ranges)], [max(r) - a for a, r in zip(y, ranges)]]
    return axes.errorbar(x, y, bars, capsize=3, **style)[0]


def _lines(rows):
    """By tool and method: a group of rows for each speed-up."""
    lines = {}
    for speedup in dict.fromkeys(row["speedup"] for row in rows):
        for group in by_method([row for row in rows if row["speedup"] == speedup]):
            lines.setdefault((group[0]["tool"], group[0]["method"]), []).append(group)
    return lines
