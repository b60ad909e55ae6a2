"""Checkpoints: what is refused, that no code of theirs runs, and the digest over every bit."""

import pytest
import torch

from decomp.errors import FileError
from decomp.pipelines.training import checkpoints
from decomp.pipelines.training.recipe import ParameterGroup, Recipe
from tests.pipelines.training.small_training import small_net, train


def test_a_checkpoint_of_other_options_is_refused_by_name(tmp_path):
    train(small_net(), checkpoint=tmp_path / "last.pt", identity={"labels": "train"})
    recipe = Recipe(epochs=3, learning_rate=0.2, batch_size=8)
    with pytest.raises(FileError, match=r"learning rate 0.1 \(now 0.2\)"):
        train(small_net(), recipe=recipe, checkpoint=tmp_path / "last.pt", identity={"labels": "train"})
    with pytest.raises(FileError, match=r"labels train \(now none\)"):
        train(small_net(), checkpoint=tmp_path / "last.pt", identity={"labels": "none"})


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04broken"])
def test_a_broken_checkpoint_is_one_clear_error(tmp_path, content):
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(FileError, match="cannot be read as a checkpoint"):
        train(small_net(), checkpoint=tmp_path / "last.pt")


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"version": checkpoints.VERSION, "module": Hostile()}, tmp_path / "last.pt")
    with pytest.raises(FileError):
        checkpoints.read(tmp_path / "last.pt")
    assert not (tmp_path / "ran").exists()


def test_groups_of_other_parameters_or_rates_are_refused(tmp_path):
    def recipe(pattern, **options):
        return Recipe(1, 0.1, 8, groups=(ParameterGroup("scales", (pattern,), **options),))

    train(small_net(), recipe=recipe("1.*"), checkpoint=tmp_path / "a.pt")
    for other in (
        recipe("1.weight"),
        recipe("1.*", learning_rate=0.2),
        recipe("1.*", optimizer="adam"),
        Recipe(1, 0.1, 8),
    ):
        with pytest.raises(FileError, match="another training: group scales; give the same options"):
            train(small_net(), recipe=other, checkpoint=tmp_path / "a.pt")
    train(small_net(), recipe=recipe("1.*"), checkpoint=tmp_path / "a.pt")


@pytest.fixture
def content(tmp_path):
    train(small_net(), recipe=Recipe(1, 0.1, 8), checkpoint=tmp_path / "a.pt")
    return torch.load(tmp_path / "a.pt", weights_only=True)


def test_an_older_version_is_named(tmp_path, content):
    torch.save({**content, "version": 2}, tmp_path / "a.pt")
    with pytest.raises(FileError, match="checkpoints of version 4 can be read, got version 2; remove it to train anew"):
        checkpoints.read(tmp_path / "a.pt")


def test_a_changed_bit_anywhere_is_damage(tmp_path, content):
    content["module"]["0.weight"].view(torch.int32)[0, 0, 0, 0] ^= 1
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(FileError, match="does not match the digest in it"):
        checkpoints.read(tmp_path / "a.pt")


def test_a_missing_entry_is_an_error(tmp_path, content):
    del content["hooks"]
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(FileError, match="entries are missing"):
        checkpoints.read(tmp_path / "a.pt")


def test_another_network_is_an_error(tmp_path, content):
    net = small_net()
    net[0] = torch.nn.Conv2d(1, 4, 3, padding=1)
    with pytest.raises(FileError, match="does not fit the network that is to be trained"):
        train(net, recipe=Recipe(1, 0.1, 8), checkpoint=tmp_path / "a.pt")


def test_the_digest_covers_order_types_shapes_and_every_bit():
    values = [
        {"a": 1, "b": 2},
        {"b": 2, "a": 1},
        {"a": 1, "b": 2.0},
        [["a"], "b"],
        ["a", ["b"]],
        ["a", "b"],
        [None],
        [False],
        [],
        torch.zeros(2),
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(2, 1),
        torch.tensor([0.0, -0.0]),
        torch.zeros(0),
        torch.tensor(0.0),
    ]
    assert len({checkpoints.digest(value) for value in values}) == len(values)
    assert checkpoints.digest(torch.ones(2, 3).T) == checkpoints.digest(torch.ones(3, 2))
    assert checkpoints.digest({"a": [torch.ones(2), 1]}) == checkpoints.digest({"a": (torch.ones(2), 1)})
