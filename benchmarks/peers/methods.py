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
        return f"{self.tool}/{self.name}".replace(", ", "-").replace(" ", "-")

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
    for importance in ("l2", "taylor"):
        options = {"importance": importance, "scope": "global", "bn": True, "round_to": 16}
        yield Method("torch-pruning", f"{importance} global by 16 +bn", where, options, importance == "taylor")


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
        yield Method("decomp", name, where, {"refine_blocks": False, **options}, folded=True)
    yield Method("decomp", "all steps, blocks refined", where, folded=True)


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


def _ours_by_time():
    where = "benchmarks.peers.by_time"
    fitted = {"refine_blocks": False}
    yield Method("decomp", "by time", where, fitted, folded=True)
    yield Method("decomp", "by time coupled", where, {"coupled": 0.75, **fitted}, folded=True)
    yield Method("decomp", "by time, blocks refined", where, folded=True)


_TABLES = (_ours, _our_criteria, _torch_pruning, _tensorly, _aimet)
METHODS = {method.key: method for make in _TABLES for method in make()}
#: Planned for a measured speed-up; the others of this package and the peers are asked for a counted one.
BY_TIME = {method.key: method for method in _ours_by_time()}
#: Compared at equal measured time where no others are named: the best of each tool without and after training.
EQUAL_TIME = (
    "decomp/by-time", "torch-pruning/l2-global-+bn", "torch-pruning/taylor-global-+bn",
    "torch-pruning/l2-global-by-16-+bn", "torch-pruning/taylor-global-by-16-+bn",
    "aimet-torch/spatial-svd-uniform-+bn", "aimet-torch/channel-pruning-uniform",
)  # fmt: skip


def named(key):
    """Tool and name of a method by its key, also of one that is no longer there."""
    tool, _, rest = key.partition("/")
    known = {**METHODS, **BY_TIME}
    return (known[key].tool, known[key].name) if key in known else (tool, rest)


def chosen(text, methods=METHODS):
    """Methods whose names begin with one of the words of a list with commas between; all for ``all``."""
    if text == "all":
        return dict(methods)
    words = [word.strip().replace(" ", "-") for word in text.split(",")]
    unknown = [word for word in words if not any(key.startswith(word) for key in methods)]
    if unknown:
        raise SystemExit(f"--methods: no method begins with {unknown[0]!r}; there are {', '.join(methods)}.")
    # A whole name is that method alone, though others begin with it.
    return {
        key: method
        for key, method in methods.items()
        if any(key == word or (word not in methods and key.startswith(word)) for word in words)
    }
