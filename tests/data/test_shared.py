"""Decoded images that processes share: decoded once, mapped by all, and the same as those of the files."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from attention_transfer.data import (
    ArrayImages,
    FileImages,
    ImageSet,
    MappedImages,
    SharedPixels,
    Split,
    eval_pixels,
    keep_decoded,
    keep_pixels,
)
from attention_transfer.data.decoding import in_mode
from attention_transfer.errors import UserError
from attention_transfer.vit import ViTSpec, describe

Write = Callable[..., list[Path]]


class Counted(FileImages):
    """Image files that write down each decoding, whichever process does it."""

    def __init__(self, paths: list[Path], file: Path) -> None:
        super().__init__(paths)
        self._file = file

    def __getitem__(self, index: int) -> Image.Image:
        with self._file.open("a") as file:
            file.write(f"{index}\n")
        time.sleep(0.01)
        return super().__getitem__(index)

    @property
    def decoded(self) -> list[int]:
        return sorted(map(int, self._file.read_text().split())) if self._file.exists() else []


@pytest.fixture
def spec(tiny_vit: Callable[..., Any]) -> ViTSpec:
    """Input of a model of 3 channels and 8 by 8 pixels."""
    return describe(tiny_vit(in_chans=3, pretrained_cfg_overlay={"mean": (0.5,) * 3, "std": (0.5,) * 3}))


@pytest.fixture
def images(write: Write, tmp_path: Path) -> Counted:
    """Six pictures in files, of 12 by 10 pixels."""
    return Counted(write("pictures", 6, size=(12, 10)), tmp_path / "decoded.txt")


def test_images_are_those_of_the_files_in_every_mode_and_size(tmp_path: Path) -> None:
    paths = []
    for number, mode in enumerate(("RGB", "L", "P", "RGBA", "1", "CMYK")):
        noise = np.random.default_rng(number).integers(0, 256, (7 + number, 9, 3), dtype=np.uint8)
        suffix = "tiff" if mode == "CMYK" else "png"
        paths.append(tmp_path / f"{number}.{suffix}")
        Image.fromarray(noise).convert(mode).save(paths[-1])
    files = FileImages(paths)
    for mode in ("RGB", "L"):
        shared = SharedPixels(tmp_path / "shared").decoded(files, mode)
        assert len(shared) == 6
        for index in range(6):
            assert shared[index].mode == mode
            assert np.array_equal(np.asarray(shared[index]), np.asarray(in_mode(files[index], mode)))
    taken = pickle.loads(pickle.dumps(shared.take(np.array([4, 1]))))
    assert np.array_equal(np.asarray(taken[1]), np.asarray(in_mode(files[1], "L")))
    assert len(pickle.dumps(taken)) < 1000  # another process maps the file, and is not sent its pixels
    assert len(list((tmp_path / "shared").glob("*.pixels"))) == 1


def _reads(folder: Path, images: Counted, together: Any, found: Any) -> None:
    together.wait()
    kept = SharedPixels(folder).decoded(images, "RGB")
    sums = [int(np.asarray(kept[index]).sum()) for index in range(len(kept))]
    maps = Path("/proc/self/maps").read_text().splitlines() if Path("/proc/self/maps").exists() else []
    mapped = [line.split()[-2:] for line in maps if line.endswith(".pixels")]  # inode and path
    found.put((os.getpid(), sums, mapped))


def test_of_several_processes_one_decodes_and_all_map_the_same_pages(images: Counted, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    together, found = context.Barrier(3), context.Queue()
    arguments = (tmp_path / "shared", images, together, found)
    processes = [context.Process(target=_reads, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    said = [found.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert images.decoded == [0, 1, 2, 3, 4, 5]
    assert len({process for process, _, _ in said}) == 3
    assert [sums for _, sums, _ in said] == [said[0][1]] * 3
    if said[0][2]:
        assert len(said[0][2]) == 1  # one mapping of one file, of the same inode everywhere
        assert [mapped for _, _, mapped in said] == [said[0][2]] * 3


def test_a_further_subset_decodes_what_is_missing_alone(images: Counted, tmp_path: Path) -> None:
    shared = SharedPixels(tmp_path / "shared")
    before = shared.decoded(FileImages(images.paths[:4]), "RGB")
    later = shared.decoded(images, "RGB")
    assert images.decoded == [4, 5]
    assert [np.array_equal(np.asarray(before[i]), np.asarray(later[i])) for i in range(4)] == [True] * 4


def test_a_file_that_has_changed_is_decoded_again(images: Counted, tmp_path: Path) -> None:
    shared = SharedPixels(tmp_path / "shared")
    shared.decoded(images, "RGB")
    Image.new("RGB", (3, 4), "red").save(images.paths[2])
    os.utime(images.paths[2], (1, 1))
    assert shared.decoded(images, "RGB")[2].size == (3, 4)
    assert images.decoded == [0, 1, 2, 2, 3, 4, 5]


def test_what_a_killed_process_left_behind_is_written_over(images: Counted, tmp_path: Path) -> None:
    shared = SharedPixels(tmp_path / "shared")
    whole = shared.decoded(images, "RGB")
    pixels = [np.asarray(whole[index]) for index in range(6)]
    (file,) = (tmp_path / "shared").glob("*.pixels")
    with file.open("ab") as stream:
        stream.write(b"half an image")
    further = shared.decoded(images, "L")
    assert [np.array_equal(np.asarray(further[i]), np.asarray(images[i].convert("L"))) for i in range(6)] == [True] * 6
    again = shared.decoded(images, "RGB")
    assert [np.array_equal(np.asarray(again[i]), pixels[i]) for i in range(6)] == [True] * 6


def test_evaluations_pixels_are_made_once(images: Counted, spec: ViTSpec, tmp_path: Path) -> None:
    shared, labels = SharedPixels(tmp_path / "shared"), np.arange(6)
    plain = keep_pixels(ImageSet(FileImages(images.paths), labels, eval_pixels(spec)), "test")
    for _ in range(2):
        kept = keep_pixels(ImageSet(images, labels, eval_pixels(spec)), "test", shared=shared)
        assert isinstance(kept, TensorDataset)
        for index in range(6):
            assert torch.equal(kept[index][0], plain[index][0])
            assert kept[index][1] == index
    assert images.decoded == [0, 1, 2, 3, 4, 5]
    assert isinstance(kept, TensorDataset)
    kept.tensors[0].zero_()  # in this process alone
    again = keep_pixels(ImageSet(images, labels, eval_pixels(spec)), "test", shared=shared)
    assert torch.equal(again[5][0], plain[5][0])


def test_without_room_each_process_has_its_own(
    images: Counted, spec: ViTSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage)
    with caplog.at_level("INFO", "attention_transfer"):
        kept = keep_decoded(images, "training", shared=SharedPixels(tmp_path / "shared"))
    assert not isinstance(kept, MappedImages)
    assert "training: each process decodes its own images, for there is too little free disk" in caplog.text
    assert not (tmp_path / "shared").exists()


class _Usage:
    free = 6 * 4 * 12 * 10


def test_what_was_removed_stays_with_who_has_it_and_is_made_anew(images: Counted, tmp_path: Path) -> None:
    shared = SharedPixels(tmp_path / "shared")
    old = shared.decoded(images, "RGB")
    before = np.asarray(old[3]).copy()
    shared.remove()
    shared.remove()
    assert not (tmp_path / "shared").exists()
    assert np.array_equal(np.asarray(old[3]), before)
    assert np.array_equal(np.asarray(shared.decoded(images, "RGB")[3]), before)
    assert images.decoded == sorted([*range(6), *range(6)])


def test_what_others_put_there_is_not_removed(images: Counted, tmp_path: Path) -> None:
    shared = SharedPixels(tmp_path / "shared")
    shared.decoded(images, "RGB")
    (tmp_path / "shared" / "mine.png").write_bytes(b"mine")
    (tmp_path / "shared" / "folder").mkdir()
    shared.remove()
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {"mine.png", "folder"}


def test_a_damaged_file_is_named_and_costs_the_others_nothing(images: Counted, tmp_path: Path) -> None:
    images.paths[3].write_bytes(b"")
    shared = SharedPixels(tmp_path / "shared")
    with pytest.raises(UserError, match=rf"{images.paths[3].name} is empty"):
        shared.decoded(images, "RGB")
    assert len(shared.decoded(FileImages(images.paths[:3]), "RGB")) == 3


def test_images_in_memory_are_left_there(spec: ViTSpec, tmp_path: Path) -> None:
    split = Split(ArrayImages(np.zeros((4, 8, 8), dtype=np.uint8)), np.arange(4))
    shared = SharedPixels(tmp_path / "shared")
    assert keep_decoded(split.images, "training", shared=shared) is split.images
    assert isinstance(keep_pixels(split.with_transform(eval_pixels(spec)), "test", shared=shared), TensorDataset)
    assert len(keep_decoded(FileImages([]), "training", shared=shared)) == 0
    assert not (tmp_path / "shared").exists()
