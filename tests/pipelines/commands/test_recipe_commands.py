"""Commands of published experiments: every option reaches the argument."""

from command_line import decomp_command

from decomp.pipelines.commands import recipe_commands
from tests.pipelines.commands.recorded_calls import PRINTED, Recorded

LINE = (
    "recipe imagenet --run r --data imagefolder:x --network vgg16 --network zoo:a=2x --weights w.pt --epochs 0 "
    "--images 30 --batch-size 6 --seed 8 --memory 1GiB --skip-bad --device cpu"
)


def test_every_option_reaches_the_argument(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe_commands, "begin", lambda threads: None)
    table = Recorded(monkeypatch, "recipes.imagenet.imagenet")
    result = decomp_command(*LINE.split())
    assert result.code == 0 and result.out.strip() == PRINTED, result.err
    (where, data), options = table.calls[0]
    assert (str(where), data) == ("r", "imagefolder:x")
    assert options == {
        "networks": ("vgg16", "zoo:a=2x"), "weights": "w.pt", "epochs": 0, "n_images": 30, "batch_size": 6, "seed": 8,
        "memory": 2**30, "skip_bad": True, "device": "cpu",
    }  # fmt: skip
    decomp_command(*"recipe imagenet --run r --data imagefolder:x".split())
    defaults = table.calls[1][1]
    assert {name: table.default(name) for name in defaults} == defaults


def test_without_an_experiment_there_is_help():
    assert "imagenet" in decomp_command("recipe").out
