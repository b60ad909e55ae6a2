"""Networks of a run: the one table of their names, folders and stages.

Nothing here imports torch, so that ``status`` and ``--help`` answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from decomp.errors import FileError, check_choice

from .directory import RunDirectory


@dataclass(frozen=True)
class RunNetwork:
    """One kind of network that a run may hold.

    Attributes
    ----------
    name : str
        As options and exported files name it.
    label : str
        As tables and messages name it.
    folder : str
        Where it lies in a run directory.
    stage : str
        The stage that writes it.
    made_from : tuple of str
        Names of the networks that it may be made from; empty for the original. A run holds at most one of them.
    """

    name: str
    label: str
    folder: str
    stage: str
    made_from: tuple[str, ...] = ()

    def path(self, run: RunDirectory) -> Path:
        """Its folder in a run."""
        return run.path / self.folder

    def exists(self, run: RunDirectory) -> bool:
        """Whether the run holds it."""
        return (self.path(run) / "structure.json").is_file()


#: In the order in which they are made.
NETWORKS = (
    RunNetwork("original", "original", "original", "freeze"),
    RunNetwork("decomposed", "decomposed", "model", "decompose", made_from=("original",)),
    RunNetwork("pruned", "pruned", "pruned", "prune", made_from=("original",)),
    RunNetwork("finetuned", "fine-tuned", "finetune/best", "finetune", made_from=("decomposed", "pruned")),
)
#: The most advanced first: the order in which the network of a run is looked for where none is named.
NETWORK_NAMES = tuple(network.name for network in reversed(NETWORKS))


def existing(run: RunDirectory) -> list[RunNetwork]:
    """The networks that a run holds, in the order in which they are made.

    A network whose source is not there is left out: it belongs to an earlier one. So is a fine-tuned network that is
    the one before it, as no epoch improved it.
    """
    there: list[RunNetwork] = []
    for network in NETWORKS:
        source = not network.made_from or any(other.name in network.made_from for other in there)
        if source and network.exists(run) and not (network.name == "finetuned" and unimproved(run)):
            there.append(network)
    return there


def unimproved(run: RunDirectory) -> bool:
    """Whether a finished fine-tuning has no epoch that is better than the network before it."""
    facts = (run.config("finetune") or {}).get("facts")
    return isinstance(facts, dict) and facts.get("best_epoch") == 0


def compressed(run: RunDirectory) -> RunNetwork | None:
    """The decomposed or pruned network of a run, which fine-tuning begins with; None where there is neither."""
    return next((network for network in existing(run) if network.made_from == ("original",)), None)


def missing(run: RunDirectory) -> RunNetwork | None:
    """The network that the next stage of a run makes; None where it holds all. Without any, the decomposed one."""
    chosen, there = compressed(run), existing(run)
    for network in NETWORKS:
        if network.name == "finetuned" and unimproved(run):
            continue
        alternative = chosen is not None and network.made_from == chosen.made_from
        if network not in there and not alternative:
            return network
    return None


def find_network(run: RunDirectory, which: str | None = None) -> RunNetwork:
    """The network of a run that is named, or the most advanced one where none is.

    Raises
    ------
    UsageError
        There is no network of this name.
    FileError
        The run does not hold it.
    """
    if which is not None:
        check_choice("--which", which, NETWORK_NAMES)
    for name in NETWORK_NAMES:
        network = next(entry for entry in NETWORKS if entry.name == name)
        if which == name or (which is None and not (name == "finetuned" and unimproved(run))):
            if network.exists(run):
                return network
    wanted = next((entry for entry in NETWORKS if entry.name == which), NETWORKS[0])
    rule = f"holds no {wanted.label} network yet" if which else "holds no network yet"
    raise FileError(run.path, rule, fix=f"run {wanted.stage} first")
