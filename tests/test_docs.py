"""Documentation: the shell and Python blocks of README.md and docs/ run as written; links and lists are complete."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from decomp import cli
from decomp.cost.count import cost
from tests import test_imports as rules

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FIRST = "compress-my-classifier.md"
# The others, in the order in which they build on each other; those that take longer run with -m slow.
GUIDES = (
    "train-the-result.md", "my-own-images.md", "only-prune.md", "prune-filters.md", "limit-the-loss.md",
    "read-a-report.md", "what-the-numbers-mean.md", "edit-a-plan.md", "repr.md", "continual-learning.md",
    "slimming.md", "few-images.md",
)  # fmt: skip
SLOW = ("aim-at-latency.md", "detector-backbone.md")


@dataclass
class Block:
    language: str
    text: str


def blocks(path):
    found = re.findall(r"^```(sh|python)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)
    return [Block(language, text) for language, text in found]


def run_shell(text):
    """Run each line, a ``decomp`` command, in this process, which is quicker."""
    for line in text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "decomp", line
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit:
            cli.main(arguments)
        assert not exit.value.code, f"{line}\n{err.getvalue()}"
        assert out.getvalue().strip(), line


def run_document(path):
    """Run every block, each of which must succeed; returns the number of blocks."""
    listed, names = blocks(path), {"__name__": "__document__"}  # a block may go on with the names of those before it
    for block in listed:
        if block.language == "sh":
            run_shell(block.text)
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.text, str(path), "exec"), names)
    return len(listed)


def forget_modules_of(folder):
    """Remove what was imported from a folder, such as mine.py, so that other tests can import files of these names."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{folder}{os.sep}"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the commands of the first guide were run."""
    before, folder = os.getcwd(), tmp_path_factory.mktemp("docs")
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # as a Python started there has it
    try:
        run_document(DOCS / FIRST)
        yield folder
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
        forget_modules_of(folder)


@pytest.mark.parametrize("name", [*GUIDES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_guide_works_as_written(name, place):
    if name == "read-a-report.md" and not Path("runs/pruned").is_dir():
        run_document(DOCS / "only-prune.md")
    assert run_document(DOCS / name) > 0


def in_fresh_process(text):
    """Run Python code in a process that knows only the files in the current folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_examples_of_the_readme_work(place):
    examples = [block.text for block in blocks(ROOT / "README.md") if block.language == "python"]
    examples = [text for text in examples if "runs/mine" not in text]  # that is the reader's own network
    in_one_call, loaded, in_stages = examples
    names = {"__name__": "__document__"}
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.redirect_stderr(io.StringIO()):
        exec(compile(in_one_call, "README.md", "exec"), names)
    assert "MACs" in shown.getvalue()
    network, images = names["network"], names["images"]
    assert 4 <= cost(names["model"], images.shape[1:]).macs / cost(network, images.shape[1:]).macs < 4.1
    torch.save((images, network(images)), "outputs.pt")
    check = "import torch\nimages, outputs = torch.load('outputs.pt')\nassert torch.equal({}(images), outputs)\n"
    with_alone = loaded.replace("network = decomp.load", "alone = decomp.load", 1)
    in_fresh_process(with_alone + check.format("network") + check.format("alone"))
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(compile(in_stages, "README.md", "exec"), {"__name__": "__document__"})
    assert "MACs" in shown.getvalue() and Path("runs/python/report.html").is_file()


def test_every_guide_is_listed_tested_and_found_by_its_links():
    # Those without quick commands.
    pages = {
        "README.md",
        "architecture.md",
        "limits.md",
        "results.md",
        "coverage.md",
        "faults.md",
        "peers.md",
        "peers-pruning.md",
        "clock.md",
        "phases.md",
        "criteria.md",
        "gpu.md",
        "scale.md",  # its commands are those of tests/pipelines/distributed/
        "reproduce-the-paper.md",  # its commands need ImageNet
    }
    files = {path.name for path in DOCS.glob("*.md")} - pages
    assert files == {FIRST, *GUIDES, *SLOW}
    for path in [*DOCS.glob("*.md"), ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        if path == DOCS / "README.md":
            assert all(f"({name})" in text for name in files | pages - {"README.md"})
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert link.startswith("http") or (path.parent / link).exists(), f"{path.name}: {link}"


# -- the page about the code ------------------------------------------------------------------------------------

ARCHITECTURE = DOCS / "architecture.md"
CODE_PATH = re.compile(r"(?<![\w/.-])(?:(?:decomp|data|pipelines|tests|benchmarks|docs)/[\w./]*\w/?|cli\.py|setup\.py)")


def dead_paths(text):
    return [path for path in CODE_PATH.findall(text) if not (ROOT / path).exists()]


def table_rows(text, start):
    """Cells of the table rows whose first or second cell is a path below `start`: {path: [cells]}."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        path = next((cell.strip("`") for cell in cells[:2] if re.fullmatch(rf"`{start}[\w./]*`", cell)), None)
        if line.startswith("| ") and path is not None:
            rows[path] = cells
    return rows


def code_words(cell):
    return set(re.findall(r"`(\w+)`", cell))


def modules_in(cell):
    """Modules given by their paths, as dotted names."""
    return {path.removesuffix(".py").replace("/", ".") for path in CODE_PATH.findall(cell) if path.endswith(".py")}


def folders_in(top):
    return {path.name for path in (ROOT / top).iterdir() if (path / "__init__.py").is_file()}


def test_every_path_on_the_architecture_page_exists():
    text = ARCHITECTURE.read_text(encoding="utf-8")
    assert len(CODE_PATH.findall(text)) > 60
    assert dead_paths(text) == []


def test_names_given_with_a_file_are_in_it():
    text = ARCHITECTURE.read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)`(?: \(| of | in )`([\w/]+\.py)`", text)
    assert len(named) >= 5
    assert [pair for pair in named if not re.search(rf"\b{pair[0]}\b", (ROOT / pair[1]).read_text("utf-8"))] == []


def test_a_dead_path_is_noticed():
    text = "`decomp/graph/layer.py` `decomp/lasso.py` (`pipelines/recipe/`) `data/formats/` `cli.py` `setup.py`"
    assert dead_paths(text) == ["decomp/lasso.py", "pipelines/recipe/"]


def test_the_import_tables_of_the_page_are_those_of_the_rules():
    text = ARCHITECTURE.read_text(encoding="utf-8")
    shown = {
        path.split("/")[1]: code_words(cells[2]) | {name.removeprefix("decomp.") for name in modules_in(cells[2])}
        for path, cells in table_rows(text, "decomp/").items()
    }
    assert shown == {name: rules.DECOMP_MAY_IMPORT[name] for name in folders_in("decomp")}
    imports = table_rows(text, "data/")["data/"][2]
    assert code_words(imports) == rules.DATA_MAY_IMPORT
    assert modules_in(imports) == rules.DATA_MAY_IMPORT_MODULES
    rows = {}
    for path, cells in table_rows(text, "pipelines/").items():
        rows.setdefault(int(cells[0]), set()).add(path.split("/")[1].removesuffix(".py"))
    assert [rows[place] for place in sorted(rows)] == rules.PIPELINES_ROWS


def arrows(text):
    """Imports drawn by mermaid lines such as ``G["graph"] --> M & P["problem"]``: {folder: folders}."""
    names = dict(re.findall(r'\b([A-Z])\["(\w+)"\]', text))
    drawn = {name: set() for name in names.values()}
    for start, ends in re.findall(r"^  ([A-Z])\b\S* --> (.*)$", text, re.M):
        drawn[names[start]] |= {names[end] for end in re.findall(r"\b([A-Z])\b", ends)}
    return drawn


def test_the_drawn_imports_are_those_of_the_rules():
    chart = next(text for text in ARCHITECTURE.read_text("utf-8").split("```mermaid\n") if '["surgery"]' in text)
    drawn = arrows(chart.split("```")[0])
    allowed = {name: {entry.split(".")[0] for entry in rules.DECOMP_MAY_IMPORT[name]} for name in folders_in("decomp")}
    assert drawn == allowed


def test_every_folder_is_on_the_page():
    text = ARCHITECTURE.read_text(encoding="utf-8")
    named = set(CODE_PATH.findall(text))
    for top in ("decomp", "data", "pipelines"):
        assert {f"{top}/{name}/" for name in folders_in(top)} <= named


def test_blocks_are_found_with_their_language(tmp_path):
    (tmp_path / "a.md").write_text("```sh\ndecomp a\n```\ntext\n```python\nx = 1\n```\n```bash\nnot this\n```\n")
    assert blocks(tmp_path / "a.md") == [Block("sh", "decomp a\n"), Block("python", "x = 1\n")]


def test_modules_of_the_guides_are_forgotten(tmp_path, monkeypatch):
    (tmp_path / "of_a_guide.py").write_text("x = 1")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("of_a_guide")
    forget_modules_of(tmp_path)
    assert "of_a_guide" not in sys.modules and "torch" in sys.modules
