"""Content of the pages: the verdict first, every section that has data, next steps with commands that fit the run."""

import re

import pytest

from decomp.pipelines.reporting.collect import NETWORK_COLUMNS
from decomp.pipelines.reporting.run_page import compare_page, run_page, sentence
from decomp.pipelines.reporting.tables import Missing, Table

ROWS = [
    ("one", "original", 100, 10, 0.9, 0.99, 1.0, 0.0, 3.0, 2.0, 4.0, 1.0, 1.0, None, 200),
    ("one", "decomposed", 25, 5, 0.85, 0.98, 0.95, 0.1, 2.5, 2.25, 3.0, 4.0, 1.2, None, 200),
]
CONDITIONS = {
    "n_images": 200, "data": "digits", "batch_size": 64, "device": "CPU", "threads": 1, "layout": "contiguous",
    "rounds": 30,
}  # fmt: skip
PICTURES = [("<svg>broad</svg>", "<svg>slim</svg>")]


def report():
    keys = ("network", "top1", "agreement", "counted_speedup", "measured_speedup")
    rows = [{key: row[NETWORK_COLUMNS.index(key)] for key in keys} for row in ROWS]
    return {"rows": rows, "conditions": CONDITIONS, "notes": [], "classes": {}}


def page(config, report=None, tables=(), missing=(), drawn=()):
    return run_page("one", "runs/one", config, report, dict(tables), missing, dict(drawn), "report")


def test_a_whole_run_is_told_from_verdict_to_next_steps():
    config = {
        "stages": {
            "freeze": {
                "asked": {"model": "zoo:x", "data": "digits"},
                "facts": {"n_images": 1500, "n_mixtures": 7, "n_points": 10, "preprocessing": "as they are"},
            },
            "decompose": {"asked": {"speedup": 4.0}, "macs_after": 1, "times": [
                {"phase": "survey", "part": "forward", "seconds": 2.5, "processor_seconds": 4.0},
            ]},
        },
        "versions": {"freeze": {"torch": "2.1"}},
    }  # fmt: skip
    networks = Table("accuracy", NETWORK_COLUMNS, ROWS, ["200 test images", "unreliable latencies: x"])
    classes = Table(
        "classes", ("class", "images", "correct_original", "correct_decomposed"), [("cat", 10, 9, 4), ("owl", 10, 8, 8)]
    )
    tables = {"accuracy": networks, "latency": networks, "classes": classes}
    text = page(
        config,
        report(),
        tables,
        [Missing("x", "not fine-tuned", "decomp finetune it")],
        dict.fromkeys(tables, PICTURES),
    )
    order = [
        "<h1>4.0x fewer multiply-accumulates", "decomposed: accuracy on 200 test images of digits, time of",
        "Counted and measured speed-up differ",
        "<h2>Networks", "<h2>Accuracy against time", "<h2>Speed-up", "<h2>Accuracy of each class",
        "<h2>Calibration images", "<h2>Time", "of its last call", "<h2>Options", "<h2>Conditions", "<h2>Next steps",
    ]  # fmt: skip
    body = text[text.index("<body>") :]
    places = [body.index(part) for part in order]
    assert places == sorted(places)
    assert "Largest losses from original to decomposed: cat: 90.0 → 40 % (95 % interval" in text and "owl:" not in text
    assert (
        "1,500 images of digits, and 7 mixtures of two of them, 10 positions" in text
        and "Preprocessing: as they are." in text
    )
    assert "200 test images." in text and "unreliable" not in text  # it belongs below the verdict, where there is one
    assert "finetune it" in text and "--from runs/one --speedup 2x" in text and "export --run runs/one" in text
    assert 'href="report/classes.csv"' in text


def test_parts_of_a_phase_are_indented_below_it_where_spaces_would_be_dropped():
    times = [
        {"phase": "fit", "part": part, "seconds": seconds, "processor_seconds": seconds}
        for part, seconds in (("refinement", 3.0), ("refinement of the blocks", 1.0))
    ]
    text = page({"stages": {"decompose": {"asked": {"speedup": 4.0}, "times": times}}, "versions": {}})
    heads = re.findall(r'<th scope="row">([^<]*)</th>', text[text.index("<h2>Time") :])
    assert heads[:4] == ["fit", "\u00a0" * 4 + "refinement", "\u00a0" * 4 + "refinement of the blocks", "all"]
    assert "The indented parts are contained in the phase above them." in text


def timed(runtime, milliseconds, threads=1):
    conditions = {"runtime": runtime, "layout": "contiguous", "device": "CPU x", "threads": threads, "batch_size": 1,
                  "precision": "float32"}  # fmt: skip
    times = [{"network": "original", "latency_ms": milliseconds, "quartiles_ms": [1.0, 1.0], "speedup": 1.0,
              "reason": ""}]  # fmt: skip
    return {"conditions": conditions, "networks": {"original": "a"}, "times": times}


def test_times_in_several_runtimes_have_a_table_and_the_fastest_is_said():
    config = {"stages": {}, "versions": {}}
    several = [timed("compile", 0.5, threads=2), timed("eager", 7.25), timed("onnxruntime", 2.5)]
    text = page(config, {**report(), "latencies": several})
    assert (
        "<h2>Time in each runtime" in text and "Fastest of these: original in onnxruntime, contiguous, 2.5 ms." in text
    )
    assert "7.25 ms" in text and "0.5 ms" not in text  # of another number of threads
    assert "<h2>Time in each runtime" not in page(config, {**report(), "latencies": several[:2]})


def test_a_run_without_results_is_told_with_what_makes_them():
    config = {"stages": {"freeze": {"asked": {"model": "zoo:x", "data": "digits"}}}, "versions": {}}
    missing = [
        Missing("networks", "not evaluated", "decomp evaluate"),
        Missing("layers", "not decomposed", "decomp decompose"),
        Missing("errors", "not fitted", "decomp decompose --plan-only"),
    ]  # fmt: skip
    text = page(config, missing=missing)
    assert "<h1>zoo:x, not decomposed yet</h1>" in text
    steps = re.findall("<li>.*?</li>", text)  # one for each stage, in their order
    assert [re.sub("<.*?>", "", step) for step in steps] == [
        "not decomposed: decomp decompose", "not evaluated: decomp evaluate",
    ]  # fmt: skip
    assert "<h2>Networks" not in text and "export" not in text


@pytest.mark.parametrize("stage", ["decompose", "prune"])
def test_an_unfinished_network_is_finished_first_and_a_finished_one_is_not_made_again(stage):
    record = {"asked": {"speedup": 4.0, "criterion": "l1"}}
    config = {"stages": {"freeze": {"asked": {"model": "zoo:x", "data": "digits"}}, stage: record}, "versions": {}}
    missing = [
        Missing("networks", "not evaluated", "decomp evaluate"),
        Missing("layers", "not finished", f"decomp {stage} own"),
        Missing("channels", "no layer is pruned", f"decomp {stage} --steps prune"),
        Missing("finetuning", "not tuned", "decomp finetune"),
    ]  # fmt: skip

    def steps():
        return [re.sub("<.*?>", "", step) for step in re.findall("<li>.*?</li>", page(config, missing=missing))]

    tune = ["not tuned: decomp finetune", "not evaluated: decomp evaluate"]
    assert steps() == [f"not finished: decomp {stage} own", *tune]
    record["macs_after"] = 1
    assert steps()[:2] == tune and "export" in steps()[2] and not any("own" in step for step in steps())


def test_a_doubt_of_freeze_stands_at_the_top_and_what_it_found_with_the_calibration_images():
    facts = {
        "n_images": 100, "accuracy": 0.1, "interval": [0.05, 0.17], "chance": 0.11, "near_chance": True, "order": None,
        "numbered": False, "largest_label": 9, "n_classes": 10,
    }  # fmt: skip
    record = {"asked": {"model": "m", "data": "d"}, "facts": {"n_images": 100, "n_points": 10, "sanity": facts}}
    text = page({"stages": {"freeze": record}, "versions": {}})
    head, body = text.split("</header>")
    assert '<p class="warning">Near chance; likely causes' in head and "Near chance" not in body
    assert "Accuracy of the original on the 100 calibration images: 10.0 % (95 % interval" in body
    facts.update(near_chance=False, accuracy=0.9)
    assert "warning" not in page({"stages": {"freeze": record}, "versions": {}}).split("<body>")[1].split("<script>")[0]


def test_a_class_that_lost_nothing_is_no_loss():
    table = Table("classes", ("class", "images", "correct_original", "correct_fine-tuned"), [("cat", 10, 8, 9)])
    text = page({"stages": {}, "versions": {}}, tables={"classes": table}, drawn={"classes": PICTURES})
    assert "No class lost accuracy from original to fine-tuned." in text


def test_runs_on_different_images_are_told_apart():
    table = Table("networks", NETWORK_COLUMNS, ROWS, ["noted"])
    other = Table("networks", NETWORK_COLUMNS, [("two", *row[1:]) for row in ROWS])
    stages = {"one": {"freeze": {"asked": {"data": "a"}}}, "two": {"freeze": {"asked": {"data": "b"}}}}
    groups = {"10 images of a": (table, {"accuracy": table}), "9 images of b": (other, {"accuracy-2": other})}
    pairs = {
        key: (whole, {k: Table("accuracy", t.header, t.rows) for k, t in p.items()})
        for key, (whole, p) in groups.items()
    }
    drawn = {"accuracy": PICTURES, "accuracy-2": PICTURES}
    text = compare_page(["one", "two"], pairs, drawn, stages, [("three: not evaluated", "evaluate it")], "figures")
    assert "cannot be compared" in text and "<h2>Networks, 10 images of a</h2>" in text
    assert 'href="figures/accuracy-2.csv"' in text and "freeze: data" in text and "evaluate it" in text
    alone = compare_page(["one", "two"], {"10 images of a": pairs["10 images of a"]}, drawn, stages, [], "figures")
    assert "cannot be compared" not in alone and "<h2>Networks</h2>" in alone and "<h2>Missing</h2>" not in alone
    assert "Most accurate and fastest: one, decomposed" in alone and "Noted." in alone


def test_the_caption_says_in_which_direction_a_network_is_better():
    rows = [(*row[:4], None, None, None, *row[7:13], 0.1, 200) for row in ROWS]
    drawn = {"accuracy": PICTURES}
    for table, words in ((rows, "Lower and further left"), (ROWS, "Higher and further left")):
        networks = Table("accuracy", NETWORK_COLUMNS, table, ["200 test images"])
        text = page({"stages": {}, "versions": {}}, tables={"accuracy": networks}, drawn=drawn)
        assert words in text and ("<h2>Change of the outputs" in text) == words.startswith("Lower")


def test_notes_are_sentences():
    assert [sentence(text) for text in ("a b", "A.", "b:")] == ["A b.", "A.", "B:"]
