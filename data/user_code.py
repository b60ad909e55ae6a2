"""User functions by name: ``path/to/file.py:function`` and ``package.module:function``."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from decomp.errors import DecompError, UsageError, kind_of


def names_user_code(name: str) -> bool:
    """Whether ``name`` has the form of a function's name: a file or module, a colon, a function."""
    place, _, function = name.rpartition(":")
    return bool(place) and function.isidentifier() and (place.endswith(".py") or _is_module_name(place))


def _is_module_name(place: str) -> bool:
    return all(part.isidentifier() for part in place.split("."))


def call(name: str, made: tuple[type, ...] = ()) -> Any:
    """Import the function called ``name``, call it without arguments and return the result.

    Parameters
    ----------
    name : str
        ``path/to/file.py:function`` or ``package.module:function``. Modules in the current folder, and in that of the
        file, can be imported meanwhile; these folders come last on ``sys.path``, so that they shadow nothing.
    made : tuple of type
        An object of these classes that has the name is returned as it is.

    Raises
    ------
    UsageError
        There is no such file, module or function, or it needs arguments.
    DecompError
        The user's code raised an error; its file and line are named.
    """
    place, _, attribute = name.rpartition(":")
    with importable(place):
        function = find(name)
        if isinstance(function, made):
            return function
        if isinstance(function, ModuleType) or not callable(function):
            raise UsageError(name, f"{attribute} must be a function", got=kind_of(function))
        _check_no_arguments(name, function)
        with errors_in_one_line(name):
            return function()


def find(name: str) -> Any:
    """Import the object called ``name``; folders are searched as for :func:`call`.

    Raises
    ------
    UsageError, DecompError
        As for :func:`call`.
    """
    place, _, attribute = name.rpartition(":")
    with importable(place):
        module = _load_file(name, place) if place.endswith(".py") else _load_module(name, place)
    found = getattr(module, attribute, None)
    if found is None:
        close = difflib.get_close_matches(attribute, [n for n in vars(module) if not n.startswith("_")], n=3)
        fix = f"did you mean {' or '.join(close)}" if close else "define it there or give another name"
        raise UsageError(name, f"there is no {attribute} in {place}", fix=fix)
    return found


def needed_arguments(function: Callable[..., Any]) -> list[str]:
    """Names of the arguments without which ``function`` cannot be called."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature; the call itself will raise
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def functions_of_file(place: str) -> list[str]:
    """Names of the public functions and classes at the top of a Python file that can be called without arguments.

    The file is not run. Where none is of this kind, or the file cannot be read, there are none.
    """
    try:
        tree = ast.parse(Path(place).expanduser().read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    return [
        node.name for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and _takes_nothing(node)
    ]  # fmt: skip


def named_functions(place: str) -> str:
    """Advice that lists the functions of a Python file, for a name without a function."""
    functions = functions_of_file(place) if place.endswith(".py") else []
    if functions:
        return f"write {' or '.join(f'{place}:{function}' for function in functions[:4])}"
    return "write the file, a colon, and the name of a function in it"


def _takes_nothing(node: ast.FunctionDef | ast.ClassDef) -> bool:
    if isinstance(node, ast.ClassDef):
        made = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        return made is not None and _n_needed(made) == 1
    return _n_needed(node) == 0


def _n_needed(node: ast.FunctionDef) -> int:
    arguments = node.args
    by_place = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return by_place + sum(default is None for default in arguments.kw_defaults)


@contextmanager
def importable(place: str) -> Iterator[None]:
    """Put the current folder, and that of a file, at the end of ``sys.path`` for the length of the block."""
    folders = [str(Path.cwd())]
    if place.endswith(".py"):
        folders.append(str(Path(place).expanduser().resolve().parent))
    added = [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
    sys.path.extend(added)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in added:
            if folder in sys.path:
                sys.path.remove(folder)


def _load_file(name: str, place: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise UsageError(name, f"there is no file {place}", fix="give the path from the current folder")
    # A unique name, so that a user's `resnet.py` is never mistaken for another module called resnet.
    module_name = f"decomp_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UsageError(name, f"{place} cannot be imported", fix="give a file of Python source")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses and torch.fx look up the module of a class by its name.
    sys.modules[module_name] = module
    try:
        with errors_in_one_line(name):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _load_module(name: str, place: str) -> ModuleType:
    try:
        with errors_in_one_line(name):
            return importlib.import_module(place)
    except DecompError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{place}.".startswith(f"{cause.name}."):
            fix = "install it, or go to the folder that holds it, or give path/to/file.py:function"
            raise UsageError(name, f"there is no module {cause.name}", fix=fix) from cause
        raise


def _check_no_arguments(name: str, function: Callable[..., Any]) -> None:
    needed = needed_arguments(function)
    if needed:
        fix = "write a function without arguments that calls it with yours"
        raise UsageError(name, "is called without arguments", got=f"one that needs {', '.join(needed)}", fix=fix)


@contextmanager
def errors_in_one_line(name: str) -> Iterator[None]:
    """Turn any error of user code, also SystemExit, into one line with its file and line number."""
    try:
        yield
    except DecompError:
        raise
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise DecompError(name, f"its code raised {text}", fix=f"see {_place_of(error, name)}") from error


def _place_of(error: BaseException, name: str) -> str:
    """File and line of an error: of the last frame inside the user's file, or else of the last frame."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename} line {error.lineno}"
    steps = [s for s in traceback.extract_tb(error.__traceback__) if s.filename != __file__ and s.lineno]
    steps = [s for s in steps if not s.filename.startswith("<frozen importlib")] or steps
    place = name.rpartition(":")[0]
    if place.endswith(".py"):
        own = str(Path(place).expanduser().resolve())
        steps = [s for s in steps if s.filename == own] or steps
    return f"{steps[-1].filename} line {steps[-1].lineno}" if steps else name
