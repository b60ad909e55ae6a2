"""HTML page of a report: one file with embedded figures that loads nothing else."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from ..console.text_table import html_table
from .collect import Table
from .summary import Summary

TITLES = {
    "accuracy": "Accuracy against cost",
    "latency": "Speed-up in multiply-accumulates and in time",
    "layers": "Cost of each layer, before and after",
    "errors": "Error of each layer after each step",
    "curves": "Error at every size, with the chosen size",
    "channels": "Kept input channels",
    "finetuning": "Fine-tuning",
}
CAPTIONS = {
    "accuracy": "Higher and further left is better. Multiply-accumulates are counted in the networks themselves.",
    "latency": "Where the measured speed-up is the smaller one, this machine runs many small convolutions less "
    "efficiently than a few large ones: plan with --cost latency, or measure on the target machine.",
    "layers": "The cost of a layer falls by its own factors, by fewer input channels, and by fewer output channels "
    "where the next layer reads fewer.",
    "errors": "Relative to the responses of the original network; the inputs include the errors of the earlier layers. "
    "Refinement minimises an error weighted by the output metric, so the error shown may rise slightly. "
    "Errors below 0.001 % are drawn at 0.001 %.",
    "curves": "Each step alone, on the original network. Where a curve falls only near the full size, the layer has "
    "little redundancy; the plan reduces layers whose curves fall early. Errors below 0.001 % are drawn at 0.001 %.",
    "channels": "Only pruned layers are shown. A pattern that repeats in blocks would indicate a selection by position "
    "instead of importance.",
    "finetuning": "Epoch 0 is the network before fine-tuning; it can be the best.",
}
LAYERS_NOTE = "MACs: multiply-accumulates for one image. Error: relative squared error of the layer's responses."
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


def run_lines(config: Mapping[str, Any], summary: Summary | None) -> list[str]:
    """The headline of a run, then costs, fidelity, options and versions, one text each.

    Parameters
    ----------
    config : mapping
        Content of run.json.
    summary : Summary or None
        None where nothing is decomposed yet.
    """
    stages = config["stages"]
    frozen, decomposed = stages.get("freeze", {}).get("asked", {}), stages.get("decompose", {}).get("asked", {})
    if summary is not None:
        speedup = summary.macs_before / summary.macs_after
        lines = [f"{summary.model}, decomposed: {speedup:.2f}x speed-up in multiply-accumulates"]
        lines += [summary.costs(), *([summary.fidelity["words"]] if summary.fidelity else [])]
    else:
        lines = [f"{frozen.get('model', 'a network')}, not decomposed yet"]
    facts = stages.get("freeze", {}).get("facts", {})
    if facts:
        lines.append(
            f"Frozen from {facts['n_images']:,} images of {frozen.get('data')}, "
            f"{facts['n_points']} positions for each image and grid."
        )
    if decomposed:
        lines.append("Decomposed with " + _options(decomposed) + ".")
    if tuned := stages.get("finetune"):
        lines.append("Fine-tuned with " + _options(tuned["asked"]) + ".")
    versions: Mapping[str, str] = next(reversed(config["versions"].values()), {})
    lines.append("Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    return lines


def _options(options: Mapping[str, Any]) -> str:
    texts = []
    for name, value in options.items():
        if value is None or value == []:
            continue  # not given
        value = ", ".join(map(str, value)) if isinstance(value, list) else value
        value = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
        texts.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    return "; ".join(text.replace("_", " ") for text in texts)


def differences(stages_of: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """For each run, the options in which the runs differ.

    Parameters
    ----------
    stages_of : mapping
        For each run, the stages in its run.json.
    """
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
    lines = []
    for run, options in flat.items():
        texts = [f"{key[0]} {_options({key[1]: options[key]})}" for key in differing if key in options]
        lines.append(f"{run}: " + ("; ".join(texts) or "none of the options in which the runs differ"))
    return lines if differing else ["All options are the same."]


def render_page(
    title: str, lines: Sequence[str], networks: Table | None, drawn: Sequence[tuple[Table, bytes]],
    missing: Sequence[tuple[str, str]], summary: Summary | None, numbers: str,
) -> str:  # fmt: skip
    """The whole page as HTML.

    Parameters
    ----------
    title : str
    lines : list of str
        Paragraphs below the title.
    networks : decomp.pipelines.reporting.collect.Table or None
        The table of evaluate.
    drawn : list of (Table, bytes)
        Numbers and PNG of each figure.
    missing : list of (str, str)
        For each missing figure, the reason and the command that produces its data.
    summary : decomp.pipelines.reporting.summary.Summary or None
    numbers : str
        Folder of the CSV files, relative to the page.

    Returns
    -------
    str
    """
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(text)}</p>" for text in lines)]
    if networks is not None:
        parts += ["<h2>Networks</h2>", f'<div class="wide">{html_table(_network_rows(networks), left=1)}</div>']
        parts += [f'<p class="note">{html.escape(note)}</p>' for note in networks.notes]
    if missing:
        items = "".join(f"<li>{html.escape(why)}: <code>{html.escape(cmd)}</code></li>" for why, cmd in missing)
        parts += ["<h2>Missing</h2>", f"<ul>{items}</ul>"]
    for table, picture in drawn:
        name, data = table.name, base64.b64encode(picture).decode()
        caption = f'{html.escape(CAPTIONS[name])} <a href="{html.escape(numbers)}/{name}.csv">Numbers (CSV)</a>'
        image = f'<img alt="{html.escape(TITLES[name])}" src="data:image/png;base64,{data}">'
        parts += [f"<h2>{TITLES[name]}</h2>", f"<figure>{image}<figcaption>{caption}</figcaption></figure>"]
    if summary is not None:
        parts += ["<h2>Layers</h2>", f'<div class="wide">{html_table(summary.rows())}</div>']
        parts.append(f'<p class="note">{html.escape(LAYERS_NOTE)}</p>')
    head = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>',
        f"<style>{STYLE}</style></head>",
    ]
    return "\n".join([*head, "<body>", *parts, "</body></html>", ""])


def _network_rows(table: Table) -> list[list[str]]:
    rows = table.dicts()
    several = len({row["run"] for row in rows}) > 1
    costs = ["MACs", "parameters", "latency", "MACs speed-up", "time speed-up"]
    lines = [["network", "top-1", "top-5", "same top class", *costs]]
    for row in rows:
        shares = ["-" if row[key] is None else f"{row[key]:.2%}" for key in ("top1", "top5", "agreement")]
        sizes = [f"{row['macs'] / 1e6:,.2f} M", f"{row['params'] / 1e6:,.3f} M", f"{row['latency_ms']:,.2f} ms"]
        times = [f"{row[key]:.2f}x" for key in ("counted_speedup", "measured_speedup")]
        name = f"{row['run']}: {row['network']}" if several else row["network"]
        lines.append([name, *shares, *sizes, *times])
    return lines
