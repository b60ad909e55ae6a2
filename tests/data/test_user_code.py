"""User functions by name: which names have that form, the places looked at, and errors in one line."""

import sys

import pytest

from decomp.data import user_code
from decomp.errors import DecompError, UsageError

FUNCTIONS = """
import dataclasses
import helper

@dataclasses.dataclass
class Pair:
    width: int = helper.WIDTH

def same(): return helper
def given(*arguments, width=1, **options): return width
def needs(width, height, depth=3): return width
def fails():
    x = 1
    return x / 0
def fails_elsewhere():
    return helper.fail()
number = 7
_private = 8
"""
HELPER = "WIDTH = 6\ndef fail():\n    raise KeyError('gone')"


@pytest.fixture
def here(monkeypatch, tmp_path):
    """The current folder, with functions in lib/mine.py."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mine.py").write_text(FUNCTIONS)
    (tmp_path / "lib" / "helper.py").write_text(HELPER)  # beside the file, not in the current folder
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name == "helper" or "of_mine" in name or name.startswith("decomp_user_"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("lib/mine.py:make", True),
        ("C:/lib/mine.py:make", True),
        ("package.module:make", True),
        ("module:make", True),
        ("digits", False),
        ("mine.py:", False),
        (":make", False),
        ("lib/mine:make", False),
        ("mine.py:make()", False),
        ("package..module:make", False),
        ("a b:c", False),
    ],
)
def test_names_of_functions_are_told_from_others(name, is_one):
    assert user_code.names_user_code(name) is is_one


def test_a_file_is_imported_with_its_own_folder_last_on_the_path(here):
    (here / "lib" / "json.py").write_text("raise RuntimeError('shadows the library')")
    (here / "lib" / "mine.py").write_text("import json, sys\ndef path(): return json.dumps(1), list(sys.path)")
    before = list(sys.path)
    text, inside = user_code.call("lib/mine.py:path")
    assert text == "1" and inside == [*before, str(here), str(here / "lib")]
    assert sys.path == before


def test_a_class_and_a_function_with_defaults_are_called(here):
    assert user_code.call("lib/mine.py:Pair").width == 6
    assert user_code.call("lib/mine.py:given") == 1


def test_files_of_one_name_are_not_mistaken_for_each_other(here):
    (here / "other").mkdir()
    (here / "other" / "mine.py").write_text("def given(): return 2")
    pair = type(user_code.call("lib/mine.py:Pair"))
    assert [user_code.call(f"{folder}/mine.py:given") for folder in ("lib", "other")] == [1, 2]
    assert sys.modules[pair.__module__].given() == 1  # where dataclasses and torch.fx look
    assert "mine" not in sys.modules


def test_modules_are_found_from_the_current_folder(here):
    (here / "package_of_mine").mkdir()
    (here / "package_of_mine" / "nets.py").write_text("def make(): return 5")
    assert user_code.call("package_of_mine.nets:make") == 5


@pytest.mark.parametrize(
    ("attribute", "kind", "pattern"),
    [
        ("needs", UsageError, "called without arguments, got one that needs width, height; write a function"),
        ("fails", DecompError, r"ZeroDivisionError: division by zero; see .*mine.py line 14"),
        ("fails_elsewhere", DecompError, r"KeyError: 'gone'; see .*mine.py line 16"),
        ("number", UsageError, "must be a function, got a whole number"),
        ("helper", UsageError, "must be a function, got a module"),
        ("failz", UsageError, "there is no failz in lib/mine.py; did you mean fails"),
        ("privat", UsageError, "define it there or give another name"),
    ],
)
def test_mistakes_in_a_function_are_one_line(here, attribute, kind, pattern):
    with pytest.raises(DecompError, match=pattern) as caught:
        user_code.call(f"lib/mine.py:{attribute}")
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    assert str(here) not in sys.path


def test_an_object_of_the_wanted_classes_is_returned_as_it_is(here):
    assert user_code.call("lib/mine.py:number", (str, int)) == user_code.find("lib/mine.py:number")
    with pytest.raises(UsageError, match="must be a function, got a whole number"):
        user_code.call("lib/mine.py:number", (str,))


@pytest.mark.parametrize(
    ("source", "pattern"),
    [
        ("import torch\ndef make(:\n  pass", r"SyntaxError.*see .*broken.py line 2"),
        ("import torch\nimport no_such_module_at_all", r"ModuleNotFoundError.*see .*broken.py line 2"),
        ("import sys\n\nsys.exit('usage: train.py')", r"SystemExit: usage: train.py.*see .*broken.py line 3"),
    ],
)
def test_errors_while_a_file_is_imported_name_file_and_line(here, source, pattern):
    (here / "broken.py").write_text(source)
    before = set(sys.modules)
    with pytest.raises(DecompError, match=pattern) as caught:
        user_code.call("broken.py:make")
    assert caught.value.exit_code == 1
    assert not [name for name in set(sys.modules) - before if name.startswith("decomp_user_")]


def test_errors_of_our_own_pass_as_they_are(here):
    (here / "mine.py").write_text("from decomp.errors import DecompError\ndef make(): raise DecompError('a', 'b')")
    with pytest.raises(DecompError, match=r"^a: b\.$"):
        user_code.call("mine.py:make")


def test_absent_files_and_modules_are_usage_errors(here):
    with pytest.raises(UsageError, match="there is no file nowhere.py"):
        user_code.call("nowhere.py:make")
    with pytest.raises(UsageError, match="there is no module no_such_package_of_mine"):
        user_code.call("no_such_package_of_mine.nets:make")
    (here / "module_of_mine.py").write_text("import another_module_that_is_absent")
    with pytest.raises(DecompError, match="ModuleNotFoundError.*module_of_mine.py line 1") as caught:
        user_code.call("module_of_mine:make")
    assert not isinstance(caught.value, UsageError)


def test_functions_of_a_file_are_those_that_need_no_argument_and_the_file_is_not_run(tmp_path):
    file = tmp_path / "nets.py"
    file.write_text(
        "raise SystemExit\ndef a(): ...\ndef b(x, y=1): ...\ndef c(*, k): ...\ndef d(x=1, *y, z=2, **k): ...\n"
        "def _e(): ...\nclass F:\n    def __init__(self, n=3): ...\nclass G:\n    def __init__(self, n): ...\n"
    )
    assert user_code.functions_of_file(str(file)) == ["a", "d", "F"]
    assert user_code.named_functions(str(file)) == f"write {file}:a or {file}:d or {file}:F"
    file.write_text("def broken(:")
    assert user_code.functions_of_file(str(file)) == [] == user_code.functions_of_file("nowhere.py")
    assert user_code.named_functions("nowhere.py") == "write the file, a colon, and the name of a function in it"
