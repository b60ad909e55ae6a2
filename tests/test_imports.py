"""Architecture rules on the source text: which folder imports which, which library is used where.

Each rule is a function from ``{path: source}`` to (complaints, number of files it looked at). It is held against the
whole checkout, and against bad samples of its own, so that a rule which finds nothing is known to look.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT, in_folder, product_files

import decomp

# Folders, or single modules of a folder, that each folder of decomp/ may import, besides itself and the modules of
# ANYWHERE. Cost models implement an interface of the allocation and a plan is a value: the search is for neither.
DECOMP_MAY_IMPORT = {
    "problem": set(),
    "allocation": set(),
    "runtimes": {"modules"},
    "solvers": {"problem"},
    "modules": {"problem"},
    "graph": {"modules"},
    "cost": {"modules", "problem", "runtimes", "allocation.interfaces", "allocation.plan"},
    "surgery": {"modules", "problem", "cost", "graph", "allocation.plan"},
    "execution": {"graph", "cost", "modules"},
    "criteria": {"graph", "modules", "allocation.sizes"},
    "schemes": {"criteria", "modules", "graph"},
}
ANYWHERE = {"errors", "exact_sum", "seeds", "time_spent"}
# Files that only lead to others.
DOORS = ("setup.py", "decomp/__init__.py", "decomp/__main__.py")
# Each row of pipelines/ may import the rows above it; folders of one row do not import each other.
PIPELINES_ROWS = [
    {"console", "distributed"}, {"run"}, {"measure"}, {"training", "decomposition", "pruning", "reporting"},
    {"continual"}, {"stages"}, {"recipes"}, {"commands"}, {"api", "task_handle"},
]  # fmt: skip
# What data/ may take from decomp/: values, structure and surgery of networks, but no solver and no search.
DATA_MAY_IMPORT = {"problem", "modules", "graph", "surgery", "cost", "execution"}
DATA_MAY_IMPORT_MODULES = {"decomp.allocation.plan", "decomp.allocation.layer_curves"}
NO_TORCH_NN = {"problem", "solvers", "allocation"}
LIBRARIES = {
    "h5py": {"data/formats/frozen_file.py"},
    "sklearn": {"decomp/solvers/lasso.py", "data/standard.py"},
    "click": {"pipelines/commands/"},
    "matplotlib": {"pipelines/reporting/"},
    "tqdm": {"pipelines/console/"},
    "onnxruntime": {"data/formats/exported.py", "data/formats/quantised.py", "decomp/runtimes/onnx.py"},
    "onnx": {"data/formats/quantised.py", "decomp/runtimes/onnx_graph.py"},
    "openvino": {"decomp/runtimes/openvino.py"},
    "torch.distributed": {"pipelines/distributed/"},
}


def package_of(path):
    parts = Path(path).parts[:-1]
    return list(parts) if parts[:1] == ("decomp",) else ["decomp", *parts]


def import_statements(path, source):
    """(dotted name, level) of every import in a file: ``from a.b import c`` gives ``a.b.c``."""
    package = package_of(path)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            yield from ((f"{base}.{alias.name}", node.level) for alias in node.names)


def imports(path, source):
    return (name for name, _ in import_statements(path, source))


def top_of(name):
    """'data', 'pipelines', 'cli' or 'decomp' for a dotted name of ours; None for another library's."""
    parts = name.split(".")
    if parts[0] != "decomp":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ("data", "pipelines", "cli") else "decomp"


def upward_imports(sources):
    rank, complaints = {"decomp": 0, "data": 1, "pipelines": 2, "cli": 3}, []
    looked = {path: source for path, source in sources.items() if path not in DOORS}
    for path, source in looked.items():
        own = "cli" if path == "cli.py" else path.split("/")[0]
        for name in imports(path, source):
            if top_of(name) is not None and rank[top_of(name)] > rank[own]:
                complaints.append(f"{path} imports {name}")
    return complaints, len(looked)


def folders_of_decomp(sources):
    complaints, looked = [], in_folder(sources, "decomp")
    for path, source in looked.items():
        parts = path.split("/")
        if len(parts) < 3:
            continue
        for name in imports(path, source):
            if top_of(name) != "decomp":
                continue
            folder, module = (".".join(name.split(".")[1:end]) for end in (2, 3))
            if {folder, module}.isdisjoint({parts[1], *ANYWHERE, *DECOMP_MAY_IMPORT[parts[1]]}):
                complaints.append(f"{path} imports {name}")
    return complaints, len(looked)


def rows_of_pipelines(sources):
    complaints, looked = [], in_folder(sources, "pipelines")
    row = {folder: place for place, folders in enumerate(PIPELINES_ROWS) for folder in folders}
    for path, source in looked.items():
        own = path.split("/")[1].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imports(path, source):
            if not name.startswith("decomp.pipelines."):
                continue
            target = name.split(".")[2]
            if target != own and row[target] >= row[own]:
                complaints.append(f"{path} imports {name}")
    return complaints, len(looked)


def data_without_search(sources):
    complaints, looked = [], in_folder(sources, "data")
    for path, source in looked.items():
        for name in imports(path, source):
            if top_of(name) != "decomp" or name.count(".") < 2:
                continue
            module = ".".join(name.split(".")[:3])
            if name.split(".")[1] not in {*ANYWHERE, *DATA_MAY_IMPORT} and module not in DATA_MAY_IMPORT_MODULES:
                complaints.append(f"{path} imports {name}")
    return complaints, len(looked)


def mathematics_beyond_tensors(sources):
    forbidden = ("torch.fx", "torchvision", "h5py", "click", "pathlib", "os", "json", "safetensors")
    complaints, looked = [], in_folder(sources, *(f"decomp/{folder}" for folder in NO_TORCH_NN))
    for path, source in looked.items():
        for name in imports(path, source):
            if name.startswith("torch.nn") and not name.startswith("torch.nn.functional"):
                complaints.append(f"{path} imports {name}")
            if any(name == root or name.startswith(root + ".") for root in forbidden):
                complaints.append(f"{path} imports {name}")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("torch.nn.", "torch.fx.")):
                if not ast.unparse(node).startswith("torch.nn.functional"):
                    complaints.append(f"{path} uses {ast.unparse(node)}")
    return complaints, len(looked)


def misplaced_libraries(sources):
    complaints = []
    for path, source in sources.items():
        for name in imports(path, source):
            for library, places in LIBRARIES.items():
                if (name == library or name.startswith(f"{library}.")) and not path.startswith(tuple(places)):
                    complaints.append(f"{path} imports {library}")
    return complaints, len(sources)


def stages_apart(sources):
    complaints, looked = [], in_folder(sources, "pipelines/stages")
    for path, source in looked.items():
        for name in imports(path, source):
            parts = name.split(".")
            if parts[:3] == ["decomp", "pipelines", "stages"] and parts[3] != Path(path).stem:
                complaints.append(f"{path} imports {name}")
    return complaints, len(looked)


def relative_inside_absolute_into_decomp(sources):
    """``data/`` and ``pipelines/`` name each other relatively, so that an editor follows them in a checkout too."""
    complaints = []
    looked = {
        **in_folder(sources, "data", "pipelines", "decomp"),
        **{p: s for p, s in sources.items() if p == "cli.py"},
    }
    for path, source in looked.items():
        for name, level in import_statements(path, source):
            if path.startswith("decomp/"):
                wrong = level > 0
            else:
                wrong = (level > 0) != (top_of(name) in ("data", "pipelines"))
            if wrong or name.split(".")[0] in ("data", "pipelines", "cli"):
                complaints.append(f"{path} imports {name}")
    return complaints, len(looked)


def options_named_in_decomp(sources):
    """A name such as ``--speedup`` belongs to the command line; the computation names the quantity."""
    complaints, looked = [], in_folder(sources, "decomp")
    for path, source in looked.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lstrip().startswith("--"):
                complaints.append(f"{path}:{node.lineno} names an option: {node.value[:40]!r}")
    return complaints, len(looked)


def calls(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def prints(sources):
    looked = {path: source for path, source in sources.items() if path != "cli.py"}
    return [f"{path} prints" for path, source in looked.items() if "print" in calls(source)], len(looked)


def mathematics_that_opens_files(sources):
    looked = in_folder(sources, "decomp")
    return [f"{path} opens a file" for path, source in looked.items() if "open" in calls(source)], len(looked)


RULES = {
    upward_imports: [
        {"decomp/cost/count.py": "import decomp.pipelines.run"},
        {"decomp/graph/layer.py": "from decomp.data import sources"},
        {"data/sources.py": "def f():\n    from ..pipelines.run import directory"},
        {"pipelines/stages/freeze.py": "from decomp import cli"},
    ],
    folders_of_decomp: [
        {"decomp/graph/a.py": "from decomp.surgery import batchnorm"},
        {"decomp/graph/a.py": "from decomp.solvers.linalg import least_squares"},
        {"decomp/problem/a.py": "from decomp.graph.layer import Layer"},
        {"decomp/allocation/a.py": "from decomp.problem.factors import Selection"},
        {"decomp/solvers/a.py": "from decomp.allocation.plan import LayerPlan"},
        {"decomp/execution/a.py": "import decomp.solvers.linalg"},
        {"decomp/cost/a.py": "from decomp.allocation.allocator import Allocator"},
    ],
    rows_of_pipelines: [
        {"pipelines/run/a.py": "from ..stages import freeze"},
        {"pipelines/console/a.py": "from ..run.directory import RunDirectory"},
        {"pipelines/training/loop.py": "from ..decomposition import session"},
        {"pipelines/stages/a.py": "from ..recipes.compress import compress"},
    ],
    data_without_search: [
        {"data/a.py": "from decomp.solvers.linalg import least_squares"},
        {"data/formats/a.py": "from decomp.allocation.allocator import Allocator"},
    ],
    mathematics_beyond_tensors: [
        {"decomp/solvers/spatial.py": "from torch import nn"},
        {"decomp/solvers/linalg.py": "import torch.nn as n"},
        {"decomp/solvers/channel.py": "import torch.fx"},
        {"decomp/allocation/plan.py": "from torch import fx"},
        {"decomp/problem/factors.py": "import torch\nx = torch.nn.Conv2d"},
        {"decomp/solvers/refine.py": "from pathlib import Path"},
    ],
    misplaced_libraries: [
        {"pipelines/stages/freeze.py": "import h5py"},
        {"decomp/solvers/selection.py": "from sklearn.linear_model import lars_path"},
        {"pipelines/console/options.py": "def f():\n    import click"},
        {"pipelines/stages/export.py": "import onnxruntime"},
        {"decomp/runtimes/eager.py": "import onnxruntime"},
        {"decomp/runtimes/onnx.py": "def f():\n    import openvino"},
        {"pipelines/training/loop.py": "import torch.distributed as dist"},
    ],
    stages_apart: [
        {"pipelines/stages/evaluate.py": "from .finetune import finetune"},
        {"pipelines/stages/decompose.py": "from ..stages import freeze"},
    ],
    relative_inside_absolute_into_decomp: [
        {"pipelines/stages/a.py": "from decomp.pipelines.run import directory"},
        {"pipelines/stages/a.py": "from decomp.data import sources"},
        {"data/a.py": "from .. import errors"},
        {"decomp/graph/a.py": "from . import layer"},
        {"pipelines/a.py": "from pipelines.run import directory"},
        {"cli.py": "import data.sources"},
    ],
    options_named_in_decomp: [{"decomp/allocation/a.py": "raise TargetError('--speedup', 'x')"}],
    prints: [{"pipelines/stages/freeze.py": "def f():\n    print(1)"}],
    mathematics_that_opens_files: [{"decomp/allocation/plan.py": "with open('x') as f: pass"}],
}
# How many files of the checkout each rule looks at, at least: a rule whose folder was renamed looks at none.
LOOKED_AT = {
    upward_imports: 100, folders_of_decomp: 45, rows_of_pipelines: 45, data_without_search: 16,
    mathematics_beyond_tensors: 20, misplaced_libraries: 110, stages_apart: 9,
    relative_inside_absolute_into_decomp: 100, options_named_in_decomp: 45, prints: 110,
    mathematics_that_opens_files: 45,
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_checkout_keeps_the_rule(rule):
    complaints, looked = rule(product_files())
    assert complaints == []
    assert looked >= LOOKED_AT[rule]


@pytest.mark.parametrize(
    "rule, sample",
    [(rule, sample) for rule in RULES for sample in RULES[rule]],
    ids=lambda value: getattr(value, "__name__", str(value))[:60],
)
def test_the_rule_notices_a_bad_sample(rule, sample):
    complaints, looked = rule(sample)
    assert complaints and looked == 1


@pytest.mark.parametrize(
    "rule, sample",
    [
        (upward_imports, {"cli.py": "from decomp.pipelines.stages import freeze\nimport decomp.errors, torch"}),
        (folders_of_decomp, {"decomp/graph/a.py": "from decomp.errors import TraceError\nfrom decomp.graph import b"}),
        (rows_of_pipelines, {"pipelines/stages/a.py": "from ..run.directory import RunDirectory"}),
        (data_without_search, {"data/a.py": "from decomp.allocation.plan import Plan"}),
        (mathematics_beyond_tensors, {"decomp/problem/factors.py": "import torch.nn.functional"}),
        (mathematics_beyond_tensors, {"decomp/graph/layer.py": "from torch import nn, fx"}),
        (stages_apart, {"pipelines/recipes/demo.py": "from ..stages.freeze import freeze"}),
        (relative_inside_absolute_into_decomp, {"pipelines/a.py": "from ..data import b\nfrom decomp.graph import c"}),
    ],
)
def test_the_rule_lets_good_code_pass(rule, sample):
    assert rule(sample)[0] == []


def test_every_folder_is_named_in_the_rules():
    inner = {path.split("/")[1] for path in product_files() if path.startswith("decomp/") and path.count("/") == 2}
    assert inner <= set(DECOMP_MAY_IMPORT)
    inner = {path.split("/")[1].removesuffix(".py") for path in product_files() if path.startswith("pipelines/")}
    assert inner - {"__init__"} == set().union(*PIPELINES_ROWS)
    assert set(LOOKED_AT) == set(RULES)


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
def test_the_command_line_answers_without_torch(arguments):
    code = f"from decomp.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass"
    loaded = modules_after(code)
    assert "decomp.cli" in loaded
    assert not loaded & {"torch", "torchvision", "sklearn", "h5py", "numpy", "scipy", "matplotlib"}


def test_importing_the_package_is_light_and_load_is_there():
    assert "torch" not in modules_after("import decomp")
    assert "torch" in modules_after("import decomp\nassert callable(decomp.load)")
    for name in decomp.__all__:
        assert (callable(getattr(decomp, name)) or name == "tasks") and name in dir(decomp)
    assert callable(decomp.tasks.open)


@pytest.mark.parametrize("name", ["setup", "tests", "benchmarks", "decomp", "decomp.errors"])
def test_nothing_else_of_the_checkout_is_importable_through_the_package(name):
    code = (
        f"import importlib\ntry:\n    importlib.import_module('decomp.{name}')\nexcept ModuleNotFoundError:\n    pass\n"
    )
    assert f"decomp.{name}" not in modules_after(code)


def test_data_and_pipelines_are_found_beside_the_package():
    loaded = modules_after("import decomp.data.sources, decomp.pipelines.stages.status, decomp.cli")
    assert {"decomp.data.sources", "decomp.pipelines.stages.status", "decomp.cli"} <= loaded
    assert not loaded & {"data", "pipelines", "cli"}
