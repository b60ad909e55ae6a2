"""Table of methods: tools and their methods, each in its best known setting."""

import importlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Method:
    """One method of one tool.

    Attributes
    ----------
    tool : str
        As its package is called where people install it.
    name : str
        As it is written in the tables.
    module : str
        Module with ``compress(subject, speedup, work, **options)``, which returns the network and the seconds that
        were spent on what several rows share.
    options : dict
    labels : bool
        It reads the labels of the calibration images.
    folded : bool
        Its networks have their batch normalisations folded; in others these are in place.
    """

    tool: str
    name: str
    module: str
    options: dict = field(default_factory=dict)
    labels: bool = False
    folded: bool = False

    @property
    def key(self):
        """How the method is named on the command line and in files."""
        return f"{self.tool}/{self.name}".replace(" ", "-")

    def compress(self, subject, speedup, work):
        """See `module`."""
        return importlib.import_module(self.module).compress(subject, speedup, work, **self.options)


def _torch_pruning():
    where = "benchmarks.peers.pruning"
    for bn in (False, True):
        tail = " +bn" if bn else ""
        for importance in ("l1", "l2", "taylor"):
            labels = importance == "taylor"
            for scope in ("uniform", "global"):
                options = {"importance": importance, "scope": scope, "bn": bn}
                yield Method("torch-pruning", f"{importance} {scope}{tail}", where, options, labels)
    options = {"importance": "taylor", "scope": "global", "bn": True, "rounds": 5}
    yield Method("torch-pruning", "taylor global 5 rounds +bn", where, options, True)


def _tensorly():
    where = "benchmarks.peers.tucker"
    yield Method("tensorly", "tucker-2", where, {"folded": False, "bn": False})
    yield Method("tensorly", "tucker-2 folded", where, {"folded": True, "bn": False})
    yield Method("tensorly", "tucker-2 +bn", where, {"folded": False, "bn": True})


def _aimet():
    where = "benchmarks.peers.aimet"
    for scheme in ("spatial-svd", "channel-pruning"):
        for search in ("uniform", "greedy"):
            for bn in (False, True):
                tail = " +bn" if bn else ""
                options = {"scheme": scheme, "search": search, "bn": bn}
                yield Method("aimet-torch", f"{scheme} {search}{tail}", where, options, search == "greedy")


def _ours():
    where = "benchmarks.peers.ours"
    for name, options in (
        ("all steps", {}),
        ("all steps uniform", {"allocation": "uniform"}),
        ("prune", {"steps": ("prune",)}),
        ("prune lasso", {"steps": ("prune",), "selector": "lasso"}),
        ("prune backward", {"steps": ("prune",), "selector": "backward"}),
        ("spatial", {"steps": ("spatial",)}),
        ("channel", {"steps": ("channel",)}),
    ):
        yield Method("decomp", name, where, options, folded=True)


def _our_criteria():
    where = "benchmarks.peers.criteria"
    for bn in (False, True):
        for criterion in ("l1", "l2", "group-l1", "group-l2", "taylor", "bn-scale"):
            for ranking in ("layer", "global"):
                for coupled in (False, True):
                    name = f"{criterion} {'uniform' if ranking == 'layer' else 'global'}"
                    name += (" coupled" if coupled else "") + (" +bn" if bn else "")
                    options = {"criterion": criterion, "ranking": ranking, "coupled": coupled, "bn": bn}
                    yield Method("decomp", name, where, options)


_TABLES = (_ours, _our_criteria, _torch_pruning, _tensorly, _aimet)
METHODS = {method.key: method for make in _TABLES for method in make()}


def named(key):
    """Tool and name of a method by its key, also of one that is no longer there."""
    tool, _, rest = key.partition("/")
    return (METHODS[key].tool, METHODS[key].name) if key in METHODS else (tool, rest)


def chosen(text):
    """Methods whose names begin with one of the words of a list with commas between; all for ``all``."""
    if text == "all":
        return dict(METHODS)
    words = [word.strip().replace(" ", "-") for word in text.split(",")]
    unknown = [word for word in words if not any(key.startswith(word) for key in METHODS)]
    if unknown:
        raise SystemExit(f"--methods: no method begins with {unknown[0]!r}; there are {', '.join(METHODS)}.")
    # A whole name is that method alone, though others begin with it.
    return {
        key: method
        for key, method in METHODS.items()
        if any(key == word or (word not in METHODS and key.startswith(word)) for word in words)
    }
