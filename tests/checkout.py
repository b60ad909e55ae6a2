"""Source files of the checkout, for rules on their text."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def product_files():
    folders = [ROOT / "decomp", ROOT / "data", ROOT / "pipelines"]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))] + [ROOT / "cli.py", ROOT / "setup.py"]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def checkout_files():
    """The product's files and those of the tests and benchmarks."""
    paths = [path for folder in (ROOT / "tests", ROOT / "benchmarks") for path in sorted(folder.rglob("*.py"))]
    return {**product_files(), **{path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}}


def in_folder(sources, *folders):
    return {path: source for path, source in sources.items() if path.startswith(tuple(f"{f}/" for f in folders))}
