"""Networks whose output is no single tensor of class scores, through all stages."""

import json
import sys
from pathlib import Path

import pytest
import torch
from command_line import decomp_command
from torch import nn

import decomp
from decomp.data.formats.frozen_file import FrozenFile
from decomp.errors import UsageError
from decomp.execution.outputs import difference, named_tensors
from decomp.pipelines.run.directory import RunDirectory
from tests.pipelines.digit_runs import Collected

SHAPE, N = (3, 12, 12), 60
FORMATS = ("torchscript", "pt2")


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.out = nn.Linear(16, 4)

    def maps(self, x):
        a = self.a(x).relu()
        return a, self.b(a).relu()


class Nested(Body):
    def forward(self, x):
        a, b = self.maps(x)
        return {"maps": {"low": a, "high": b}, "loss": None, "rows": [self.out(b.mean((2, 3))) * 640]}


class Pyramid(Body):
    def forward(self, x):
        a, b = self.maps(x)
        return nn.functional.max_pool2d(a, 2), b


class Age(Body):
    def forward(self, x):
        return self.out(self.maps(x)[1].mean((2, 3)))[:, 0]


class Embedding(Body):
    def forward(self, x):
        return nn.functional.normalize(self.out(self.maps(x)[1].mean((2, 3))))


NAMES = {
    Nested: ["maps.low", "maps.high", "rows.0"], Pyramid: ["0", "1"], Age: ["output"], Embedding: ["output"],
}  # fmt: skip


def images():
    return torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the networks and the images in files of its own."""
    (tmp_path / "any_form.py").write_text(
        "import torch\nfrom tests.pipelines import test_outputs_of_any_form as forms\n"
        "def seeded(kind):\n    torch.manual_seed(0)\n    return kind().eval()\n"
        + "".join(f"def {kind.__name__}():\n    return seeded(forms.{kind.__name__})\n" for kind in NAMES)
        + "def argmax():\n    return seeded(forms.Classes)\n"
        + "def data():\n    return forms.images().numpy()\n"
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("any_form", None)


class Classes(Body):
    def forward(self, x):
        return self.out(self.maps(x)[1].mean((2, 3))).argmax(1)


@pytest.mark.parametrize("kind", NAMES)
def test_every_stage_takes_what_freeze_takes(place, kind):
    model, run = f"any_form.py:{kind.__name__}", RunDirectory(place / "run")
    frozen = decomp.freeze(run, model=model, data="any_form.py:data", n_points=3, reporter=Collected())
    with FrozenFile(run.frozen) as file:
        described = file.meta["outputs"]
    assert [one["name"] for one in described] == NAMES[kind] and {one["kind"] for one in described} == {"values"}
    rows = [line for line in frozen.lines() if "are taken as values" in line]
    assert len(rows) == (kind in (Nested, Embedding))
    decomposed = decomp.decompose(run, speedup=1.5, reporter=Collected())
    close = decomposed.facts["fidelity"]
    assert list(close["outputs"]) == NAMES[kind] and all(one["relative"] < 0.5 for one in close["outputs"].values())
    with pytest.raises(UsageError, match="labels train: needs a network whose only output is class scores, got"):
        decomp.finetune(run, epochs=1, reporter=Collected())
    tuned = decomp.finetune(run, epochs=1, labels="none", learning_rate=1e-3, reporter=Collected())
    assert tuned.facts["metric"] == "validation change" and tuned.facts["after"] <= tuned.facts["before"]
    evaluated = decomp.evaluate(run, repeats=2, reporter=Collected())
    names = ["original", "decomposed", *(["fine-tuned"] if tuned.facts["best_epoch"] else [])]
    assert [row.network for row in evaluated.rows] == names
    assert all(list(row.outputs) == NAMES[kind] and row.top1 is None for row in evaluated.rows)
    assert evaluated.rows[0].lost == 0 < evaluated.rows[1].lost < 0.5
    assert evaluated.rows[1].lost == pytest.approx(close["relative"], rel=1e-3)  # on the same images
    exported = decomp.export(run, formats=FORMATS[: 2 if kind is Nested else 1], reporter=Collected()).exported
    assert max(one.difference for one in exported) < 1e-4
    if kind is Nested:
        page = Path(decomp.report(run, reporter=Collected()).html).read_text(encoding="utf-8")
        assert "outputs differ by" in page and "Closeness of each output" in page and "no accuracy" in page.lower()
    torch.manual_seed(0)
    original, x = kind().eval(), images()[:3]
    best = decomp.load(run.finetune_dir / "best", into=original)
    with torch.no_grad():
        assert type(best) is kind and difference(best(x), decomp.load(run)(x)) < 1e-5
        script = torch.jit.load(exported[0].path)(x)
    assert [value.shape for value in named_tensors(script).values()] == [
        value.shape for value in named_tensors(best(x)).values()
    ]


@pytest.mark.parametrize("kind", NAMES)
def test_compress_gives_the_class_back(kind):
    torch.manual_seed(0)
    network, report = decomp.compress(kind().eval(), images(), 1.5, n_points=5, quiet=True)
    assert type(network) is kind and report.notes == [] and set(report.fidelity["outputs"]) == set(NAMES[kind])
    with torch.no_grad():
        assert list(named_tensors(network(images()))) == NAMES[kind]


def test_an_argmax_is_refused_on_the_command_line_and_from_python(place):
    line = "freeze --model any_form.py:argmax --data any_form.py:data --run run"
    result = decomp_command(*line.split())
    assert result.code == 2 and "Traceback" not in result.err
    said = result.err.splitlines()[-1]
    assert said.startswith("error: any_form.py:argmax: ") and "got int64 (as of an argmax); leave the last step" in said
    assert not (place / "run").exists()
    with pytest.raises(UsageError, match="Classes: .*got int64 .as of an argmax.; leave the last step out"):
        decomp.compress(Classes().eval(), images(), 2.0, quiet=True)


def test_the_option_says_what_rows_are(place):
    asked = {}
    for word in ("scores", "values"):
        line = f"freeze --model any_form.py:Embedding --data any_form.py:data --run {word} --points 3 --outputs {word}"
        assert decomp_command(*line.split()).code == 0
        asked[word] = json.loads((place / word / "run.json").read_text())["stages"]["freeze"]
        assert asked[word]["asked"]["outputs"] == word and asked[word]["outputs"][0]["kind"] == word
    line = "freeze --model any_form.py:Pyramid --data any_form.py:data --run r --outputs scores"
    result = decomp_command(*line.split())
    assert result.code == 2 and "class scores are a row of at least two numbers for each image" in result.err
    torch.manual_seed(0)
    model = Embedding().eval()
    said = [decomp.compress(model, images(), 1.5, n_points=3, quiet=True, outputs=word)[1] for word in asked]
    assert "KL" in str(said[0]) and "KL" not in str(said[1]) and "taken as values" not in str(said[1])


class Rows(Body):
    def forward(self, x):
        return self.out(self.maps(x)[1].mean((2, 3)))


def test_labels_beside_the_images_say_that_rows_are_class_scores():
    torch.manual_seed(0)
    model, x, options = Rows().eval(), images(), {"n_points": 3, "quiet": True}
    without = decomp.compress(model, x, 1.5, **options)[1]
    with_labels = decomp.compress(model, [(x, torch.arange(N) % 4)], 1.5, **options)[1]
    assert "kl" not in without.fidelity and "taken as values" in str(without)
    assert with_labels.fidelity["kl"] > 0 and "taken as values" not in str(with_labels)
    of_others = decomp.compress(model, [(x, torch.arange(N) % 2)], 1.5, **options)[1]
    assert "kl" not in of_others.fidelity
