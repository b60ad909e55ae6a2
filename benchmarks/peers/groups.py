"""Groups of rows with equal conditions, and their captions."""

import statistics

OURS = "decomp"
#: The method of this package that people get without asking for another.
DEFAULT = "all steps"


def by_method(rows):
    """Lists of rows that differ in the seed alone."""
    groups = {}
    for row in rows:
        if "error" not in row:
            groups.setdefault((row["tool"], row["method"]), []).append(row)
    return list(groups.values())


def lost(group):
    """Shares of test images by which each row of a group is worse than the original."""
    return [row["original_top1"] - row["top1"] for row in group]


def mean_lost(group):
    """Their mean, in points."""
    return 100 * statistics.mean(lost(group))


def epochs_in_words(count):
    """``1 epoch``, ``5 epochs``."""
    return f"{count} epoch{'' if count == 1 else 's'}"


def training_in_words(count, images=None):
    """``nothing trained``, ``1 epoch of training``, ``5 epochs of training on 12,000 images``."""
    on = f" on {images:,} images" if images else ""
    return f"{epochs_in_words(count)} of training{on}" if count else "nothing trained"
