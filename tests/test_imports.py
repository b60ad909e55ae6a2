"""The architecture as rules on the source text: who may import whom, who may print, how long things may get.

Each rule is a function from files to complaints. It is held against the whole checkout, and against a small bad sample
of its own, so that a rule which finds nothing is known to look.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import decomp

ROOT = Path(__file__).resolve().parent.parent

SOLVERS = ("moments", "linalg", "spatial", "channel", "lasso", "selection", "refine", "curves", "factors", "problem",
           "joint")  # fmt: skip
STAGES = ("freeze", "decompose", "finetune", "evaluate", "export", "report", "status", "train")  # a recipe calls them
RANKS = {"decomp": 0, "data": 1, "pipelines": 2, "cli": 3}
ONLY_IN = {
    "h5py": {"data/frozen.py"},
    "sklearn": {"decomp/lasso.py", "data/standard.py"},
    "click": {"cli.py", "pipelines/commands.py"},
    "matplotlib": {"pipelines/figures.py"},
    "tqdm": {"pipelines/log.py"},
}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 450, 80


def product_files():
    folders = [ROOT / "decomp", ROOT / "data", ROOT / "pipelines"]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))] + [ROOT / "cli.py", ROOT / "setup.py"]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def imports(path, source):
    """Dotted names that a file imports anywhere in it: ``from a.b import c`` gives ``a.b.c``."""
    package = ["decomp", *[part for part in Path(path).parent.parts if part != "decomp"]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room_of(path):
    return "cli" if path == "cli.py" else path.split("/")[0]


def room_of_import(name):
    parts = name.split(".")
    if parts[0] != "decomp":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in RANKS else "decomp"


def upward_imports(sources):
    for path, source in sources.items():
        for name in imports(path, source):
            room = room_of_import(name)
            if path == "decomp/__init__.py" and name in ("decomp.pipelines.emit.load", "decomp.pipelines.api"):
                continue  # the doors from the top: decomp.load, decomp.compress and the stages
            if path != "setup.py" and room is not None and RANKS[room] > RANKS[room_of(path)]:
                yield f"{path} imports {name}"


def outside_names(sources):
    """Our rooms imported as if they lay at the top, where a user's own may lie."""
    for path, source in sources.items():
        for name in imports(path, source):
            if name.split(".")[0] in ("data", "pipelines", "cli"):
                yield f"{path} imports {name}"


def solvers_beyond_tensors(sources):
    forbidden = ("torch.fx", "torchvision", "h5py", "click", "pathlib", "os", "json", "safetensors", "decomp.graph")
    for path, source in sources.items():
        if not (path.startswith("decomp/") and Path(path).stem in SOLVERS):
            continue
        for name in imports(path, source):
            if name.startswith("torch.nn") and not name.startswith("torch.nn.functional"):
                yield f"{path} imports {name}"
            if any(name == root or name.startswith(root + ".") for root in (*forbidden, "decomp.surgery")):
                yield f"{path} imports {name}"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.nn."):
                if not ast.unparse(node).startswith("torch.nn.functional"):
                    yield f"{path} uses {ast.unparse(node)}"


def misplaced_libraries(sources):
    for path, source in sources.items():
        for name in imports(path, source):
            library = name.split(".")[0]
            if path not in ONLY_IN.get(library, {path}):
                yield f"{path} imports {library}"


def stages_that_import_stages(sources):
    for path, source in sources.items():
        if not (path.startswith("pipelines/") and Path(path).stem in STAGES):
            continue
        for name in imports(path, source):
            parts = name.split(".")
            if parts[:2] == ["decomp", "pipelines"] and parts[2] in STAGES and parts[2] != Path(path).stem:
                yield f"{path} imports {name}"


def calls(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def prints(sources):
    return (f"{path} prints" for path, source in sources.items() if path != "cli.py" and "print" in calls(source))


def mathematics_that_opens_files(sources):
    return (
        f"{path} opens a file"
        for path, source in sources.items()
        if path.startswith("decomp/") and "open" in calls(source)
    )


def too_long(sources):
    for path, source in sources.items():
        if (lines := len(source.splitlines())) > MAX_FILE_LINES:
            yield f"{path} has {lines} lines"
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            first = node.body[0]
            if ast.get_docstring(node) is not None and len(node.body) > 1:
                first = node.body[1]
            # The signature does not count, nor the docstring: what has to be kept in mind does.
            if (lines := node.end_lineno - first.lineno + 1) > MAX_FUNCTION_LINES:
                yield f"{path}: {node.name} has {lines} lines"


RULES = {
    upward_imports: [
        {"decomp/cost.py": "import decomp.pipelines.files"},
        {"decomp/cost.py": "from .data import sources"},
        {"data/sources.py": "def f():\n    from decomp.pipelines import files"},
        {"pipelines/freeze.py": "from decomp import cli"},
        {"decomp/__init__.py": "from decomp.pipelines.emit import save"},
    ],
    outside_names: [{"cli.py": "from pipelines import freeze"}, {"pipelines/demo.py": "import data.sources"}],
    solvers_beyond_tensors: [
        {"decomp/spatial.py": "from torch import nn"},
        {"decomp/linalg.py": "import torch.nn as n"},
        {"decomp/channel.py": "import torch.fx"},
        {"decomp/curves.py": "from torch import fx"},
        {"decomp/factors.py": "import torch\nx = torch.nn.Conv2d"},
        {"decomp/lasso.py": "from decomp.graph import convs"},
        {"decomp/refine.py": "from pathlib import Path"},
    ],
    misplaced_libraries: [
        {"pipelines/freeze.py": "import h5py"},
        {"decomp/selection.py": "from sklearn.linear_model import lars_path"},
        {"pipelines/options.py": "def f():\n    import click"},
    ],
    stages_that_import_stages: [
        {"pipelines/evaluate.py": "from decomp.pipelines.finetune import finetune"},
        {"pipelines/decompose.py": "from decomp.pipelines import freeze"},
    ],
    prints: [{"pipelines/freeze.py": "def f():\n    print(1)"}],
    mathematics_that_opens_files: [{"decomp/plan.py": "with open('x') as f: pass"}],
    too_long: [
        {"data/a.py": "x = 1\n" * (MAX_FILE_LINES + 1)},
        {"data/a.py": "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES + 1)},
    ],
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_checkout_keeps_the_rule(rule):
    assert list(rule(product_files())) == []


@pytest.mark.parametrize(
    "rule, sample", [(rule, sample) for rule in RULES for sample in RULES[rule]], ids=lambda value: str(value)[:60]
)
def test_the_rule_notices_a_bad_sample(rule, sample):
    assert len(list(rule(sample))) > 0


@pytest.mark.parametrize(
    "rule, sample",
    [
        (upward_imports, {"cli.py": "from decomp.pipelines import freeze\nimport decomp.errors, torch"}),
        (solvers_beyond_tensors, {"decomp/factors.py": "from torch.nn import functional\nimport torch.nn.functional"}),
        (solvers_beyond_tensors, {"decomp/graph.py": "from torch import nn, fx"}),
        (stages_that_import_stages, {"pipelines/demo.py": "from decomp.pipelines.freeze import freeze"}),
        (too_long, {"data/a.py": 'def f():\n    """' + "a\n" * (MAX_FUNCTION_LINES + 1) + '    """\n    return 1\n'}),
    ],
)
def test_the_rule_lets_good_code_pass(rule, sample):
    assert list(rule(sample)) == []


def test_every_room_is_looked_at():
    rooms = {room_of(path) for path in product_files()}
    assert rooms == {*RANKS, "setup.py"}


def modules_after(code):
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return set(shown.stdout.splitlines())


@pytest.mark.parametrize("arguments", [["--help"], ["freeze", "--help"], ["--version"], ["nonsense"], []])
def test_the_door_opens_without_torch(arguments):
    code = f"from decomp.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass"
    loaded = modules_after(code)
    assert "decomp.cli" in loaded
    assert not loaded & {"torch", "torchvision", "sklearn", "h5py", "numpy", "scipy", "matplotlib"}


def test_importing_the_package_is_light_and_load_is_there():
    assert "torch" not in modules_after("import decomp")
    assert "torch" in modules_after("import decomp\nassert callable(decomp.load)")
    for name in decomp.__all__:
        assert callable(getattr(decomp, name)) and name in dir(decomp)
