"""The report as one HTML file: its pictures lie inside it, and it loads nothing."""

import base64
import html

from ..console.text_table import html_table

TITLES = {
    "accuracy": "Accuracy against cost",
    "latency": "Speed-up, counted and measured",
    "layers": "Cost of each layer, before and after",
    "errors": "Error of each layer after each step",
    "curves": "Error at every size, and the size that was chosen",
    "channels": "Channels that stay",
    "finetuning": "Fine-tuning",
}
CAPTIONS = {
    "accuracy": "Up and to the left is better. Cost is counted on the networks as they stand.",
    "latency": "Where the measured bar is the shorter one, this machine uses many small convolutions less well than a "
    "few large ones: aim at time instead, or measure where the network will run.",
    "layers": "A layer is cheaper by its own factors, by reading fewer channels, and by writing fewer where the next "
    "layer reads fewer.",
    "errors": "Against the responses of the original, on inputs that already carry the errors of the layers before. "
    "Refining is done in the measure of the network's output, so a layer's own error may rise a little. "
    "Errors below 0.001 % are drawn there.",
    "curves": "Each step by itself, on the original network. A curve that falls late tells of a layer with nothing to "
    "spare; the plan takes from those that fall early. Errors below 0.001 % are drawn there.",
    "channels": "Only layers that drop channels are shown. A pattern that repeats in blocks would be a sign of "
    "channels chosen by place instead of by use.",
    "finetuning": "The network before tuning is epoch 0 and may be the best.",
}
STYLE = """
body { font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1c1c1c; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem; border-top: 1px solid #ddd; padding-top: 1rem; }
p, ul { margin: .4rem 0; } ul { padding-left: 1.2rem; }
figure { margin: .6rem 0; break-inside: avoid; } img { max-width: 100%; height: auto; display: block; }
figcaption, .note { color: #555; font-size: .88rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e3e3e3; vertical-align: top; }
th { border-bottom: 2px solid #999; font-weight: 600; white-space: nowrap; }
td { white-space: nowrap; } td:nth-child(2) { white-space: normal; min-width: 8rem; }
code { background: #f3f3f3; padding: .1rem .3rem; overflow-wrap: anywhere; }
@media print { body { max-width: none; margin: 0; font-size: 10pt; } a { color: inherit; text-decoration: none; }
  h2 { break-after: avoid; } tr { break-inside: avoid; } .wide { overflow: visible; } table { font-size: 7.5pt; }
  th, td { padding: .15rem .35rem; } th { white-space: normal; } }
"""


def run_words(config, summary):
    """The headline of a run, and what else it was made with, as a list of texts."""
    stages, headline = config["stages"], []
    frozen, decomposed = stages.get("freeze", {}).get("asked", {}), stages.get("decompose", {}).get("asked", {})
    if summary is not None:
        headline = [f"{summary.model} made {summary.macs_before / summary.macs_after:.2f} times cheaper"]
    else:
        headline = [f"{frozen.get('model', 'a network')}, not decomposed yet"]
    words = headline
    if summary is not None:
        words += [summary.costs(), *([summary.fidelity["words"]] if summary.fidelity else [])]
    facts = stages.get("freeze", {}).get("facts", {})
    if facts:
        words.append(
            f"Frozen from {facts['n_images']:,} images of {frozen.get('data')}, {facts['n_points']} points each."
        )
    if decomposed:
        words.append("Decomposed with " + _options(decomposed) + ".")
    if tuned := stages.get("finetune"):
        words.append("Fine-tuned with " + _options(tuned["asked"]) + ".")
    versions = next(reversed(config["versions"].values()), {})
    words.append("Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    return words


def _options(asked):
    texts = []
    for name, value in asked.items():
        if value is None or value == []:
            continue  # not given
        value = ", ".join(map(str, value)) if isinstance(value, list) else value
        value = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
        texts.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    return "; ".join(text.replace("_", " ") for text in texts)


def differences(stages_of):
    """For each run, the options in which the runs differ."""
    flat = {
        run: {
            (stage, key): value
            for stage in ("freeze", "decompose", "finetune")
            for key, value in (stages.get(stage) or {}).get("asked", {}).items()
        }
        for run, stages in stages_of.items()
    }
    keys = list(dict.fromkeys(key for options in flat.values() for key in options))
    differing = [key for key in keys if len({repr(options.get(key)) for options in flat.values()}) > 1]
    words = []
    for run, options in flat.items():
        texts = [f"{key[0]} {_options({key[1]: options[key]})}" for key in differing if key in options]
        words.append(f"{run}: " + ("; ".join(texts) or "nothing that the others have not"))
    return words if differing else [*words, "All options are the same."]


def sheet(title, words, networks, drawn, missing, summary, numbers):
    """The whole page.

    Parameters
    ----------
    title : str
    words : list of str
    networks : decomp.pipelines.reporting.collect.Table or None
        The table of evaluate.
    drawn : list of (Table, bytes)
        Each figure's numbers and its PNG.
    missing : list of (str, str)
        Why something is not there, and the command that makes it.
    summary : decomp.pipelines.reporting.summary.Summary or None
    numbers : str
        Where the CSV files lie, as seen from the page.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(text)}</p>" for text in words)]
    if networks is not None:
        parts += ["<h2>Networks</h2>", f'<div class="wide">{html_table(_network_rows(networks), left=1)}</div>']
        parts += [f'<p class="note">{html.escape(note)}</p>' for note in networks.notes]
    if missing:
        items = "".join(f"<li>{html.escape(why)}: <code>{html.escape(cmd)}</code></li>" for why, cmd in missing)
        parts += ["<h2>Not on this sheet</h2>", f"<ul>{items}</ul>"]
    for table, picture in drawn:
        name, data = table.name, base64.b64encode(picture).decode()
        caption = f'{html.escape(CAPTIONS[name])} <a href="{html.escape(numbers)}/{name}.csv">Numbers (CSV)</a>'
        image = f'<img alt="{html.escape(TITLES[name])}" src="data:image/png;base64,{data}">'
        parts += [f"<h2>{TITLES[name]}</h2>", f"<figure>{image}<figcaption>{caption}</figcaption></figure>"]
    if summary is not None:
        parts += ["<h2>Layers</h2>", f'<div class="wide">{html_table(summary.rows(), left=2)}</div>']
        parts.append('<p class="note">MACs: multiply-accumulates for one image. Error: of the layer\'s responses.</p>')
    head = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>',
        f"<style>{STYLE}</style></head>",
    ]
    return "\n".join([*head, "<body>", *parts, "</body></html>", ""])


def _network_rows(table):
    rows = table.dicts()
    several = len({row["run"] for row in rows}) > 1
    header = ["network", "top-1", "top-5", "same class", "MACs", "parameters", "latency", "counted", "measured"]
    lines = [header]
    for row in rows:
        shares = ["-" if row[key] is None else f"{row[key]:.2%}" for key in ("top1", "top5", "agreement")]
        sizes = [f"{row['macs'] / 1e6:,.2f} M", f"{row['params'] / 1e6:,.3f} M", f"{row['latency_ms']:,.2f} ms"]
        times = [f"{row[key]:.2f}x" for key in ("counted_speedup", "measured_speedup")]
        name = f"{row['run']}: {row['network']}" if several else row["network"]
        lines.append([name, *shares, *sizes, *times])
    return lines
