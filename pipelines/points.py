"""The frozen points of a run and the network they were taken from."""

from decomp.data.frozen import FrozenFile
from decomp.errors import FileError
from decomp.pipelines import emit, files
from decomp.pipelines.rundir import RunDirectory


def grid_key(hw):
    """Name of an output grid in the frozen file. Layers of one grid share their positions."""
    return f"{hw[0]}x{hw[1]}"


def shortcut_key(layer):
    """Name under which the frozen file keeps what a layer's output is added to."""
    return f"{layer}: shortcut"


def open_frozen(run):
    """The frozen file of a run and its original network, checked to belong together.

    Returns
    -------
    frozen : FrozenFile
    original : torch.fx.GraphModule
    """
    run = RunDirectory.open(run)
    if not run.frozen.is_file():
        raise FileError(run.frozen, "is missing", fix=f"run freeze into {run.path} first")
    original = emit.load(run.original_dir)
    frozen = FrozenFile(run.frozen)
    digest = files.digest_file(run.original_dir / "structure.json")
    if frozen.meta.get("network") != digest:
        raise FileError(
            run.frozen, f"was frozen from the network {str(frozen.meta.get('network'))[:12]}", got=digest[:12],
            fix="run freeze again into another directory",
        )  # fmt: skip
    recorded = (run.config("freeze") or {}).get("frozen", frozen.content)
    if recorded != frozen.content:
        raise FileError(
            run.frozen, f"must be the points {recorded[:12]} that run.json names", got=frozen.content[:12],
            fix="put the file back, or run freeze again into another directory",
        )  # fmt: skip
    return frozen, original
