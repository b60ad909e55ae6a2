"""Channel spaces that may be narrowed: those inside of blocks, or also those that additions unite."""

from __future__ import annotations

from collections.abc import Iterable

from decomp.errors import UsageError, near_miss
from decomp.graph.channel_spaces import ChannelSpace, Spaces


def candidates(spaces: Spaces, *, coupled: bool = False, skip: Iterable[str] = ()) -> list[str]:
    """Names of the channel spaces that may lose channels, in execution order.

    Parameters
    ----------
    spaces : decomp.graph.channel_spaces.Spaces
    coupled : bool
        Also those in which additions unite the outputs of several layers, such as the stream of a residual stage: a
        channel then goes in all blocks at once.
    skip : iterable of str
        Paths of layers that keep all their outputs.

    Returns
    -------
    list of str
        Frozen spaces, those of one channel and those that no layer writes are never among them.

    Raises
    ------
    UsageError
        A layer to skip is not there.
    """
    skipped = set(skip)
    written = {path for space in spaces.all for path in (*space.producers, *space.carriers)}
    for path in sorted(skipped - written):
        raise UsageError("skip", "must name layers of the network", got=path, fix=near_miss(path, sorted(written)))
    return [
        space.name
        for space in spaces.all
        if space.frozen is None
        and space.producers
        and space.width > 1
        and (coupled or not united_by_addition(space))
        and skipped.isdisjoint((*space.producers, *space.carriers))
    ]


def united_by_addition(space: ChannelSpace) -> bool:
    """Whether a sum or difference of several layers' outputs makes the channels of a space inseparable."""
    sums = any(words.split(" ")[0] in ("add", "sub") for words in space.couplings)
    return sums and len(space.producers) > 1
