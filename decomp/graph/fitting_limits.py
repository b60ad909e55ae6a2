"""Size limits of the least-squares fit: which layers have too many columns for the memory or the available samples."""

from __future__ import annotations

from dataclasses import dataclass

from decomp.graph.layer import Layer, every_step


@dataclass(frozen=True)
class FittingLimits:
    """The largest layers that can be fitted to sampled responses.

    Attributes
    ----------
    n_images : int
        Calibration images; a linear layer has one row for each of them at each of its calls. Mixtures of images are
        fitted as well, but are not counted: they add no independent rows.
    most_columns : int
        Columns p of a layer's patch (c·kh·kw) up to which it is fitted: its moments take 8·p² bytes.
    """

    n_images: int
    most_columns: int = 12_000

    def excluded_steps(self, layer: Layer) -> dict[str, str]:
        """Steps that the size of a layer rules out, each with the reason.

        Returns
        -------
        dict of str to str
            All steps where the layer has more than `most_columns` columns; 'prune' where it is linear and has fewer
            than two rows for each column to choose from; otherwise empty. A layer that is not fitted in any case, such
            as a grouped convolution, keeps the reason it has.
        """
        if not layer.fitted:
            return {}
        columns, rows = layer.columns, self.n_images * len(layer.calls)
        if columns > self.most_columns:
            return every_step(f"{columns:,} columns a row are more than the {self.most_columns:,} that are fitted")
        if layer.kind == "linear" and rows < 2 * columns:
            return {"prune": f"{rows:,} rows of images are too few to choose among {columns:,} columns"}
        return {}
