from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from attention_transfer.data import (
    ArrayImages,
    DecodedImages,
    FileImages,
    ImageSet,
    Split,
    digits,
    eval_pixels,
    free_memory,
    keep_decoded,
    keep_pixels,
    train_pixels,
)
from attention_transfer.data import cache as cache_module
from attention_transfer.errors import UserError
from attention_transfer.vit import ViTSpec, describe

Write = Callable[..., list[Path]]


@pytest.fixture
def spec(tiny_vit: Callable[..., Any]) -> ViTSpec:
    """Input of a model of 3 channels and 8 by 8 pixels."""
    return describe(tiny_vit(in_chans=3, pretrained_cfg_overlay={"mean": (0.5,) * 3, "std": (0.5,) * 3}))


@pytest.fixture
def split(write: Write) -> Split:
    """Six pictures in files, of 12 by 10 pixels."""
    return Split(FileImages(write("pictures", 6, size=(12, 10))), np.arange(6))


def test_evaluation_is_kept_where_a_quarter_of_the_memory_holds_it(
    split: Split, spec: ViTSpec, caplog: pytest.LogCaptureFixture
) -> None:
    images, needed = split.with_transform(eval_pixels(spec)), 6 * 3 * 8 * 8
    with caplog.at_level(logging.DEBUG, "attention_transfer"):
        kept = keep_pixels(images, "validation", free=4 * needed)
        assert keep_pixels(images, "test", free=4 * needed - 4) is images
    assert isinstance(kept, TensorDataset)
    assert len(kept) == 6
    for index in range(6):
        assert torch.equal(kept[index][0], images[index][0])
        assert kept[index][1] == index
    assert "validation: 6 images are kept in memory" in caplog.messages[0]
    assert "test: 6 images are decoded whenever they are needed" in caplog.messages[1]


def test_decoded_images_are_those_of_the_files(tmp_path: Path) -> None:
    """Whole, upright, and in their own modes: training crops and evaluation are the same from both."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [tmp_path / name for name in ("a.jpg", "b.png", "c.png")]
    Image.fromarray(pixels).save(paths[0], exif=exif)
    Image.fromarray(pixels).quantize(8).save(paths[1])
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(paths[2])
    images = FileImages(paths)
    kept = keep_decoded(images, "training")
    assert isinstance(kept, DecodedImages)
    chosen = kept.take(np.array([2, 0]))
    assert [len(kept), len(chosen)] == [3, 2]
    pairs = [*((kept[i], images[i]) for i in range(3)), (chosen[0], images[2]), (chosen[1], images[0])]
    for found, expected in pairs:
        assert (found.mode, found.size) == (expected.mode, expected.size)
        assert found.tobytes() == expected.tobytes()


def test_files_that_are_too_many_are_read_when_they_are_needed(split: Split, caplog: pytest.LogCaptureFixture) -> None:
    needed = 6 * 12 * 10 * 4  # Pillow stores three channels in four bytes
    assert isinstance(keep_decoded(split.images, "training", free=4 * needed), DecodedImages)
    with caplog.at_level(logging.DEBUG, "attention_transfer"):
        assert keep_decoded(split.images, "training", free=4 * needed - 4) is split.images
    assert "decoded whenever they are needed (at least" in caplog.text


def test_what_is_in_memory_stays_as_it_is() -> None:
    images = digits().test.images
    assert isinstance(images, ArrayImages)
    assert keep_decoded(images, "training", free=0) is images


def test_free_memory_is_below_what_there_is_and_heeds_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(cache_module, "_free_in_container", lambda: 1000)
    assert free_memory() == 1000
    monkeypatch.setattr(cache_module, "_free_in_system", lambda: 500)
    assert free_memory() == 500


def test_an_empty_set_is_left_alone(split: Split, spec: ViTSpec) -> None:
    images = split.take(np.array([], dtype=np.int64)).with_transform(eval_pixels(spec))
    assert keep_pixels(images, "validation") is images


def test_a_damaged_file_is_named_when_it_is_decoded_for_keeping(split: Split, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "002.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"002\.png is (not an image|empty)"):
        keep_decoded(split.images, "training")


def test_a_containers_limit_is_less_what_it_uses_and_can_not_give_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_GROUP", tmp_path)
    limit = cache_module._free_in_container
    assert limit() is None
    (tmp_path / "memory.max").write_text("max\n")
    assert limit() is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 250\n")
    assert limit() == 550


def same(one: ImageSet, other: ImageSet) -> bool:
    return all(torch.equal(one[i][0], other[i][0]) and one[i][1] == other[i][1] for i in range(len(one)))


@pytest.mark.parametrize("augment", ["none", "shift", "light", "heavy"])
def test_sets_reach_spawned_processes(augment: Any, split: Split, spec: ViTSpec) -> None:
    """There, everything goes by pickle."""
    for images in (split.images, keep_decoded(split.images, "training")):
        ours = Split(images, split.labels).with_transform(train_pixels(spec, augment))
        theirs = pickle.loads(pickle.dumps(ours))
        assert [len(theirs), *theirs[5][0].shape] == [6, 3, 8, 8]
    evaluation = split.with_transform(eval_pixels(spec))
    assert same(pickle.loads(pickle.dumps(evaluation)), evaluation)


def test_workers_read_the_same_images(split: Split, spec: ViTSpec) -> None:
    images = split.with_transform(eval_pixels(spec))
    pixels, labels = next(iter(DataLoader(images, 6, num_workers=1)))
    assert torch.equal(pixels, images.materialised().tensors[0])
    assert labels.tolist() == list(range(6))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_became_unreadable_is_named(workers: int, split: Split, spec: ViTSpec, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "004.png").write_bytes(b"")
    images = split.with_transform(eval_pixels(spec))
    with pytest.raises(UserError, match=r"004\.png is (not an image|empty)"):
        list(DataLoader(images, 2, num_workers=workers))
    with pytest.raises(UserError, match=r"004\.png is (not an image|empty)"):
        images.materialised()
