"""The benchmark of the accuracy that is kept: its rows, and the table of their means."""

import json
import sys

import pytest
import torch

from benchmarks import accuracy
from decomp.data.formats import network_file
from decomp.pipelines.decomposition import refine_blocks

ROW = {
    "network": "vgg-fashion", "images": "100", "seed": 1, "speedup": 4.0, "original": 94.31, "lost fitted": 1.5,
    "lost": 1.0, "divergence fitted": 0.03, "divergence": 0.02, "held out fitted": 0.031, "held out": 0.021,
    "seconds": 80.0, "of refinement": 20.0,
}  # fmt: skip


def test_the_table_has_means_over_seeds_and_the_range_of_the_loss():
    rows = [ROW, {**ROW, "seed": 0, "lost": 2.0, "seconds": 100.0}, {**ROW, "images": "5000", "lost": 0.5}]
    head, _, many, few = accuracy.table(rows).split("\n")
    assert head == "| " + " | ".join(accuracy.FIELDS) + " |"
    assert many.startswith("| vgg-fashion | 4x | 5000 | 1 | 94.31 | 1.50 | 0.50 (0.50–0.50) |")
    assert few.startswith("| vgg-fashion | 4x | 100 | 0, 1 | 94.31 | 1.50 | 1.50 (1.00–2.00) |")
    assert few.endswith("| 90 | 20 |")


def test_the_table_of_a_page_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{accuracy.BEGIN}\nold\n{accuracy.END}\nbehind\n")
    accuracy.put(page, "| new |")
    assert page.read_text() == f"before\n{accuracy.BEGIN}\n\n| new |\n\n{accuracy.END}\nbehind\n"
    page.write_text("no table")
    with pytest.raises(SystemExit, match="has no lines"):
        accuracy.put(page, "| new |")


@pytest.fixture
def on_digits(monkeypatch, tmp_path):
    monkeypatch.setattr(accuracy, "DATA", "digits")
    monkeypatch.setattr(accuracy, "NETWORKS", {"vgg-digits": (6.0,)})
    monkeypatch.setattr(accuracy, "IMAGES", (("few", 100, {}),))
    monkeypatch.setattr(refine_blocks, "STEPS", 300)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return tmp_path


def call(monkeypatch, out, *more):
    monkeypatch.setattr(sys, "argv", ["accuracy", "--out", str(out), "--images", "few", "--seeds", "1", *more])
    accuracy.main()


def test_a_row_compares_both_networks_with_the_original_and_is_made_once(on_digits, monkeypatch, capsys):
    call(monkeypatch, on_digits, "--networks", "vgg-digits", "--one")
    (row,) = accuracy.read_rows(on_digits)
    run = accuracy.RunDirectory.open(on_digits / "vgg-digits-few-0-6x")
    facts = run.config("decompose")["block_refinement"]
    assert facts["kept"] and row["held out"] == facts["divergence_after"] < row["held out fitted"]
    source = accuracy.open_source("digits", input_shape=(1, 8, 8))
    ((images, labels),) = source.test.batches(torch.arange(len(source.test)), 500)
    with torch.no_grad():
        original, network = (network_file.load(path)(images) for path in (run.original_dir, run.model_dir))
    wanted, got = (z.double().log_softmax(1) for z in (original, network))
    assert row["divergence"] == pytest.approx(float((wanted.exp() * (wanted - got)).sum(1).mean()), rel=1e-4)
    right = [100 * float((z.argmax(1) == labels).double().mean()) for z in (original, network)]
    assert (row["original"], row["lost"]) == pytest.approx((right[0], right[0] - right[1]))
    assert row["divergence"] != row["divergence fitted"] and row["seconds"] > row["of refinement"] > 0
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, on_digits, "--networks", "vgg-digits", "--one")
    assert ended.value.code == accuracy.NOTHING_LEFT and len(accuracy.read_rows(on_digits)) == 1
    assert (on_digits / "table.md").read_text().strip() in capsys.readouterr().out


def test_a_run_that_was_stopped_before_its_row_was_written_gives_the_same_row(on_digits, monkeypatch):
    call(monkeypatch, on_digits, "--networks", "vgg-digits")
    (row,) = accuracy.read_rows(on_digits)
    (on_digits / "rows.jsonl").unlink()
    call(monkeypatch, on_digits, "--networks", "vgg-digits")
    (again,) = accuracy.read_rows(on_digits)
    times = ("seconds", "of refinement")
    assert {k: v for k, v in again.items() if k not in times} == {k: v for k, v in row.items() if k not in times}


def test_the_first_seed_of_all_networks_comes_first():
    options = type("Options", (), {"networks": "vgg-fashion,mobilenet-fashion", "images": "100,5000", "seeds": 2})
    rows = accuracy.asked(options)
    assert rows[:2] == [("vgg-fashion", "5000", 0, 4.0), ("vgg-fashion", "5000", 0, 5.0)]
    assert rows[3] == ("mobilenet-fashion", "5000", 0, 2.0) and rows[4][:3] == ("vgg-fashion", "100", 0)
    assert len(rows) == len(set(rows)) == 16 and json.loads(json.dumps(rows))
