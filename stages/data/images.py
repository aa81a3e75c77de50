"""ImageSet: the images of one role, hashed, checked and in a fixed order; and the rules that keep the roles apart.

Shapes: N images, B of a batch, H and W of the model's input.
"""

import hashlib
import logging
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from stages.data.index import Tell, decoder_version, find_undecodable, hash_contents, in_threads
from stages.data.labels import labels_from_archives, labels_from_folders, match_labels, read_classes, read_labels
from stages.data.listing import list_images
from stages.data.place import Listed, Place
from stages.data.source import DataSource
from stages.data.tables import Columns
from stages.stage import Role
from targets.bundle.pixels import UnreadableImageError, decode
from targets.errors import InputError, StoreError
from targets.preprocess import Preprocess, normalise, resize_and_crop
from targets.record import digest_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("vitrim.data")

SELECT_MINIMUM = 256
"""images of `select`: the standard error of an agreement of 90 % is then 1.9 points"""
UNREADABLE_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Item:
    """One image."""

    id: str
    sha256: str
    """of the file's bytes; of the pixels for an embedded data set"""
    label: int | None


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one role, ordered by id. Small: pixels are decoded when asked for. Safe to pickle, fork and thread."""

    role: Role
    items: tuple[Item, ...]
    places: "tuple[Place | NDArray[np.uint8], ...]"
    """where the bytes of each item are; the pixels themselves, [H, W, 3], for an embedded data set"""
    classes: tuple[str, ...] | None = None
    unreadable: tuple[str, ...] = ()
    """what was left out and why"""

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the content and label of every image, in order: what a stage's key holds."""
        return digest_of([[item.sha256, item.label] for item in self.items])

    @property
    def labels(self) -> "NDArray[np.int64] | None":
        """[N], or None unless every image has a label."""
        if not self.items or any(item.label is None for item in self.items):
            return None
        return np.array([item.label for item in self.items], dtype=np.int64)

    def image(self, index: int) -> Image.Image:
        """Decode one image at its own size, upright RGB. Raises InputError when it changed since it was listed."""
        place, item = self.places[index], self.items[index]
        if isinstance(place, np.ndarray):
            return Image.fromarray(place)
        try:
            data = place.read()
            if hashlib.sha256(data).hexdigest() != item.sha256:
                raise UnreadableImageError("its content changed while vitrim ran")
            return decode(data)
        except (OSError, UnreadableImageError) as error:
            raise InputError(f"cannot read the image {item.id!r} of {self.role}: {error}; build again") from error

    def decode_for_training(self, index: int) -> Image.Image:
        """One image at its own size, for random crops: the same as `image`."""
        return self.image(index)

    def uint8(self, preprocess: Preprocess, *, folder: Path | None = None) -> "NDArray[np.uint8]":
        """All images, resized and cropped: [N, H, W, 3]. With a folder: read-only, mapped from a file there."""
        if folder is not None:
            return np.load(self.pixels_file(preprocess, folder), mmap_mode="r")  # type: ignore[no-any-return]
        pixels = np.empty((len(self), preprocess.height, preprocess.width, 3), dtype=np.uint8)
        for index, image in enumerate(self._pixels(preprocess)):
            pixels[index] = image
        return pixels

    def pixels_file(self, preprocess: Preprocess, folder: Path) -> Path:
        """A .npy file in this folder with all images, uint8 [N, H, W, 3], for other processes; kept and reused."""
        path = folder / f"pixels-{digest_of([decoder_version(), self.fingerprint, preprocess.digest()])[:32]}.npy"
        if path.exists():
            return path
        shape = (len(self), preprocess.height, preprocess.width, 3)
        temporary = folder / f".{path.stem}-{secrets.token_hex(4)}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:  # written in order: a full disk is then an error, not a bus error
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for image in self._pixels(preprocess):
                    file.write(image.tobytes())
            os.replace(temporary, path)
        except OSError as error:
            raise StoreError(
                f"cannot write {math.prod(shape) // 2**20 + 1:,} MiB of pixels to {str(folder)!r}: {error.strerror}; "
                "free some space or choose another folder"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def batches(self, preprocess: Preprocess, batch_size: int, *, flip: bool = False) -> "Batches":
        """Normalised batches in order, float32 [B, 3, H, W], decoded anew in each pass; flip: mirrored left-right."""
        return Batches(self, preprocess, batch_size, flip)

    def subset(self, indices: "Sequence[int] | NDArray[np.integer]") -> "ImageSet":
        """The images at these indices, in the order given."""
        picked = [int(index) for index in indices]
        return replace(
            self,
            items=tuple(self.items[i] for i in picked),
            places=tuple(self.places[i] for i in picked),
            unreadable=(),
        )

    def first_by_content(self, limit: int | None) -> "ImageSet":
        """At most so many: the first by content hash, as good as drawn, whatever their names. None: all of them."""
        if limit is None or limit >= len(self):
            return self
        return self.subset(sorted(range(len(self)), key=lambda index: self.items[index].sha256)[:limit])

    def _pixels(self, preprocess: Preprocess) -> "Iterator[NDArray[np.uint8]]":
        """Each image, resized and cropped in threads: [H, W, 3]."""
        return in_threads(lambda i: resize_and_crop(self.image(i), preprocess), range(len(self)))


@dataclass(frozen=True)
class Batches:
    """Batches that can be iterated over again and again; the last one may be smaller."""

    images: ImageSet
    preprocess: Preprocess
    batch_size: int
    flip: bool = False

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> "Iterator[NDArray[np.float32]]":
        pixels = self.images._pixels(self.preprocess)
        while chunk := list(islice(pixels, self.batch_size)):
            batch = np.stack(chunk)  # [B, H, W, 3]
            yield normalise(batch[:, :, ::-1] if self.flip else batch, self.preprocess)


def open_images(
    source: DataSource, role: Role, *, index_cache: Path | None, tell: Tell = lambda message, share: None
) -> ImageSet:
    """List, hash and check the images of one role; reads every byte once, or nothing that the cache remembers.

    index_cache: a file that all roles and runs may share; None remembers nothing. tell(message, share done): progress.
    Raises InputError, with what to do, for whatever is wrong with the input: see docs/data.md.
    """
    if source.dataset == "digits":
        from stages.data.digits import open_digits

        return _part(open_digits(role), source)
    listed, labels, classes = _list_labelled(source, index_cache)
    hashes: dict[str, str] = {}
    problems: dict[str, str] = {}
    for root, images in listed:
        read, failed = hash_contents(root, images, cache=index_cache, tell=tell)
        hashes.update(read)
        problems.update(failed)
    found = sorted(
        (image for _, images in listed for image in images if image.id in hashes), key=lambda image: image.id
    )
    everything = ImageSet(
        role=role,
        items=tuple(Item(image.id, hashes[image.id], labels.get(image.id)) for image in found),
        places=tuple(image.place for image in found),
        classes=classes,
    )
    picked = _part(everything, source) if found else everything
    places = {
        item.sha256: place
        for item, place in zip(picked.items, picked.places, strict=True)
        if not isinstance(place, np.ndarray)
    }
    undecodable = find_undecodable(places, cache=index_cache, tell=tell)
    problems.update((item.id, undecodable[item.sha256]) for item in picked.items if item.sha256 in undecodable)
    good = picked.subset([i for i, item in enumerate(picked.items) if item.sha256 not in undecodable])
    _tolerate(good, problems)
    _mention_copies(good)
    return replace(good, unreadable=tuple(f"{id_}: {problem}" for id_, problem in sorted(problems.items())))


def check_roles(sets: Mapping[Role, ImageSet]) -> None:
    """Raise InputError where `select` or `evaluate` shares an image with another role, or `select` is too small.

    Compared by content: two encodings of one picture are two images. fit and train may overlap.
    """
    roles = [role for role in Role if role in sets]
    for kept_apart in (Role.EVALUATE, Role.SELECT):
        for other in roles:
            if kept_apart in sets and other != kept_apart:
                _check_apart(sets[kept_apart], sets[other])
    if Role.SELECT in sets and len(sets[Role.SELECT]) < SELECT_MINIMUM:
        raise InputError(
            f"select has {len(sets[Role.SELECT])} images, at least {SELECT_MINIMUM} are needed to choose by; "
            "give it a larger share, a higher limit or more images"
        )


def unlabelled(images: ImageSet) -> bool:
    """Whether no image has a label; where only some have one, the others were forgotten."""
    return all(item.label is None for item in images.items)


def check_labels(images: ImageSet, classes: int, *, names: Sequence[str] | None = None) -> None:
    """Raise InputError unless every image has a label below `classes`, the size of the model's head.

    names: the model's class names, if they are known: the images' own must be the same.
    """
    labels = images.labels
    if labels is None:
        missing = sum(item.label is None for item in images.items)
        raise InputError(
            f"{missing} of {len(images)} images of {images.role} have no label; "
            "give a labels file (columns file,label) or put the images in folders CLASS/name.jpg"
        )
    if labels.max() >= classes:
        first = images.items[int(labels.argmax())]
        raise InputError(
            f"image {first.id!r} of {images.role} has label {first.label}, but the model has {classes} classes "
            f"(labels 0..{classes - 1}); give labels of this model's classes, or fine-tune it first"
        )
    if names is not None and images.classes is not None and tuple(names) != images.classes:
        pairs = zip(names, images.classes, strict=False)
        index = next(
            (i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(names), len(images.classes))
        )
        ours, theirs = (known[index] if index < len(known) else None for known in (names, images.classes))
        raise InputError(
            f"class {index} of {images.role} is {theirs!r}, but the model's is {ours!r}; "
            "give a classes file in the model's order with labels that follow it"
        )


def _list_labelled(
    source: DataSource, index_cache: Path | None
) -> tuple[list[tuple[Path, list[Listed]]], dict[str, int], tuple[str, ...] | None]:
    """The images of a source (those that `where` picks), their labels by id, and the class names."""
    listed = list_images(source.paths, columns=Columns(source.image_column, source.label_column), cache=index_cache)
    classes = read_classes(source.classes) if source.classes else None
    images = [image for _, found in listed for image in found]
    labels: dict[str, int] = {}
    if source.labels is not None:
        rows = read_labels(source.labels, source.where)
        labels = match_labels(rows, [image.id for image in images], source.labels, partial=bool(source.where))
        listed = [(root, [image for image in found if image.id in labels]) for root, found in listed]
    elif beside := labels_from_archives(images, classes):
        labels, classes = beside
    elif by_folder := labels_from_folders([image.name for image in images], classes):
        labels = dict(zip([image.id for image in images], by_folder[0], strict=True))
        classes = by_folder[1]
    if classes is not None and labels and max(labels.values()) >= len(classes):
        worst = max(labels, key=labels.__getitem__)
        raise InputError(
            f"image {worst!r} has label {labels[worst]}, but {str(source.classes)!r} names {len(classes)} classes "
            f"(labels 0..{len(classes) - 1})"
        )
    return listed, labels, classes


def _part(images: ImageSet, source: DataSource) -> ImageSet:
    """The images that `share` and `limit` leave; raises InputError when none are left."""
    indices = [i for i, item in enumerate(images.items) if source.holds(item.sha256)]
    if not indices:
        raise InputError(f"share {list(source.share)} of {images.role} holds none of {len(images)} images; widen it")
    if source.limit is not None:
        indices.sort(key=lambda i: (images.items[i].sha256, i))
        indices = sorted(indices[: source.limit])
    return images.subset(indices)


def _tolerate(good: ImageSet, problems: Mapping[str, str]) -> None:
    """Raise InputError when too many images are unreadable, or one of `evaluate`; log the others."""
    if not problems:
        return
    total = len(good) + len(problems)
    shown = "; ".join(f"{id_!r}: {problem}" for id_, problem in sorted(problems.items())[:3])
    message = f"{len(problems)} of {total} images of {good.role} cannot be read, first {shown}"
    if good.role is Role.EVALUATE:
        raise InputError(f"{message}; leaving images out shifts the accuracy, so replace or remove them")
    if len(problems) > UNREADABLE_SHARE * total:
        raise InputError(f"{message}; more than {UNREADABLE_SHARE:.0%} is too many, replace or remove them")
    log.warning("%s; left out", message)


def _mention_copies(images: ImageSet) -> None:
    labels: dict[str, set[int | None]] = {}
    for item in images.items:
        labels.setdefault(item.sha256, set()).add(item.label)
    copies = len(images) - len(labels)
    if copies:
        torn = sum(len(found) > 1 for found in labels.values())
        log.warning("%s holds %d copies of its own images, %d with another label", images.role, copies, torn)


def _check_apart(images: ImageSet, others: ImageSet) -> None:
    known = {item.sha256: item.id for item in others.items}
    both = [(item.id, known[item.sha256]) for item in images.items if item.sha256 in known]
    if both:
        pairs = ", ".join(repr(mine) if mine == theirs else f"{mine!r} = {theirs!r}" for mine, theirs in both[:2])
        raise InputError(
            f"{images.role} and {others.role} have {len(both)} images in common, first {pairs}; "
            "give them different images, or shares of the same that do not overlap (share: [0, 0.5] and [0.5, 1])"
        )
