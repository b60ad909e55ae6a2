"""Commands of filter pruning: every option reaches the argument."""

import click
import pytest
from command_line import decomp_command

from decomp.pipelines.commands import prune_commands
from decomp.pipelines.commands.main import main
from tests.pipelines.commands.recorded_calls import PRINTED, Recorded

LINE = (
    "prune --run r --model zoo:a --data digits --criterion taylor --speedup 2.5x --cost latency --ranking global "
    "--normalise max --floor 0.2 --cap 0.5 --scoring independent --coupled --bias mean --remove-branches "
    "--recalibrate-bn --skip a --skip b.* --multiple 4 --batch-size 3 --runtime compile --layout channels-last "
    "--weights w.pt --input-size 3x8x8 --mean 0.5 --std 0.2 --resize 40x36 "
    "--crop 32 --no-flip --transforms t.py:make --module body --leaf a --outputs values --images 20 --points 3 --redo "
    "--memory 2MiB --seed 5 --device cuda:1 --skip-bad"
)


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prune_commands, "begin", lambda threads: None)
    return Recorded(monkeypatch, "recipes.prune_run.prune_run")


def test_every_option_reaches_the_argument(recipe):
    result = decomp_command(*LINE.split())
    assert result.code == 0 and result.out.strip() == PRINTED, result.err
    (run,), options = recipe.calls[0]
    frozen = options.pop("frozen")
    assert run == "r" and options == {
        "model": "zoo:a", "data": "digits", "criterion": "taylor", "speedup": 2.5, "ratio": None, "keep": None,
        "cost": "latency", "ranking": "global", "normalise": "max", "floor": 0.2, "cap": 0.5, "scoring": "independent",
        "coupled": True, "remove_branches": True, "bias": "mean", "recalibrate_bn": True,
        "skip": ("a", "b.*"), "multiple": 4, "latency_batch": 3, "runtime": "compile",
        "latency_layout": "channels-last", "redo": True, "seed": 5, "device": "cuda:1",
    }  # fmt: skip
    assert frozen == {
        "weights": "w.pt", "input_size": "3x8x8", "mean": (0.5,), "std": (0.2,), "resize": (40, 36), "crop": (32,),
        "flip": False, "transforms": "t.py:make", "part": "body", "leaves": ("a",), "outputs": "values",
        "n_images": 20, "n_points": 3, "skip_bad": True, "memory": 2 << 20, "seed": 5,
    }  # fmt: skip


def test_the_line_has_every_option():
    options = {option for parameter in main.commands["prune"].params for option in parameter.opts}
    left_out = {"--ratio", "--keep", "--verbose", "-v", "--threads", "--quiet", "--json", "--debug"}
    assert options - left_out == {word for word in LINE.split() if word.startswith("--")}


def test_ratio_and_plan_are_read(recipe):
    decomp_command(*"prune --run r --ratio 25%".split())
    decomp_command(*"prune --run r --keep p.json".split())
    assert recipe.calls[0][1]["ratio"] == 0.25 and recipe.calls[1][1]["keep"] == "p.json"


@pytest.mark.parametrize("ratio", ["1", "-0.1", "1.5", "100%", "half", "nan"])
def test_a_ratio_outside_of_0_to_1_is_refused(recipe, ratio):
    result = decomp_command("prune", "--run", "r", f"--ratio={ratio}")
    assert result.code == 2 and "--ratio: must be a share from 0 to below 1, got" in result.err and not recipe.calls


def test_what_a_plan_decides_is_refused_beside_it(recipe):
    result = decomp_command(*"prune --run r --keep p.json --criterion l2".split())
    assert result.code == 2 and "--keep: contains the value of --criterion itself" in result.err
    assert set(prune_commands.DECIDED_BY_PLAN) <= {parameter.name for parameter in main.commands["prune"].params}


def test_the_command_is_listed(recipe):
    with click.Context(main) as context:
        assert "prune" in main.list_commands(context)


def test_sensitivity_passes_its_options_on(recipe, monkeypatch):
    stage = Recorded(monkeypatch, "stages.sensitivity.sensitivity")
    decomp_command(
        *"sensitivity --run r --criterion l2 --ratios 0.5,0.25 --coupled --redo --seed 3 --device cpu".split()
    )
    options = {"criterion": "l2", "ratios": (0.25, 0.5), "coupled": True, "redo": True, "seed": 3, "device": "cpu"}
    assert stage.calls == [(("r",), options)]
    decomp_command(*"sensitivity --run r".split())
    assert stage.calls[1][1]["ratios"] == stage.default("ratios") == (0.1, 0.3, 0.5, 0.7, 0.9)
