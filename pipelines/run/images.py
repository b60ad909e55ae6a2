"""Images of a run, opened again as they were prepared when its network was frozen."""

from __future__ import annotations

from ...data.formats.network_file import read_structure
from ...data.sources import open_source
from ...data.splits import ImageSource
from ..distributed.process_group import spread
from .conditions import freeze_options
from .directory import RunDirectory


def open_images(run: RunDirectory) -> ImageSource:
    """The source of a run's images, with the transforms that ``freeze`` chose and recorded.

    Raises
    ------
    UsageError, FileError, DecompError
        The run is not frozen; or as :func:`decomp.data.sources.open_source`.
    """
    options = freeze_options(run)
    channels, height, width = read_structure(run.original_dir)["input_shape"]
    source = (run.config("freeze") or {}).get("source")
    return open_source(
        options.data, input_shape=(channels, height, width), skip_bad=options.skip_bad, options=options.image_options,
        recorded=source.get("prepared") if isinstance(source, dict) else None, spread=spread,
    )  # fmt: skip
