"""What the documents say to type is typed here: their shell and Python blocks, in order, in one folder."""

import contextlib
import io
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from decomp import cli

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FIRST = "compress-my-classifier.md"
# The others, in the order in which they build on each other; those that take longer run with -m slow.
GUIDES = ("only-prune.md", "read-a-report.md", "what-the-numbers-mean.md", "edit-a-plan.md")
SLOW = ("aim-at-latency.md", "detector-backbone.md")


@dataclass
class Block:
    language: str
    text: str


def blocks(path):
    found = re.findall(r"^```(sh|python)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)
    return [Block(language, text) for language, text in found]


def run_shell(text):
    """Every line is one of our commands; given in this process, which is quicker."""
    for line in text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "decomp", line
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit:
            cli.main(arguments)
        assert not exit.value.code, f"{line}\n{err.getvalue()}"
        assert out.getvalue().strip(), line


def run_document(path):
    """Run every block, each of which must succeed; returns how many there were."""
    found = blocks(path)
    for block in found:
        if block.language == "sh":
            run_shell(block.text)
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.text, str(path), "exec"), {"__name__": "__document__"})
    return len(found)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the first guide has been followed."""
    before, folder = os.getcwd(), tmp_path_factory.mktemp("docs")
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # as a Python started there has it
    try:
        run_document(DOCS / FIRST)
        yield folder
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))


@pytest.mark.parametrize("name", [*GUIDES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_guide_works_as_written(name, place):
    if name == "read-a-report.md" and not Path("runs/pruned").is_dir():
        run_document(DOCS / "only-prune.md")
    assert run_document(DOCS / name) > 0


def test_the_examples_of_the_readme_work(place):
    import torch

    examples = [block.text for block in blocks(ROOT / "README.md") if block.language == "python"]
    examples = [text for text in examples if "runs/mine" not in text]  # that is the reader's own network
    assert len(examples) == 2
    for text in examples:
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            exec(compile(text, "README.md", "exec"), {"__name__": "__document__"})
        assert "MACs" in shown.getvalue()
    assert Path("runs/python/report.html").is_file()
    assert len(torch.load("compressed.pth", weights_only=True)) > 5


def test_every_guide_is_listed_tested_and_found_by_its_links():
    pages = {"README.md", "coverage.md", "faults.md", "peers.md"}  # none of their commands is quick
    files = {path.name for path in DOCS.glob("*.md")} - pages
    assert files == {FIRST, *GUIDES, *SLOW}
    for path in [*DOCS.glob("*.md"), ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        if path == DOCS / "README.md":
            assert all(f"({name})" in text for name in files)
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert link.startswith("http") or (path.parent / link).exists(), f"{path.name}: {link}"


def test_blocks_are_found_with_their_language(tmp_path):
    (tmp_path / "a.md").write_text("```sh\ndecomp a\n```\ntext\n```python\nx = 1\n```\n```bash\nnot this\n```\n")
    assert blocks(tmp_path / "a.md") == [Block("sh", "decomp a\n"), Block("python", "x = 1\n")]
