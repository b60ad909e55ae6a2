"""Command of network slimming: every option reaches the argument."""

from command_line import decomp_command

from decomp.pipelines.commands import slim_commands
from decomp.pipelines.commands.main import main
from tests.pipelines.commands.recorded_calls import PRINTED, Recorded

LINE = (
    "slim --run r --model zoo:a --data digits --passes 2 --sparsity 0.01 --proximal --ratio 40% --cap 0.6 --floor 0.2 "
    "--remove-branches "
    "--epochs 3 --lr 0.25 --batch-size 6 --schedule milestones --tune-epochs 4 --tune-lr 0.02 --images 30 --seed 8 "
    "--device cpu"
)


def test_every_option_reaches_the_argument(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slim_commands, "begin", lambda threads: None)
    recipe = Recorded(monkeypatch, "recipes.slim.slim")
    result = decomp_command(*LINE.split())
    assert result.code == 0 and result.out.strip() == PRINTED, result.err
    assert recipe.calls == [
        (
            ("r", "zoo:a"),
            {
                "data": "digits", "passes": 2, "sparsity": 0.01, "proximal": True, "ratio": 0.4, "cap": 0.6,
                "floor": 0.2, "remove_branches": True, "epochs": 3, "learning_rate": 0.25, "batch_size": 6,
                "schedule": "milestones",
                "tune_epochs": 4, "tune_learning_rate": 0.02, "n_images": 30, "seed": 8, "device": "cpu",
            },
        )
    ]  # fmt: skip
    decomp_command(*"slim --run r --model zoo:a".split())
    defaults = recipe.calls[1][1]
    assert all(value == recipe.default(name) for name, value in defaults.items())


def test_the_line_has_every_option():
    options = {option for parameter in main.commands["slim"].params for option in parameter.opts}
    left_out = {"--verbose", "-v", "--threads", "--quiet", "--json", "--debug", "--learning-rate"}
    assert options - left_out == {word for word in LINE.split() if word.startswith("--")}
