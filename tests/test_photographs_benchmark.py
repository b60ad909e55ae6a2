"""The benchmark on photographs: what is new shares no photograph with what is fitted, and agreement counts classes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import photographs


def picture(seed, size=(240, 210)):
    """A smooth picture of its own: 6 x 5 random colours, enlarged."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def test_pictures_of_one_photograph_are_on_one_side_of_the_split(tmp_path):
    for seed in range(8):
        picture(seed).save(tmp_path / f"{seed}.png")
        picture(seed).resize((300, 260)).save(tmp_path / f"again-{seed}.jpg", quality=60)
    groups = photographs.photographs(tmp_path, 16)
    assert sorted(len(group) for group in groups) == [2] * 8
    calibration, new = photographs.split(groups, 6, seed=0)
    assert len(calibration) == 6 and len(new) == 10
    assert not {name[:4] for name, _ in calibration} & {name[:4] for name, _ in new}


def test_a_large_picture_gives_its_two_halves_without_a_common_pixel(monkeypatch):
    monkeypatch.setattr(photographs, "LARGE", 100)
    wide = Image.fromarray(np.arange(40 * 20, dtype=np.int32).reshape(20, 40).astype(np.uint16) // 4).convert("L")
    left, right = photographs.squares(wide, 20)
    assert np.array_equal(np.asarray(left), np.asarray(wide)[:, :20])
    assert np.array_equal(np.asarray(right), np.asarray(wide)[:, 20:])
    upper, lower = photographs.squares(wide.rotate(90, expand=True), 20)
    assert not np.array_equal(np.asarray(upper), np.asarray(lower))


def test_a_split_without_a_new_photograph_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="leave photographs that are new, got 2"):
        photographs.split([[("a", None)], [("b", None)]], 3, seed=0)


def test_agreement_is_that_of_first_classes_and_of_the_sure_ones_alone():
    original, network = nn.Identity(), nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    images = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [0, 0, 0.1]])
    row = photographs.compared(original, network, images)
    # The third class is never first again: one of three sure ones and the one that was not sure change.
    assert (row["new"], row["sure"]) == (4, 3)
    assert (row["agree"], row["agree_sure"]) == (pytest.approx(2 / 4), pytest.approx(2 / 3))
    p = images.double().softmax(1)
    other = (images * torch.tensor([1.0, 1, 0])).double().log_softmax(1)
    assert row["divergence"] == pytest.approx(float((p * (p.log() - other)).sum(1).mean()))


def test_new_squares_are_prepared_as_freeze_prepares_the_others(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    for seed in range(10):
        photographs.squares(picture(seed), 37)[0].save(folder / f"{seed}.png")
    from decomp.data.image_options import ImageOptions
    from decomp.data.sources import open_source

    options = ImageOptions(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), resize=(37,), crop=(32,))
    source = open_source(f"imagefolder:{tmp_path}", input_shape=(3, 32, 32), options=options)
    wanted = source.train.images(torch.arange(10))
    assert torch.allclose(photographs.prepared(folder, 32, "0.4,0.5,0.6", "0.2,0.3,0.4"), wanted, atol=1e-6)


def test_an_earlier_split_of_other_photographs_is_refused(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"photos": "a"}))
    options = type("Options", (), {"out": tmp_path, "photos": "b", "images": 3, "seed": 0, "size": 32})()
    with pytest.raises(SystemExit, match="give another --out"):
        photographs.make_split(options)


@pytest.mark.parametrize("text, expected", [
    ("", ([], [])),
    ("--refine-blocks", ([], ["--refine-blocks"])),
    ("freeze --no-mix", (["--no-mix"], [])),
    ("freeze --no-mix --points 20 decompose --refine-blocks", (["--no-mix", "--points", "20"], ["--refine-blocks"])),
])  # fmt: skip
def test_options_behind_the_word_freeze_are_those_of_freeze(text, expected):
    assert photographs.parts(text.split()) == expected
