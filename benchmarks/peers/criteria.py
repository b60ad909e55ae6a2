"""Channel pruning by a criterion, of this package: `decomp.prune` on the network in memory, normalisations in place."""

import decomp
from decomp.criteria.names import NEEDS


def compress(subject, speedup, work, *, criterion, ranking, coupled=False, bn=False):
    """Prune to the speed-up; images are given where the criterion or the statistics of normalisations need them.

    A criterion that looks at images sees all of them, as in the other tools; statistics are estimated on as many as
    `decomp.prune` takes where nothing is asked for.
    """
    on_images = NEEDS[criterion] in ("images", "loss")
    network, _ = decomp.prune(
        subject.fresh(), subject.images if bn or on_images else None, criterion, speedup,
        input_size=subject.shape, ranking=ranking, coupled=coupled, recalibrate_bn=bn, quiet=True,
        **({"n_images": len(subject.images)} if on_images else {}),
    )  # fmt: skip
    return network, 0.0
