"""Driver of the comparison with other tools, on tools defined here; none of the real ones is needed."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.peers import driver, graphs, methods, noise, page, picture, search, subject, timing, worker

ROW = {"network": "zoo:vgg-digits", "data": "digits", "seed": 0, "speedup": 2, "epochs": 0, "method": "fake/thin"}

# A worker that counts its calls and fails for one method.
WORKER = """
import json, pathlib, sys
row = json.loads(sys.argv[sys.argv.index("--row") + 1])
calls = pathlib.Path(sys.argv[sys.argv.index("--out") + 1]) / "calls.txt"
with open(calls, "a") as file:
    file.write(row["method"] + "\\n")
if row["method"] == "fake/broken":
    sys.exit("ValueError: no such layer")
print("chatter of a tool")
filled = {"counted": 2.01, "macs": 5, "params": 7, "top1": 0.9, "original_top1": 0.95, "agreement": 0.9, "kl": 0.1}
print(json.dumps({**row, **filled, "seconds": 1.0, "peak_mib": 10, "file": "x.pt"}))
"""


def test_bisection_ends_within_the_tolerance_below_the_budget():
    tried = []

    def make(share):
        tried.append(share)
        return share

    made, share = search.meet(make, lambda x: 1000 * x**2, 250, 0.01, 1.0)
    assert made == share
    assert 0.98 * 250 <= 1000 * share**2 <= 250
    assert len(tried) <= 10


def test_bisection_takes_the_closest_below_where_costs_are_coarse():
    made, _ = search.meet(lambda share: int(8 * share), lambda n: 100 * n, 350, 0.01, 1.0)
    assert made == 3


def test_bisection_refuses_what_cannot_be_reached():
    with pytest.raises(search.Unreachable, match="at the least"):
        search.meet(lambda share: share, lambda share: 100, 50, 0.01, 1.0)


def test_spread_shares_lose_channels_one_layer_after_the_other():
    sizes = [32, 32, 64, 64]

    def widths(share):
        return [int(size * part) for size, part in zip(sizes, search.spread(sizes, share))]

    totals = [sum(widths(0.25 + step / 512)) for step in range(128)]
    assert max(b - a for a, b in zip(totals, totals[1:])) <= 2  # without the phases: 6 at once
    assert widths(1.0) == sizes


def run(out, names, epochs=0, **options):
    rows = driver.rows_asked(["zoo:vgg-digits"], "digits", [0], [2], [epochs], names)
    return driver.run(out, rows, worker=(sys.executable, "-c", WORKER), **options)


def test_an_interrupted_comparison_goes_on(tmp_path):
    run(tmp_path, ["fake/a"])
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"network": "zoo:vgg-di')  # the power went
    rows = run(tmp_path, ["fake/a", "fake/b"])
    assert (tmp_path / "calls.txt").read_text().split() == ["fake/a", "fake/b"]
    assert set(rows) == set(driver.read(tmp_path / "results.jsonl")) and len(rows) == 2


def test_a_failure_is_quoted_and_tried_again_only_with_retry(tmp_path):
    rows = run(tmp_path, ["fake/broken", "fake/a"])
    errors = [row.get("error") for row in rows.values()]
    assert errors == ["ValueError: no such layer", None]
    run(tmp_path, ["fake/broken"])
    assert (tmp_path / "calls.txt").read_text().split().count("fake/broken") == 1
    run(tmp_path, ["fake/broken"], retry=True)
    assert (tmp_path / "calls.txt").read_text().split().count("fake/broken") == 2


def test_rows_are_compressed_before_training_and_not_trained_where_that_failed(tmp_path):
    rows = run(tmp_path, ["fake/a", "fake/broken"], epochs=5)
    assert (tmp_path / "calls.txt").read_text().split() == ["fake/a", "fake/broken", "fake/a"]
    assert [(row["epochs"], row.get("error")) for row in rows.values() if row["method"] == "fake/broken"] == [
        (0, "ValueError: no such layer"), (5, "ValueError: no such layer"),
    ]  # fmt: skip


def test_the_page_has_the_rows_the_failures_and_what_is_missing(tmp_path):
    run(tmp_path, ["fake/a", "fake/broken"])
    page.write(tmp_path, tmp_path / "peers.md")
    text = (tmp_path / "peers.md").read_text()
    assert "| fake | a | 2.01x | 7 | 90.00% |" in text
    assert "| fake | 5.00 (a) |" in text
    assert "`ValueError: no such layer`" in text
    assert "- Latency" in text and "decomp all steps" in text.split("## What was not run")[1]
    assert (tmp_path / "peers-vgg-digits.png").stat().st_size > 1000
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 3
    assert (tmp_path / "peers.csv").read_bytes() == (tmp_path / "table.csv").read_bytes()


def test_which_images_are_right_survives_the_packing():
    for count in (1, 8, 9, 100):
        right = np.random.default_rng(count).random(count) < 0.5
        assert noise.unpacked(noise.packed(right)).tolist() == right.tolist()


def test_the_error_of_a_difference_is_its_spread_over_repetitions():
    # The whole measurement, test images and seeds, is repeated: the estimated error is about what is seen.
    measured, estimated = [], []
    for repetition in range(300):
        draw = np.random.default_rng(repetition)
        easy = draw.random(400) < 0.9
        ours, theirs = [], []
        for seed in range(3):
            for rows, luck in ((ours, draw.normal(0, 0.02)), (theirs, draw.normal(0, 0.02))):
                rows.append({"seed": seed, "right": noise.packed(easy & (draw.random(400) < 0.95 + luck))})
        mean, error, _ = noise.difference(ours, theirs)
        measured.append(mean)
        estimated.append(error)
    assert abs(np.mean(measured)) < 3 * np.std(measured) / 300**0.5
    assert np.std(measured) <= np.sqrt(np.mean(np.square(estimated))) < 1.5 * np.std(measured)


def test_only_seeds_that_both_have_are_compared():
    ours = [{"seed": 0, "right": noise.packed([1, 1, 1, 0])}, {"seed": 1, "right": noise.packed([0, 0, 0, 0])}]
    theirs = [{"seed": 0, "right": noise.packed([1, 0, 1, 0])}, {"seed": 2, "right": noise.packed([1, 1, 1, 1])}]
    mean, error, count = noise.difference(ours, theirs)
    assert count == 1 and mean == 0.25 and error == pytest.approx(np.std([0, 1, 0, 0], ddof=1) / 2)
    assert noise.difference(ours, [{"seed": 2, "right": noise.packed([1, 1, 1, 1])}]) is None
    assert noise.difference(ours, [{"seed": 0}]) is None  # a row of an earlier version, without this field


def test_the_page_calls_ties_ties():
    images = np.arange(1000)
    filled = {"network": "zoo:x", "speedup": 4, "epochs": 5, "original_top1": 0.95, "seed": 0}

    def row(tool, method, right):
        return {**filled, "tool": tool, "method": method, "top1": float(right.mean()), "right": noise.packed(right)}

    rows = [
        row("decomp", "all steps", images % 10 > 0), row("decomp", "prune", images % 100 > 0),
        row("far", "a", images % 2 > 0), row("far", "b", images % 5 > 0), row("near", "c", images % 9 > 0),
    ]  # fmt: skip
    head, _, *lines = page.ahead(rows).splitlines()
    assert head == f"| {page.AHEAD} | 4x, 5 epochs |"
    assert [line.split("|")[1].strip() for line in lines] == ["far", "near"]
    assert "+10.00 ± " in lines[0] and lines[0].endswith(", 1 seed |")  # the best of the tool; of ours always all steps
    assert "+1.20 ± " in lines[1] and lines[1].endswith(", a tie |")


def test_the_picture_has_a_panel_for_every_length_of_training(tmp_path):
    filled = {"network": "zoo:x", "tool": "decomp", "method": "a", "original_top1": 0.95, "top1": 0.9, "counted": 2.01}
    rows = [{**filled, "speedup": 2, "epochs": epochs, "seed": seed} for epochs in (0, 1, 5) for seed in (0, 1)]
    sizes = []
    for count in (0, 1, 5):
        assert picture.draw(tmp_path / "x.png", [row for row in rows if row["epochs"] <= count])
        sizes.append(Image.open(tmp_path / "x.png").size)
    assert len({height for _, height in sizes}) == 1
    assert sizes[1][0] - sizes[0][0] == sizes[2][0] - sizes[1][0] > 300
    assert not picture.draw(tmp_path / "y.png", []) and not (tmp_path / "y.png").exists()


def test_methods_are_chosen_by_name_or_its_beginning():
    assert list(methods.chosen("decomp/prune")) == ["decomp/prune"]
    assert len(methods.chosen("decomp/pru")) == 3
    with pytest.raises(SystemExit, match="no method begins with 'pruneme'"):
        methods.chosen("pruneme")


class Thin:
    """A tool that keeps the first channels between the first two convolutions."""

    def compress(self, given, speedup, work):
        def make(share):
            network = given.fresh()
            convs = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
            (first, a), (second, b) = convs[:2]
            keep = max(1, int(a.out_channels * share))
            norm = network.get_submodule("1")
            for module, name in ((a, "weight"), (norm, "weight"), (norm, "bias")):
                setattr(module, name, nn.Parameter(getattr(module, name)[:keep]))
            norm.running_mean, norm.running_var = norm.running_mean[:keep], norm.running_var[:keep]
            b.weight = nn.Parameter(b.weight[:, :keep])
            a.out_channels = norm.num_features = b.in_channels = keep
            return network

        return search.meet(make, given.count, given.macs / speedup, 0.05, 1.0)[0], 3.0


def test_a_row_is_measured_on_the_saved_network(tmp_path):
    row = worker.make(tmp_path, {**ROW, "speedup": 1.25}, methods={"fake/thin": Thin()})
    assert 1.25 <= row["counted"] < 1.32
    assert row["seconds"] >= 3.0  # what the tool spent on what rows share is counted
    saved = torch.load(worker.file_of(tmp_path, row), weights_only=False)
    given = subject.Subject("zoo:vgg-digits", "digits", 0)
    assert given.count(saved) == row["macs"] == round(given.macs / row["counted"])
    test = given.source.test
    right = subject.logits_of(saved, test).argmax(1) == test.labels(torch.arange(len(test)))
    assert right.double().mean().item() == pytest.approx(row["top1"])
    assert noise.unpacked(row["right"]).tolist() == right.tolist()
    assert row["top1"] < row["original_top1"] and 0 < row["kl"] and row["agreement"] < 1


def test_statistics_are_those_of_the_images(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    images = torch.randn(500, 1, 6, 6) + 2
    subject.reestimate_normalisation(network, images)
    with torch.no_grad():
        wanted = network[0](images).mean((0, 2, 3))
    assert torch.allclose(network[1].running_mean, wanted, atol=1e-5)
    assert network[1].momentum == 0.1 and not network.training


def test_shared_work_is_done_once_and_its_time_counted_in_each_row(tmp_path):
    calls = []

    def make():
        calls.append(1)
        time.sleep(0.2)

    # The row that does the work has measured its time already.
    assert subject.once(tmp_path, "search", make) == 0
    assert subject.once(tmp_path, "search", make) >= 0.2
    assert calls == [1]


def test_latency_is_the_median_ratio_of_paired_rounds():
    # The machine slowed down in the second half, for both alike.
    times = {"original": [2.0, 2.0, 8.0, 8.0], "compressed": [1.0, 1.0, 4.0, 4.0]}
    assert timing.summary(times)["faster"] == 2.0


def test_networks_are_timed_with_normalisations_folded():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    network[1].running_mean += 1
    made, images = timing.folded(network), torch.randn(2, 1, 6, 6)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in made.modules())
    assert torch.allclose(made(images), network(images), atol=1e-6)


def test_the_command_lists_methods_without_any_of_the_tools():
    code = (
        "import sys; sys.modules.update({n: None for n in ('torch_pruning', 'tensorly', 'aimet_torch')})\n"
        "from benchmarks.peers.__main__ import main; sys.argv[1:] = ['--list']; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "aimet-torch/channel-pruning-greedy" in ended.stdout.split()


def test_rows_are_json_lines(tmp_path):
    driver.append(tmp_path / "rows.jsonl", ROW)
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == ROW


class Halved:
    """A tool that applies a given change to the network."""

    tool, name, options, labels = "fake", "change", {}, False

    def __init__(self, change):
        self.change = change

    def compress(self, given, speedup, work):
        return self.change(given.fresh()), 0.0


def test_small_graphs_have_their_speedup_or_the_tools_message(tmp_path, monkeypatch):
    row = {"network": "residual", "data": "random", "seed": 0, "speedup": 2, "epochs": 0}
    monkeypatch.setitem(methods.METHODS, "fake/none", Halved(lambda network: network))
    monkeypatch.setitem(methods.METHODS, "fake/cut", Halved(lambda network: nn.Sequential(network, nn.Linear(5, 4))))
    monkeypatch.setitem(methods.METHODS, "fake/nan", Halved(lambda network: nn.Sequential(network, Nan())))
    done = graphs.make(tmp_path, {**row, "method": "fake/none"})
    assert done["counted"] == 1
    with pytest.raises(ValueError, match=r"outputs of shape \(200, 4\) in place of \(200, 5\)"):
        graphs.make(tmp_path, {**row, "method": "fake/cut"})
    with pytest.raises(ValueError, match="not finite"):
        graphs.make(tmp_path, {**row, "method": "fake/nan"})
    ours = graphs.make(tmp_path, {**row, "method": "decomp/all-steps"})
    assert 2 <= ours["counted"] < 2.05
    graphs.folder(tmp_path).mkdir()
    for filled in (ours, {**row, "method": "fake/cut", "error": "ValueError: a shape"}):
        driver.append(graphs.folder(tmp_path) / "results.jsonl", filled)
    lines, words = graphs.rows(tmp_path)
    assert lines[0]["fake change"] == "no" and words == ["- residual, fake change: `ValueError: a shape`"]
    text = page.text([], {}, "", (lines, words))
    assert "## Twelve small graphs" in text and f"| {ours['counted']:.2f}x |" in text


class Nan(nn.Module):
    def forward(self, x):
        return x * float("nan")
