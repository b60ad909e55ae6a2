"""Channel pruning by a criterion, of this package: `decomp.prune` on the network in memory, normalisations in place."""

import decomp
from decomp.criteria.names import NEEDS


def compress(subject, speedup, work, *, criterion, ranking, coupled=False, bn=False):
    """Prune to the speed-up; images are given where the criterion or the statistics of normalisations need them."""
    images = subject.images if bn or NEEDS[criterion] in ("images", "loss") else None
    network, _ = decomp.prune(
        subject.fresh(), images, criterion, speedup, n_images=len(subject.images), input_size=subject.shape,
        ranking=ranking, coupled=coupled, recalibrate_bn=bn, quiet=True,
    )  # fmt: skip
    return network, 0.0
