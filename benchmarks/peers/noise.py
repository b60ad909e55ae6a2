"""Significance test: differences between the accuracies of two tools that exceed the noise.

Two networks are judged on the same test images and, where there are several seeds, after trainings in the same order.
What is uncertain is which images were drawn for the test and which seeds for the training.
"""

import base64

import numpy as np

#: Differences below so many standard errors are called ties.
TIE = 2.0


def packed(right):
    """Which images were classified rightly, as text that fits a line of JSON: their number and base64 of the bits.

    Parameters
    ----------
    right : array_like of bool, shape (N,)
    """
    bits = np.packbits(np.asarray(right, dtype=bool))
    return f"{len(right)}:{base64.b64encode(bits.tobytes()).decode()}"


def unpacked(text):
    """What :func:`packed` was given."""
    count, bits = text.split(":")
    return np.unpackbits(np.frombuffer(base64.b64decode(bits), dtype=np.uint8), count=int(count)).astype(bool)


def difference(ours, theirs):
    """Mean difference of two groups of rows in accuracy, and its standard error.

    Parameters
    ----------
    ours, theirs : list of dict
        Rows with ``seed`` and ``right`` (see :func:`packed`), of one method each.

    Returns
    -------
    mean, error : float
    n_seeds : int
        Those that both have; None in place of all three where there are none.

    Notes
    -----
    With :math:`d_{si} \\in \\{-1, 0, 1\\}` for seed s and image i, the squared error is the variance over the images of
    the means over the seeds, divided by the number of images, plus, where there are several seeds, the variance over
    the seeds of the means over the images, divided by the number of seeds. What depends on both is in either term: the
    error is rather too large than too small.
    """
    own, other = ({row["seed"]: row["right"] for row in rows if "right" in row} for rows in (ours, theirs))
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return None
    d = np.array([unpacked(own[seed]).astype(float) - unpacked(other[seed]) for seed in seeds])
    squared = d.mean(0).var(ddof=1) / d.shape[1]
    if len(seeds) > 1:
        squared += d.mean(1).var(ddof=1) / len(seeds)
    return float(d.mean()), float(np.sqrt(squared)), len(seeds)
