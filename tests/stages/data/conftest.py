"""Small real images, in folders and zips."""

import io
import stat
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def png(seed: int, size: tuple[int, int] = (12, 10)) -> bytes:
    """A PNG whose content depends on the seed alone."""
    rng = np.random.default_rng(seed)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """folder({name: bytes or seed}, at="images") writes files and returns their folder."""

    def write(files: dict[str, bytes | int], at: str = "images") -> Path:
        root = tmp_path / at
        root.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(content) if isinstance(content, int) else content)
        return root

    return write


@pytest.fixture
def zipped(tmp_path: Path) -> Callable[..., Path]:
    """zipped([(name or ZipInfo, bytes or seed)], at="images.zip", compression) writes a zip and returns its path."""

    def write(
        members: Iterable[tuple[str | zipfile.ZipInfo, bytes | int]],
        at: str = "images.zip",
        compression: int = zipfile.ZIP_STORED,
    ) -> Path:
        path = tmp_path / at
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in members:
                archive.writestr(name, png(content) if isinstance(content, int) else content)
        return path

    return write


@pytest.fixture
def link() -> Callable[[str], zipfile.ZipInfo]:
    """link(name): the entry of a symbolic link, as zip on Unix writes it."""

    def entry(name: str) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name)
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        return info

    return entry
