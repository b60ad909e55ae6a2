"""Messages in the words of a Python caller: arguments of functions in place of options of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from decomp.errors import DecompError

#: Commands that messages name with their options.
COMMANDS = ("inspect", "freeze", "decompose", "prune", "finetune", "evaluate", "export", "report", "status", "train")
# At the begin of a message it is the name of the argument.
_FLAG = re.compile(r"(?<=\s)--(?:(redo|skip-bad|refine-blocks)|no-([a-z-]+))\b")
_OTHER_RUN = re.compile(r"--run OTHER --from \S+")
_COMMAND = re.compile(rf"(`[^`]*`|\b(?:decomp )?(?:{'|'.join(COMMANDS)})(?: --[a-z-]+(?: [^\s;,-][^\s;,]*)?)+)")
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*)|\boption (classes|leaf|module)\b")


def python_words(text: str, names: Mapping[str, str]) -> str:
    """A message in which each option of the command line is the argument of its name; see `said_for_python`."""

    def argument(match: re.Match[str]) -> str:
        option = match[1] or match[2]
        return ({"linear": "activation_aware=False"} | dict(names)).get(option, option.replace("-", "_"))

    def flag(match: re.Match[str]) -> str:
        return f"{(match[1] or match[2]).replace('-', '_')}={match[1] is not None}"

    parts = _COMMAND.split(_OTHER_RUN.sub("another run", text))
    return "".join(
        part if place % 2 else _OPTION.sub(argument, _FLAG.sub(flag, part)) for place, part in enumerate(parts)
    )


@contextmanager
def said_for_python(names: Mapping[str, str]) -> Iterator[None]:
    """Reword the errors of a block: each option of the command line becomes the argument of its name.

    Parameters
    ----------
    names : mapping of str to str
        Arguments of options that are named otherwise, such as ``{"leaf": "leaves"}``; others have the option's name
        with underscores. Commands with their options, such as ``freeze --run r``, stay commands.
    """

    try:
        yield
    except DecompError as error:
        error.reword(lambda text: python_words(text, names))
        raise


@contextmanager
def said_for_options(*names: str) -> Iterator[None]:
    """Reword the errors of a block that are about an argument of one of these names: they are about the option."""
    try:
        yield
    except DecompError as error:
        if error.thing in names:
            DecompError.__init__(error, f"--{error.thing}", error.rule, error.got, error.fix)
        raise
