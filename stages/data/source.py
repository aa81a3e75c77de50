"""DataSource: where the images of one role come from, as a recipe says it. Light; `images.py` opens them."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from targets.record import Record


class DataSource(Record):
    """Folders, archives, tables or an embedded data set, and which part of it.

    Which part is decided by each image's content alone. So it does not depend on names or order, copies of one image
    never fall into two parts, and shares that do not overlap never have an image in common.
    """

    images: Path | tuple[Path, ...] | None = Field(
        default=None,
        description="folders, zips, tars (WebDataset), Parquet or Arrow files of JPEG, PNG, BMP, WEBP, TIFF, GIF; a "
        "folder of such files stands for them; names may hold *, ? and {000..099}",
    )
    dataset: Literal["digits"] | None = Field(
        default=None, description="in place of images: scikit-learn's 1,797 handwritten digits"
    )
    labels: Path | None = Field(
        default=None, description="CSV with the columns file,label (0-based); without it, folders CLASS/name.jpg decide"
    )
    image_column: str | None = Field(default=None, description="of a table, where it has several that hold images")
    label_column: str | None = Field(default=None, description="of a table, where it is not called label or labels")
    classes: Path | None = Field(default=None, description="text file, line i names class i")
    where: dict[str, str] = Field(default={}, description="take the rows of the CSV whose column has this value")
    share: tuple[float, float] = Field(
        default=(0.0, 1.0), description="take the images whose content hash, as a number in [0, 1), is in [from, to)"
    )
    limit: int | None = Field(default=None, gt=0, description="take at most so many, the first by content hash")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.images is None) == (self.dataset is None):
            raise ValueError("give either images (folders, zips) or dataset (digits)")
        if self.images == ():
            raise ValueError("images is an empty list; name at least one folder or zip")
        if self.dataset is not None and (self.labels or self.classes or self.where):
            raise ValueError(f"dataset {self.dataset!r} has its own labels; labels, classes and where go with images")
        if self.dataset is not None and (self.image_column or self.label_column):
            raise ValueError(f"dataset {self.dataset!r} has no columns; image_column and label_column go with tables")
        if self.labels and self.label_column:
            raise ValueError("give either labels (a CSV) or label_column (of a table)")
        if self.where and self.labels is None:
            raise ValueError("where picks rows of the labels file, so it needs labels")
        start, end = self.share
        if not 0 <= start < end <= 1:
            raise ValueError(f"share must be [from, to] with 0 <= from < to <= 1, got [{start:g}, {end:g}]")
        return self

    @property
    def paths(self) -> tuple[Path, ...]:
        """The folders and zips; empty for an embedded data set."""
        if self.images is None:
            return ()
        return self.images if isinstance(self.images, tuple) else (self.images,)

    def holds(self, sha256: str) -> bool:
        """Whether an image with this content belongs to the share."""
        return self.share[0] <= position(sha256) < self.share[1]

    def relative_to(self, folder: Path) -> "DataSource":
        """A copy whose paths, where relative, start at this folder (the recipe's); `~` is the home folder."""

        def absolute(path: Path) -> Path:
            return folder / path.expanduser()

        return self.replace(
            images=tuple(absolute(path) for path in self.paths) or None,
            labels=self.labels and absolute(self.labels),
            classes=self.classes and absolute(self.classes),
        )


def position(sha256: str) -> float:
    """The content hash as a number in [0, 1): its first 52 bits, which a float holds exactly."""
    return int(sha256[:13], 16) / 16**13
