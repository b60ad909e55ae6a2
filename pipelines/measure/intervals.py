"""Confidence intervals of shares of images: Wilson's for one share, an adjusted Wald one for a paired difference."""

from __future__ import annotations

import math

#: Two-sided normal quantile of a 95 % interval.
Z = 1.959963984540054


def wilson(count: int, n: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score.

    Parameters
    ----------
    count : int
        Images that have the property, in 0..n.
    n : int
        Images, at least 1.

    Returns
    -------
    low, high : float
        In 0..1. (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n) with p = count/n (Wilson 1927).
    """
    p, z2 = count / n, Z * Z
    middle, half = p + z2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At the ends rounding would leave a bound some 1e-17 outside, or beside the share itself.
    low = 0.0 if count == 0 else max((middle - half) / (1 + z2 / n), 0.0)
    high = 1.0 if count == n else min((middle + half) / (1 + z2 / n), 1.0)
    return low, high


def paired_difference(lost: int, won: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares of the same images.

    Parameters
    ----------
    lost : int
        Images that have the property before only.
    won : int
        Images that have it after only.
    n : int
        Images, at least 1.

    Returns
    -------
    low, high : float
        Of (lost − won)/n, in −1..1. With p = (lost + 1)/(n + 2), q = (won + 1)/(n + 2):
        p − q ± z √((p + q − (p − q)²)/(n + 2)), the adjusted Wald interval for paired data of Bonett and Price (2012).
    """
    p, q = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    half = Z * math.sqrt(max(p + q - (p - q) ** 2, 0.0) / (n + 2))
    return max(p - q - half, -1.0), min(p - q + half, 1.0)


def share_words(share: float, n: int) -> str:
    """A share of n images with its interval, such as ``93.60 % (95 % interval 91.9 to 95.0)``.

    Parameters
    ----------
    share : float
        In 0..1; a whole number of images over `n`.
    n : int
    """
    low, high = wilson(round(share * n), n)
    # No more digits than the interval justifies.
    digits = 2 if high - low < 0.01 else 1 if high - low < 0.2 else 0
    return f"{100 * share:.{digits}f} % (95 % interval {100 * low:.{digits}f} to {100 * high:.{digits}f})"


def short_share(share: float, n: int) -> str:
    """The same for tables and lines with several of them: ``93.6 % (91.9–95.0)``; without `n`, the share alone."""
    if n < 1:
        return f"{100 * share:.1f} %"
    low, high = wilson(round(share * n), n)
    digits = 2 if high - low < 0.004 else 1 if high - low < 0.2 else 0
    return f"{100 * share:.{digits}f} % ({100 * low:.{digits}f}–{100 * high:.{digits}f})"
