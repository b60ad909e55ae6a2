"""Stages replaced by functions that record their calls."""

import inspect
import os
from importlib import import_module

PRINTED = "the result of the stage"


class Result:
    """A stage's result, of one line."""

    exit_code, run, members = 0, None, ()

    def lines(self):
        return iter([PRINTED])

    def runs(self):
        return []

    def to_json(self):
        return {"result": PRINTED}


class Recorded:
    """A function in the place of another one; what it is called with must fit that one's signature.

    Attributes
    ----------
    calls : list of (positional arguments, keyword arguments)
        Runs by their paths, and without reporters.
    reporters : list
        The reporter of each call; None where there was none.
    """

    def __init__(self, monkeypatch, name):
        module, _, function = name.rpartition(".")
        self.signature = inspect.signature(getattr(import_module(f"decomp.pipelines.{module}"), function))
        self.calls, self.reporters = [], []
        monkeypatch.setattr(f"decomp.pipelines.{name}", self)

    def __call__(self, *arguments, **options):
        self.signature.bind(*arguments, **options)
        self.reporters.append(options.pop("reporter", None))
        self.calls.append((tuple(map(self._plain, arguments)), options))
        return Result()

    @staticmethod
    def _plain(argument):
        return os.fspath(argument.path) if hasattr(argument, "path") else argument

    def default(self, name):
        return self.signature.parameters[name].default
