"""Rules on the files of the checkout: lengths, test files of the same name, first lines of docstrings.

As in test_imports.py each rule is held against the whole checkout and against bad samples of its own.
"""

import ast

import pytest
from checkout import checkout_files, in_folder

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
# A first line names the thing itself.
NO_FIRST_WORDS = {"What", "That", "How", "Where", "From", "On", "Which", "TODO"}
MAX_FIRST_LINE = 120


def too_long(sources):
    complaints = []
    for path, source in sources.items():
        if (lines := len(source.splitlines())) > MAX_FILE_LINES:
            complaints.append(f"{path} has {lines} lines")
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            first = node.body[0]
            if ast.get_docstring(node) is not None and len(node.body) > 1:
                first = node.body[1]
            # The signature does not count, nor the docstring: what has to be kept in mind does.
            if (lines := node.end_lineno - first.lineno + 1) > MAX_FUNCTION_LINES:
                complaints.append(f"{path}: {node.name} has {lines} lines")
    return complaints, len(sources)


def only_declares(tree):
    """Whether a module defines nothing that computes: no function, and no class but Protocols."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            if not {ast.unparse(base).split("[")[0] for base in node.bases} & {"Protocol", "typing.Protocol"}:
                return False
    # Methods of a Protocol are declarations too, so only functions of the module itself count.
    return not any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in tree.body)


def modules_without_tests(sources):
    """decomp/graph/layer.py has its tests in tests/decomp/graph/test_layer.py."""
    complaints, looked = [], in_folder(sources, "decomp", "data", "pipelines")
    for path, source in looked.items():
        folder, _, name = path.rpartition("/")
        test = f"tests/{folder}/test_{name}"
        if name != "__init__.py" and test not in sources and not only_declares(ast.parse(source)):
            complaints.append(f"{path} has no {test}")
    return complaints, len(looked)


def first_lines(sources):
    complaints, looked = [], {path: source for path, source in sources.items() if not path.startswith("tests/")}
    for path, source in looked.items():
        first = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        if not first or first.split()[0] in NO_FIRST_WORDS or len(first) > MAX_FIRST_LINE:
            complaints.append(f"{path} begins with {first!r}")
    return complaints, len(looked)


RULES = {
    too_long: [
        {"data/a.py": "x = 1\n" * (MAX_FILE_LINES + 1)},
        {"data/a.py": "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES + 1)},
    ],
    modules_without_tests: [
        {"decomp/graph/a.py": "def f(): pass"},
        {"decomp/graph/a.py": "class A: pass"},
        {"pipelines/api.py": "from typing import Protocol\nclass A(Protocol): pass\ndef f(a: A): return a"},
        {"data/a.py": "from typing import Protocol\nclass A(Protocol):\n    def f(self): ...\nclass B(A): pass"},
    ],
    first_lines: [
        {"data/a.py": "x = 1"},
        {"data/a.py": '"""What a network costs."""'},
        {"decomp/a.py": '"""\nTODO\n"""'},
        {"setup.py": f'"""{"a" * (MAX_FIRST_LINE + 1)}"""'},
    ],
}
# How many files of the checkout each rule looks at, at least.
LOOKED_AT = {too_long: 250, modules_without_tests: 110, first_lines: 150}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_checkout_keeps_the_rule(rule):
    complaints, looked = rule(checkout_files())
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
        (too_long, {"data/a.py": 'def f():\n    """' + "a\n" * (MAX_FUNCTION_LINES + 1) + '    """\n    return 1\n'}),
        (modules_without_tests, {"decomp/a/b.py": "def f(): pass", "tests/decomp/a/test_b.py": "def test_f(): pass"}),
        (modules_without_tests, {"data/a.py": "from b import c\nX = 1", "data/__init__.py": "def f(): pass"}),
        (modules_without_tests, {"data/a.py": "from typing import Protocol\nclass A(Protocol):\n    def f(self): ..."}),
        (first_lines, {"data/a.py": '"""Whatever is read."""', "tests/test_a.py": "x = 1"}),
    ],
)
def test_the_rule_lets_good_files_pass(rule, sample):
    assert rule(sample)[0] == []
