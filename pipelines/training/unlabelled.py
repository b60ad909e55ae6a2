"""Task without labels: all training images but the held-out frozen ones, towards the original's outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from decomp import seeds
from decomp.errors import DecompError, UsageError

from ...data.formats.frozen_file import FrozenFile
from ...data.image_options import IN_MEMORY
from ...data.preprocessing import NetworkInput
from ...data.sources import open_source
from ...data.splits import ImageSource, Split
from ...data.transforms import Normalisation
from ..console.options import LEAST_IMAGES
from ..console.reporter import Reporter
from ..distributed.process_group import joined, own_batches, own_part, spread
from ..distributed.process_group import total as sum_over_processes
from ..distributed.trained_module import places_of
from ..measure.accuracy import outputs_of
from ..run.calibration import draw_images, fitted_images
from ..run.conditions import freeze_options
from ..run.directory import RunDirectory
from ..run.images import open_images
from ..run.loading import open_frozen, run_outputs
from .memory import VALIDATED
from .targets import as_rows, entries

#: Frozen images up to this size are held in memory where no limit is given.
MEMORY_BYTES = 2**30
#: An epoch has at least so many images: where there are fewer, each is used several times.
EPOCH_IMAGES = 1000
#: So many images are enough as they are; fewer are augmented and mixed. Changed images are others than those that the
#: network will see, and what it learns about them costs it some of what the fits have given it.
ENOUGH_IMAGES = 10_000
#: Where fewer frozen images are held out, others of the run's source are held out too, at most one in
#: `ONE_IN` of those that would be trained on: the divergence of ten images says little about new ones.
VALIDATION_IMAGES = 200
ONE_IN = 10
IMAGES_AT_A_TIME = 100
TARGETS_AT_A_TIME = 250


class Read(Protocol):
    """Reader of images by their indices, see `Pool`."""

    def __call__(
        self, indices: Tensor, batch_size: int, augment_seed: int | None, numbers: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Images of shape (B, C, H, W), `batch_size` at a time."""


@dataclass(frozen=True)
class Pool:
    """Images to train on.

    Attributes
    ----------
    indices : torch.LongTensor
        Distinct.
    read : callable
        ``read(indices, batch_size, augment_seed, numbers)`` yields images of shape (B, C, H, W); no seed, no
        augmentation. An image is augmented otherwise for every number, see :meth:`decomp.data.splits.Split.batches`.
    words : str
        The images in words.
    notes, warnings : tuple of str
        Lines for the person who asked.
    unseen : torch.LongTensor
        Further images, which are held out beside the frozen ones and are not among the indices.
    """

    indices: Tensor
    read: Read
    words: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unseen: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


class UnlabelledTask:
    """Training images whose labels are not used; see :class:`decomp.pipelines.training.tasks.TrainingTask`.

    Validated on the frozen images that no fit has used (see :mod:`decomp.pipelines.run.calibration`) and, where these
    are fewer than `VALIDATION_IMAGES`, on images of the run's own source that were never frozen. No image of the
    validation is trained on; the frozen ones not by whichever name their source is opened.

    Parameters
    ----------
    run : RunDirectory
    seed : int
        Of the choice among the images of another source.
    data : str, optional
        Source of the images in place of the run's own.
    n_images : int, optional
        At most so many. Of the run's own source the images that were fitted come first.
    in_memory : int
        Bytes up to which the frozen images are held in memory; otherwise they are read from the file batch by batch.
    reporter : Reporter, optional
        Shows the comparison of images with the held-out ones, for which those of another source are read.

    Raises
    ------
    UsageError, FileError
        The source `data` cannot be opened, or has no images beside the held-out ones.

    Notes
    -----
    The frozen images alone are used where the run's own source cannot be opened again; `notes` says why.
    """

    uses_batchnorm, at_a_time = False, VALIDATED

    def __init__(
        self, run: RunDirectory, seed: int, *, data: str | None = None, n_images: int | None = None,
        in_memory: int = MEMORY_BYTES, reporter: Reporter | None = None,
    ) -> None:  # fmt: skip
        reporter = reporter or Reporter(quiet=True)
        wanted = None if n_images is None else max(n_images, LEAST_IMAGES)
        self.path, self.outputs = run.frozen, run_outputs(run)
        self.metric = "validation_divergence" if self.outputs.scores is not None else "validation_change"
        frozen, _ = open_frozen(run)
        with frozen:
            n_fit = fitted_images(frozen.n_images)
            n_bytes = 4 * frozen.n_images * torch.Size(frozen.input_shape).numel()
            self.images = frozen.images() if n_bytes <= in_memory else None
            self.held = 0 if self.images is None else n_bytes
            self.held_out = torch.arange(n_fit, frozen.n_images)
            pool = (
                _own(run, frozen, wanted, reporter)
                if data is None
                else _other(run, frozen, data, seed, wanted, reporter)
            )
        if pool is None or isinstance(pool, str):
            pool = Pool(torch.arange(n_fit), self._read, "frozen images", () if pool is None else (pool,))
        self.pool, indices = pool, pool.indices[:n_images]
        self.n_validation = len(self.held_out) + len(pool.unseen)
        if not len(indices):
            got = f"{data}, which has no others"
            raise UsageError("--data", "must have images beside the held-out ones", got=got, fix="name another source")
        if data is not None and len(pool.indices) < LEAST_IMAGES:
            rule, fix = f"at least {LEAST_IMAGES} training images are needed", "give more; a few thousand are usual"
            raise UsageError(data, rule, got=len(pool.indices), fix=fix)
        self.n_train = len(indices)
        self.notes: Sequence[str] = pool.notes
        self.warnings: Sequence[str] = pool.warnings
        self.changed = self.n_train < ENOUGH_IMAGES
        # Frozen images are kept as the network takes them, and cannot be augmented.
        changes = "mixed" if pool.read == self._read else "augmented and mixed"
        self.description = f"{pool.words} without labels{f', {changes}' if self.changed else ''}"
        self.train = indices.repeat(-(-EPOCH_IMAGES // len(indices)))
        self.targets: Tensor | None = None
        n_bytes = 4 * len(self.train) * entries(self.outputs)
        #: Whether the outputs of the original can be kept: images that are changed are new ones in every epoch.
        self.keeps_targets = not self.changed and n_bytes <= in_memory - self.held
        self.held += n_bytes if self.keeps_targets else 0

    def batches(
        self, order: Tensor, batch_size: int, augment_seed: int, places: slice | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Images of ``train[order]`` at some places of every batch; fewer than `ENOUGH_IMAGES` augmented and mixed.

        With them the original's outputs as rows of numbers, where :meth:`keep_targets` has computed them.
        """
        if not self.changed:
            order, batch_size = places_of(order, batch_size, places)
            read = self.pool.read(self.train[order], batch_size, None)
            for part, images in zip(order.split(batch_size), read):
                yield images, None if self.targets is None else self.targets[part]
            return
        if places is None:
            read = self.pool.read(self.train[order], batch_size, augment_seed, self._numbers(order))
            for number, images in enumerate(read):
                yield mixed(images, seeds.derive_seed(augment_seed, "mix", number)), None
            return
        for number, batch in enumerate(order.split(batch_size)):
            # The images at these places, and those that are mixed into them.
            mixture = Mixture(len(batch), seeds.derive_seed(augment_seed, "mix", number))
            wanted = torch.cat([batch[places], batch[mixture.partner[places]]])
            (images,) = self.pool.read(self.train[wanted], len(wanted), augment_seed, self._numbers(wanted))
            own, others = images.tensor_split(2)
            yield own + mixture.share[places] * (others - own), None

    def _numbers(self, order: Tensor) -> Tensor:
        """The indices of ``train[order]``, raised for images that the epoch repeats: each time is another number."""
        return self.train[order] + order // self.n_train * (int(self.train.max()) + 1)

    def keep_targets(self, original: nn.Module, device: torch.device, reporter: Reporter) -> None:
        """Compute the original's outputs for all images, in float32; several processes share the images."""
        n, size, rows = len(self.train), min(TARGETS_AT_A_TIME, self.at_a_time), []
        mine = own_batches(n, size)
        with reporter.progress(len(mine), "outputs of the original", "images") as bar:
            for images in self.pool.read(self.train[mine.start : mine.stop], size, None) if len(mine) else ():
                rows.append(as_rows(outputs_of(original, images, device, self.outputs), self.outputs))
                bar.update(len(images))
        self.targets = joined(torch.cat(rows) if rows else torch.zeros(0, entries(self.outputs)))

    def validate(self, network: nn.Module, original: nn.Module | None, device: torch.device) -> dict[str, float]:
        """Mean change of the outputs, see :mod:`decomp.execution.output_change`; for class scores a divergence."""
        assert original is not None
        total = 0.0
        unseen = own_part(self.pool.unseen)
        n = min(IMAGES_AT_A_TIME, self.at_a_time)
        batches = self.pool.read(unseen, n, None) if len(unseen) else ()
        for images in chain(self._read(own_part(self.held_out), n, None), batches):
            got = outputs_of(network, images, device, self.outputs)
            wanted = outputs_of(original, images, device, self.outputs)
            total += float(self.outputs.change(wanted, got).sum())
        change = sum_over_processes(total) / self.n_validation
        return {"score": -change, self.metric: change}

    def _read(
        self, indices: Tensor, batch_size: int, augment_seed: int | None, numbers: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Frozen images; they are kept as the network takes them and cannot be augmented."""
        if self.images is not None:
            for part in indices.split(batch_size):
                yield self.images[part]
            return
        with FrozenFile(self.path) as frozen:
            for part in indices.split(batch_size):
                yield torch.cat([frozen.images(number, number + 1) for number in part.tolist()])


def mixed(images: Tensor, seed: int) -> Tensor:
    """Every image with a share of another one of its batch, drawn evenly between none and a half.

    Mixtures of two images (Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", equation 1, with beta
    distribution (1, 1)) show a network more of the space around few images. Targets are not mixed: the original
    answers for the mixture itself.

    Parameters
    ----------
    images : torch.Tensor, shape (B, C, H, W)
    seed : int
    """
    mixture = Mixture(len(images), seed)
    return images + mixture.share * (images[mixture.partner] - images)


class Mixture:
    """Draws for the mixtures of one batch.

    Attributes
    ----------
    share : torch.Tensor, shape (B, 1, 1, 1)
        Of the other image.
    partner : torch.LongTensor, shape (B,)
        Place of the other image.
    """

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.share = 0.5 * torch.rand(n, 1, 1, 1, generator=generator)
        order = torch.randperm(n, generator=generator)
        self.partner = torch.empty_like(order)
        self.partner[order] = order.roll(1)


def _own(run: RunDirectory, frozen: FrozenFile, wanted: int | None, reporter: Reporter) -> Pool | str:
    """The images of the run's own source; a line that says why not where it cannot be opened again."""
    alone = "training on the frozen images alone, without augmentation"
    if freeze_options(run).data == IN_MEMORY:
        return f"{IN_MEMORY} cannot be opened again: {alone}; more can be given by a name (data, option --data)"
    try:
        source = open_images(run)
        return _pool_of(run, frozen, source, None, wanted, reporter)
    except DecompError as error:
        return f"{alone}, since the others cannot be read: {error}"


def _other(run: RunDirectory, frozen: FrozenFile, data: str, seed: int, wanted: int | None, reporter: Reporter) -> Pool:
    """The images of another source, prepared and normalised as those of the run as far as that is known."""
    options, source = freeze_options(run), (run.config("freeze") or {}).get("source")
    source = source if isinstance(source, dict) else {}
    (channels, height, width), known = frozen.input_shape, _normalisation(source.get("normalisation"))
    opened = open_source(
        data, network=NetworkInput((channels, height, width), normalisation=known), skip_bad=options.skip_bad,
        options=options.image_options, recorded=source.get("prepared"), spread=spread,
    )  # fmt: skip
    pool = _pool_of(run, frozen, opened, seed, wanted, reporter)
    notes = (f"images of {data}: {opened.preprocessing}", *pool.notes)
    if known is not None or options.mean is not None or not opened.normalisation.on_known_scale:
        return replace(pool, notes=notes)
    doubt = (
        f"this run does not record how its own images were normalised: if the network wants those of {data} otherwise "
        "than said above, give them ready for it, as floating-point arrays (npz:FILE)"
    )
    return replace(pool, notes=notes, warnings=(doubt,))


def _normalisation(record: Any) -> Normalisation | None:
    """Normalisation of values from 0 to 1, of a run's own images; None where their scale is not known."""
    try:
        found = Normalisation(float(record["scale"]), tuple(record["mean"]), tuple(record["std"]))
    except (KeyError, TypeError, ValueError):
        return None
    if not found.on_known_scale:
        return None
    return found if found.mean else Normalisation(found.scale, (0.0,), (1.0,))


def _pool_of(
    run: RunDirectory, frozen: FrozenFile, source: ImageSource, seed: int | None, wanted: int | None, reporter: Reporter
) -> Pool:
    """The images of a source without those that the run holds out.

    Parameters
    ----------
    run : RunDirectory
    frozen : FrozenFile
    source : ImageSource
    seed : int, optional
        None: the source is the run's own.
    wanted : int, optional
        Images beyond so many are not looked at, where each has to be.
    reporter : Reporter
    """
    split, n_fit = source.train, fitted_images(frozen.n_images)
    if seed is None and len(split) >= max(frozen.n_images, 10):
        # In the order in which freeze drew them, so that the fitted images come first.
        order = draw_images(source, len(split), freeze_options(run).seed)
        places = order[n_fit : frozen.n_images]
        if all(
            torch.equal(images, frozen.images(start, start + len(images)))
            for start, images in zip(range(n_fit, frozen.n_images, IMAGES_AT_A_TIME), _images(split, places))
        ):
            others = order[frozen.n_images :]
            n = max(0, min(VALIDATION_IMAGES - len(places), (n_fit + len(others)) // ONE_IN, len(others)))
            others, unseen = others[: len(others) - n], others[len(others) - n :]
            kept = torch.cat([order[:n_fit], others])
            return Pool(kept, _reader(split), f"training images of {source.name}", unseen=unseen)
    # The frozen images are elsewhere in this source, or not in it: those that are held out are known by their pixels.
    order = torch.randperm(len(split), generator=seeds.generator(seed or 0, "finetune", "pool"))
    known = {_digest(frozen.images(place, place + 1)[0]) for place in range(n_fit, frozen.n_images)}
    found: list[bool] = []
    with reporter.progress(len(order), "comparison with the held-out images", "images", summary=False) as bar:
        for batch in _images(split, order):
            found += [_digest(image) not in known for image in batch]
            bar.update(len(batch))
            if wanted is not None and sum(found) >= wanted:
                break
    fresh = torch.tensor(found).bool()
    n_left_out = int((~fresh).sum())
    note = f"{n_left_out:,} of its {len(split):,} images are held out in this run and are not trained on"
    return Pool(order[: len(fresh)][fresh], _reader(split), f"images of {source.name}", (note,) if n_left_out else ())


def _images(split: Split, indices: Tensor) -> Iterator[Tensor]:
    return (images for images, _ in split.batches(indices, IMAGES_AT_A_TIME))


def _reader(split: Split) -> Read:
    def read(
        indices: Tensor, batch_size: int, augment_seed: int | None, numbers: Tensor | None = None
    ) -> Iterator[Tensor]:
        batches = split.batches(indices, batch_size, augment_seed=augment_seed, numbers=numbers)
        return (images for images, _ in batches)

    return read


def _digest(image: Tensor) -> bytes:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).digest()
