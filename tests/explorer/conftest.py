"""A small explorer: two networks that differ, and photographs made of noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from attention_transfer.evaluation.epochs import KeptEpochs
from attention_transfer.evaluation.subjects import Subject
from attention_transfer.explorer.album import offered_files
from attention_transfer.explorer.network import ExploredNetwork
from attention_transfer.explorer.session import Explorer
from attention_transfer.vit import describe

CLASSES = ("ant", "bee", "cat", "dog", "elk")


def explored(id: str, vit: nn.Module, epochs: KeptEpochs | None = None) -> ExploredNetwork:
    """A network in memory, as the explorer has it."""
    subject = Subject(id, vit, vit, describe(vit), CLASSES, named=True, data=None)
    return ExploredNetwork(id, subject, f"network {id}", epochs or KeptEpochs())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of two classes, with images of unlike sizes."""
    random = np.random.default_rng(0)
    for name, size in {"ant/a.png": (20, 30), "ant/b.png": (8, 8), "bee/c.png": (40, 12)}.items():
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def networks(tiny_vit: Callable[..., Any]) -> Sequence[ExploredNetwork]:
    """Two networks of the same shape."""
    return [explored("0", tiny_vit(0)), explored("1", tiny_vit(1))]


@pytest.fixture
def explorer(networks: Sequence[ExploredNetwork], pictures: Path) -> Explorer:
    """Both networks and all pictures."""
    return Explorer(networks, offered_files([str(pictures)], None)[0])
