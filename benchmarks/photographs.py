"""Agreement of a compressed network with its original on photographs that no fit has seen, from a folder of pictures.

    python -m benchmarks.photographs --photos DIR --model file.py:network --size 224 --images 150 --speedup 2x

A text of `--options` that begins with `freeze` gives further options of `freeze` in front of those of `decompose`, with
`decompose` between them. `--minutes 5` tunes each result for so long without labels, and adds a row of it.

Every picture below DIR gives one square, a picture of more than `LARGE` pixels two that do not overlap. Photographs are
drawn for the calibration images until there are enough; all others are new ones. Pictures that look the same
(`fingerprint`) are one photograph, so that no new square shows what a fitted one does. No label is needed: the first
class of the original is compared with that of the compressed network, also on those squares alone of which the original
is sure (more than half of the probability). `fitted` and `held_out` are means over the layers of their relative errors,
`processor` the seconds of `decompose`. What is there already is not run again.
"""

import argparse
import json
import shlex
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common import machine, markdown, stage
from decomp.data.folders import SUFFIXES, read_image
from decomp.data.formats import network_file
from decomp.pipelines.run.directory import RunDirectory

#: Pixels from which on a picture gives two squares.
LARGE = 2_000_000
#: Bits in which the fingerprints of two pictures of one photograph differ at most, of 64.
SAME = 9
#: Share of a square's side that is cut out of its middle, as classifiers for ImageNet usually take it.
MIDDLE = 224 / 256
SURE = 0.5
FIELDS = (
    "images", "options", "network", "new", "agree", "sure", "agree_sure", "divergence", "fitted", "held_out",
    "processor",
)  # fmt: skip


def fingerprint(picture):
    """64 bits: whether each of 8 x 8 places of the small grey picture is brighter than the one to its left."""
    small = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.LANCZOS), dtype=int)
    return (small[:, 1:] > small[:, :-1]).flatten()


def squares(picture, side):
    """The middle square of a picture, or of either half of a large one along its longer axis; (side, side) pixels."""
    width, height = picture.size
    boxes = [(0, 0, width, height)]
    if width * height > LARGE:
        middle = (width // 2, height) if width >= height else (width, height // 2)
        rest = (width // 2, 0) if width >= height else (0, height // 2)
        boxes = [(0, 0, *middle), (*rest, width, height)]
    found = []
    for left, top, right, bottom in boxes:
        edge = min(right - left, bottom - top)
        x, y = left + (right - left - edge) // 2, top + (bottom - top - edge) // 2
        found.append(picture.resize((side, side), Image.Resampling.LANCZOS, (x, y, x + edge, y + edge)))
    return found


def photographs(folder, side):
    """Squares of every photograph below a folder, pictures that look the same together; their names with them."""
    groups = []
    for path in sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES):
        picture = read_image(path)
        if min(picture.size) < 200:
            continue
        own = fingerprint(picture)
        like = [any((own != other).sum() <= SAME for other in group["bits"]) for group in groups]
        place = like.index(True) if any(like) else len(groups)
        if place == len(groups):
            groups.append({"bits": [], "squares": []})
        group, first = groups[place], len(groups[place]["squares"])
        group["bits"].append(own)
        found = enumerate(squares(picture, side), first)
        group["squares"] += [(f"{place:04d}-{number}-{path.stem}", square) for number, square in found]
    return [group["squares"] for group in groups]


def split(groups, n_images, seed):
    """Squares for calibration, so many, and those of all other photographs."""
    order = np.random.default_rng(seed).permutation(len(groups))
    calibration = []
    for place, group in enumerate(order):
        if len(calibration) >= n_images:
            return calibration[:n_images], [square for other in order[place:] for square in groups[other]]
        calibration += groups[group]
    raise SystemExit(f"--images {n_images}: must leave photographs that are new, got {len(groups)}; give fewer.")


def compared(original, network, images):
    """Shares of equal first classes, of all images and of those the original is sure of, and the mean divergence."""
    with torch.no_grad():
        wanted, got = (torch.cat([net(x) for x in images.split(50)]).double() for net in (original, network))
    share = wanted.softmax(1)
    same, sure = wanted.argmax(1) == got.argmax(1), share.amax(1) > SURE
    divergence = (share * (wanted.log_softmax(1) - got.log_softmax(1))).sum(1)
    return {
        "new": len(images), "agree": same.double().mean().item(), "sure": int(sure.sum()),
        "agree_sure": same[sure].double().mean().item(), "divergence": divergence.mean().item(),
    }  # fmt: skip


def prepared(folder, size, mean, std):
    """Squares of a folder as `freeze --resize --crop` takes them: float32, shape (N, 3, size, size)."""
    side, found = round(size / MIDDLE), []
    for path in sorted(Path(folder).glob("*.png")):
        picture = read_image(path).resize((side, side), Image.Resampling.BILINEAR)
        start = (side - size) // 2
        picture = picture.crop((start, start, start + size, start + size))
        found.append(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255)
    mean, std = (torch.tensor([float(part) for part in text.split(",")]).view(-1, 1, 1) for text in (mean, std))
    return (torch.stack(found) - mean) / std


def parts(extra):
    """Options of freeze and those of decompose in the words of one row."""
    if extra[:1] != ["freeze"]:
        return [], extra
    end = extra.index("decompose") if "decompose" in extra else len(extra)
    return extra[1:end], extra[end + 1 :]


def measure(options, extra):
    """Rows of one choice of options: freeze, decompose, tune for some minutes, each compared on new photographs."""
    out, log = options.out, options.out / "stages.json"
    freezing, rest = parts(extra)
    frozen, run = out / "-".join(["frozen", *bare(freezing)]), out / ("-".join(bare(extra)) or "plain")
    side = round(options.size / MIDDLE)
    stage(
        log, "freeze", "--model", options.model, "--data", f"imagefolder:{out / 'calibration'}", "--mean", options.mean,
        "--std", options.std, "--resize", str(side), "--crop", str(options.size), "--input-size", str(options.size),
        "--images", str(options.images), "--outputs", "scores", "--run", str(frozen), *freezing,
    )  # fmt: skip
    stage(log, "decompose", "--from", str(frozen), "--run", str(run), "--speedup", options.speedup, *rest)
    original, new = (
        network_file.load(frozen / "original"),
        prepared(out / "new", options.size, options.mean, options.std),
    )
    facts = RunDirectory.open(run).config("decompose")
    last = [list(report["errors"].values())[-1] for report in facts["layers"]]
    errors = {name: float(np.mean([error[name] for error in last])) for name in ("fitted", "held_out")}
    took = sum(part["processor_seconds"] for part in facts["times"])
    about = {"images": options.images, "options": shlex.join(extra) or "none"}
    rows = [{**about, "network": "untrained", **compared(original, network_file.load(run / "model"), new), **errors}]
    rows[0]["processor"] = took
    if options.minutes is not None:
        minutes = f"{options.minutes:g}"
        stage(log, "finetune", "--run", str(run), "--labels", "none", "--minutes", minutes)
        tuned = network_file.load(run / "finetune" / "best")
        rows.append({**about, "network": f"tuned for {minutes} minutes", **compared(original, tuned, new)})
    return rows


def bare(words):
    """Words without the hyphens in front."""
    return [word.strip("-") for word in words]


def main():
    """Split the photographs, run what is missing, print the table and write it beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", required=True, type=Path, help="folder of pictures, with its subfolders")
    parser.add_argument("--model", required=True)
    parser.add_argument("--size", default=224, type=int)
    parser.add_argument("--mean", default="0.485,0.456,0.406")
    parser.add_argument("--std", default="0.229,0.224,0.225")
    parser.add_argument("--images", default=150, type=int)
    parser.add_argument("--seed", default=0, type=int, help="of the split")
    parser.add_argument("--speedup", default="2x")
    parser.add_argument("--options", default=[""], nargs="+", help="options, one text for each network")
    parser.add_argument("--minutes", type=float, help="also tune each result for so long, without labels")
    parser.add_argument("--out", default="runs/photographs", type=Path)
    options = parser.parse_args()
    make_split(options)
    rows = [row for extra in options.options for row in measure(options, shlex.split(extra))]
    text = markdown(FIELDS, rows)
    (options.out / "table.md").write_text(text + "\n")
    print(f"\n{options.model} at {options.speedup}, {machine()}\n\n{text}")


def make_split(options):
    """Write the squares for calibration and the new ones, once."""
    done = options.out / "split.json"
    asked = {"photos": str(options.photos), "images": options.images, "seed": options.seed, "size": options.size}
    if not done.exists():
        start = time.monotonic()
        groups = photographs(options.photos, round(options.size / MIDDLE))
        calibration, new = split(groups, options.images, options.seed)
        for folder, some in ((options.out / "calibration" / "train", calibration), (options.out / "new", new)):
            folder.mkdir(parents=True, exist_ok=True)
            for name, square in some:
                square.save(folder / f"{name}.png")
        done.write_text(json.dumps(asked))
        print(f"{len(calibration)} squares for calibration, {len(new)} new ones, {time.monotonic() - start:.0f} s")
    elif json.loads(done.read_text()) != asked:
        raise SystemExit(f"{options.out}: was made with {done.read_text()}; give another --out.")


if __name__ == "__main__":
    main()
