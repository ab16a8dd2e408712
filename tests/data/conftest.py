"""Miniature folders of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attention_transfer.data import FileImages, Split

Write = Callable[..., list[Path]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes so many pictures, each another one, into a folder below `tmp_path`."""
    rng = np.random.default_rng(0)

    def build(folder: str, count: int, *, suffix: str = "png", size: tuple[int, int] = (8, 8)) -> list[Path]:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        paths = [tmp_path / folder / f"{number:03}.{suffix}" for number in range(count)]
        for path in paths:
            Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        return paths

    return build


@pytest.fixture
def files() -> Callable[[Split], list[Path]]:
    """The files of a split."""

    def of(split: Split) -> list[Path]:
        assert isinstance(split.images, FileImages)
        return list(split.images.paths)

    return of
