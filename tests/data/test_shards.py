"""Images in tar files: what is read, where splits come from, other processes, damage."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from attention_transfer.data.shards import ShardImages, is_shards, load_shards
from attention_transfer.errors import UserError, UserErrors

Member = tuple[str, bytes]


def picture(shade: int, kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2), (shade, 0, 0)).save(buffer, kind, **options)
    return buffer.getvalue()


def shard(path: Path, members: Sequence[Member], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(labels: Sequence[int | str], *, first: int = 0) -> list[Member]:
    """An image and its label for each; the image's shade is its number."""
    return [
        member
        for n, label in enumerate(labels, first)
        for member in ((f"{n:04d}.png", picture(n)), (f"{n:04d}.cls", str(label).encode()))
    ]


def shades(images: object) -> list[int]:
    assert isinstance(images, ShardImages)
    return [images[n].getpixel((0, 0))[0] for n in range(len(images))]  # type: ignore[index]


class Shades(Dataset[int]):
    """What a worker of a loader sees."""

    def __init__(self, images: ShardImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> int:
        return self.images[index].getpixel((0, 0))[0]  # type: ignore[index]


def test_images_keep_their_labels_over_shards_and_splits(tmp_path: Path) -> None:
    shard(tmp_path / "birds-train-0000.tar", samples([2, 0, 2]))
    shard(tmp_path / "birds-train-0001.tar", samples([0, 5], first=3))
    shard(tmp_path / "birds-val-0000.tar", samples([5, 0], first=5))
    shard(tmp_path / "birds-test-0000.tar", samples([2], first=7))
    assert is_shards(tmp_path)
    splits = load_shards(tmp_path)
    assert splits.classes == ("0", "2", "5"), "numbers that occur, in their order"
    assert shades(splits.train.images) == [0, 1, 2, 3, 4]
    assert splits.train.labels.tolist() == [1, 0, 1, 0, 2]
    assert (shades(splits.validation.images), splits.validation.labels.tolist()) == ([5, 6], [2, 0])
    assert (shades(splits.test.images), splits.test.labels.tolist()) == ([7], [1])
    taken = splits.train.take(np.array([4, 0]))
    assert (shades(taken.images), taken.labels.tolist()) == ([4, 0], [2, 1])


def test_folders_of_the_splits(tmp_path: Path) -> None:
    shard(tmp_path / "train" / "0000.tar", samples(["b", "a"] * 5))
    shard(tmp_path / "val" / "0000.tar", samples(["b"], first=20))
    assert is_shards(tmp_path)
    splits = load_shards(tmp_path)
    assert (splits.name, splits.classes) == (tmp_path.name, ("a", "b"))
    assert shades(splits.test.images) == [20], "validation is what is reported where there is no test split"
    assert sorted(shades(splits.train.images) + shades(splits.validation.images)) == list(range(10))
    assert splits.validation.labels.tolist() in ([0, 1], [1, 0])


def test_shards_without_a_split_are_cut(tmp_path: Path) -> None:
    path = shard(tmp_path / "birds.tar", samples(["a"] * 10 + ["b"] * 10))
    for name in (tmp_path, path):
        splits = load_shards(name)
        assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [12, 4, 4]
        assert len(splits.notes) == 2
    assert splits.name == "birds"


def test_patterns(tmp_path: Path) -> None:
    for n in (9, 10, 11):
        shard(tmp_path / f"train-{n:03d}.tar", samples([0, 1, 0, 1], first=10 * n))
    shard(tmp_path / "val-000.tar", samples([0], first=50))
    shard(tmp_path / "train-999.tar", [("a.txt", b"not meant")])
    for pattern in ("train-{009..010}.tar", "{train-009,train-010}.tar", "train-0{0,1}[90].tar"):
        assert is_shards(tmp_path / pattern)
        splits = load_shards(tmp_path / pattern)
        found = [shade for part in (splits.train, splits.validation, splits.test) for shade in shades(part.images)]
        assert sorted(found) == [90, 91, 92, 93, 100, 101, 102, 103]
    splits = load_shards(tmp_path / "{train-0*,val-*}.tar")
    assert shades(splits.test.images) == [50]
    assert len(splits.train) + len(splits.validation) == 12
    assert not is_shards(tmp_path / "train-*.txt")
    with pytest.raises(UserError, match=r"1 of the files that .* names are missing \(.*train-012.tar\)"):
        load_shards(tmp_path / "train-{009..012}.tar")
    with pytest.raises(UserError, match="missing"):
        load_shards(tmp_path / "birds-*.tar")


def test_json_labels_and_other_members(tmp_path: Path) -> None:
    members = [
        ("./a/0.jpg", picture(0, "jpeg")),
        ("./a/0.json", json.dumps({"label": "cat", "width": 4}).encode()),
        ("./a/0.txt", b"a caption"),
        ("./a/1.webp", picture(0, "webp")),
        ("./a/1.json", json.dumps({"width": 4}).encode()),
        ("./a/1.cls", b"dog\n"),
        ("./b/1.JPG", picture(0, "jpeg")),
        ("./b/1.cls", b"cat"),
        ("./b/1.mask.png", b"not an image of its own"),
    ]
    shard(tmp_path / "train.tar", members)
    shard(tmp_path / "test.tar", samples(["cat"]))
    splits = load_shards(tmp_path)
    assert splits.classes == ("cat", "dog")
    assert np.bincount(np.concatenate([splits.train.labels, splits.validation.labels])).tolist() == [2, 1]


def test_a_file_names_the_classes(tmp_path: Path) -> None:
    shard(tmp_path / "train" / "0.tar", samples([2, 2, 0, 0]))
    shard(tmp_path / "test" / "0.tar", samples([2]))
    (tmp_path / "classnames.txt").write_text("tench\nhen\njay\n")
    splits = load_shards(tmp_path)
    assert (splits.classes, splits.test.labels.tolist()) == (("tench", "hen", "jay"), [2])
    (tmp_path / "classnames.txt").write_text("tench\nhen\n")
    with pytest.raises(UserError, match=r"classnames.txt names 2 classes, and none for 2; complete it"):
        load_shards(tmp_path)


def test_names_of_classes_take_the_order_of_the_file(tmp_path: Path) -> None:
    shard(tmp_path / "train.tar", samples(["hen", "tench"] * 5))
    (tmp_path / "classes.txt").write_text("tench\nhen\n")
    splits = load_shards(tmp_path)
    assert splits.classes == ("tench", "hen")
    assert [(n + 1) % 2 for n in shades(splits.test.images)] == splits.test.labels.tolist()


def test_images_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = picture(0, "jpeg", exif=exif), picture(0, "jpeg")
    content = [("0.jpg", turned), ("0.cls", b"0"), ("1.jpg", plain), ("1.cls", b"0")]
    shard(tmp_path / "train.tar", content)
    shard(tmp_path / "test.tar", content)
    test = load_shards(tmp_path).test.images
    assert [test[n].size for n in range(2)] == [(2, 4), (4, 2)]


def test_other_processes_read_the_same(tmp_path: Path) -> None:
    """Processes that are forked while shards are in use, and those that get the images as bytes."""
    shard(tmp_path / "train-0.tar", samples([0, 1] * 4))
    shard(tmp_path / "train-1.tar", samples([0, 1] * 4, first=8))
    shard(tmp_path / "test.tar", samples([0]))
    images = load_shards(tmp_path).train.images
    assert isinstance(images, ShardImages)
    expected = shades(images)
    if "fork" in multiprocessing.get_all_start_methods():
        loader = DataLoader(Shades(images), batch_size=2, num_workers=2, multiprocessing_context="fork")
        assert [int(shade) for batch in loader for shade in batch] == expected
    assert shades(pickle.loads(pickle.dumps(images))) == expected


def test_shards_are_told_from_other_folders(tmp_path: Path) -> None:
    assert not is_shards(tmp_path)
    assert not is_shards(tmp_path / "none.tar")
    shard(tmp_path / "archive.tar", samples([0]))
    assert is_shards(tmp_path) and is_shards(tmp_path / "archive.tar")
    (tmp_path / "cat").mkdir()
    assert not is_shards(tmp_path), "class folders, with an archive beside them"
    shard(tmp_path / "cat" / "0.tar", samples([0]))
    assert not is_shards(tmp_path), "folders that are no splits"


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ["train-0.tar", "more.tar"],
            r"more.tar does not say which split it belongs to, but others do; put train in its name",
        ),
        (["test-0.tar", "val-0.tar"], r"has shards for test and validation, but none for train; add them"),
        (["train-val-0.tar"], r"train-val-0.tar may belong to train or validation; put the shards into folders"),
        ([], r"holds no .tar files"),
    ],
)
def test_splits_that_cannot_be_told(names: list[str], sentence: str, tmp_path: Path) -> None:
    for name in names:
        shard(tmp_path / name, samples([0, 1]))
    with pytest.raises(UserError, match=sentence):
        load_shards(tmp_path)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([("readme.txt", b"hello")], r"holds no images, but 1 others; a shard has members key.jpg and key.cls"),
        ([("0.jpg", b"")], r"1 of 1 images in .*train.tar have no key.cls, and no key.json with a label \(0\)"),
        ([("0.jpg", b""), ("0.cls", b"1"), ("1.cls", b"1")], r"1 labels in .*train.tar have no image \(1\)"),
        ([("0.jpg", b""), ("0.png", b""), ("0.cls", b"1")], r"train.tar has two images 0; give each image a key"),
        ([("0.jpg", b""), ("0.cls", b" ")], r"0.cls in .*train.tar is empty"),
        ([("0.jpg", b""), ("0.cls", b"\xff")], r"0.cls in .*train.tar is damaged"),
        ([("0.jpg", b""), ("0.json", b"{")], r"0.json in .*train.tar is damaged"),
        ([("0.jpg", b""), ("0.json", b'{"label": [1]}')], r"0.json in .*train.tar has the label \[1\]"),
        (
            [("0.jpg", b""), ("0.cls", b"1"), ("1.jpg", b""), ("1.cls", b"a")],
            r"both kinds, numbers \(1\) and names \(a\)",
        ),
        ([("0.jpg", b""), ("0.cls", b"1")], r"has no class with two training images"),
    ],
)
def test_members_that_are_wrong_are_named(members: list[Member], sentence: str, tmp_path: Path) -> None:
    shard(tmp_path / "train.tar", members)
    with pytest.raises(UserError, match=sentence):
        load_shards(tmp_path)


def test_images_and_labels_that_are_alone_are_told_together(tmp_path: Path) -> None:
    shard(tmp_path / "train.tar", [("0.jpg", b""), ("1.cls", b"0")])
    with pytest.raises(UserErrors) as caught:
        load_shards(tmp_path)
    assert len(caught.value.messages) == 2


def test_compressed_and_truncated_shards_are_refused(tmp_path: Path) -> None:
    path = shard(tmp_path / "train.tar", samples([0, 1]), mode="w:gz")
    with pytest.raises(UserError, match=r"train.tar can't be read as a tar file without compression"):
        load_shards(path)
    shard(path, samples([0, 1] * 20))
    path.write_bytes(path.read_bytes()[:5_000])
    with pytest.raises(UserError, match=r"train.tar can't be read as a tar file"):
        load_shards(path)


def test_a_damaged_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    broken = [("a/7.jpg", picture(0, "jpeg")[:200]), ("a/7.cls", b"1")]
    shard(tmp_path / "train.tar", samples([0, 1]))
    shard(tmp_path / "val.tar", samples([0, 1]))
    shard(tmp_path / "test.tar", broken)
    with pytest.raises(UserError, match=r"a/7.jpg in .*test.tar is damaged and can't be read"):
        load_shards(tmp_path).test.images[0]


def everything(path: Path) -> tuple[int, str]:
    """How many images there are, and the notes."""
    splits = load_shards(path)
    return sum(map(len, (splits.train, splits.validation, splits.test))), "\n".join(splits.notes)


def test_keys_may_have_dots(tmp_path: Path) -> None:
    plain = samples([0, 1] * 5)
    dotted = [(f"22.{name}", content) for name, content in samples([0, 1] * 5, first=10)]
    count, notes = everything(shard(tmp_path / "half.tar", [*plain, *dotted]))
    assert count == 20
    assert "Keys of 10 images have dots (such as 22.0010)" in notes
    assert everything(shard(tmp_path / "all.tar", dotted))[0] == 10
    splits = load_shards(tmp_path / "all.tar")
    for split in (splits.train, splits.validation, splits.test):
        assert [shade % 2 for shade in shades(split.images)] == split.labels.tolist()


def test_what_is_not_used_of_a_shard_is_counted(tmp_path: Path) -> None:
    more = [
        ("0000.mask.png", picture(0)),
        ("0000.boxes.json", b'{"label": [1, 2]}'),
        ("0000.txt", b"a caption"),
        ("._0000.png", b"what macOS leaves behind"),
        ("__MACOSX/0001.png", picture(0)),
    ]
    path = shard(tmp_path / "train.tar", [*samples([0, 1] * 5), *more])
    with tarfile.open(path, "a") as tar:
        for name, kind in {"a.png": tarfile.SYMTYPE, "b.png": tarfile.LNKTYPE, "c.png": tarfile.CHRTYPE}.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../../etc/passwd"
            tar.addfile(member)
    count, notes = everything(path)
    assert count == 10
    for text in ("2 with a further dot", "1 .txt", "1 hidden", "1 of the system", "2 link", "1 special file"):
        assert text in notes


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (("0.json", b'{"label": 0.37}'), "has the label 0.37; it must be the number or the name of one class"),
        (("0.cls", b"9" * 5000), "has a label of 5,000 characters"),
        (("0.cls", b"1" * (2**20 + 1)), "is not a label, for it has 1,048,577 bytes"),
        (("0.json", b"[" * 100_000), "is damaged .*too deep"),
        (("0.json", b'{"label": ' + b"9" * 5000 + b"}"), "is damaged"),
    ],
)
def test_labels_are_bounded(content: Member, sentence: str, tmp_path: Path) -> None:
    shard(tmp_path / "train.tar", [("0.jpg", picture(0, "jpeg")), content])
    with pytest.raises(UserError, match=sentence):
        load_shards(tmp_path)


def test_labels_of_several_classes_and_measurements_are_refused(tmp_path: Path) -> None:
    shard(tmp_path / "train.tar", samples(["cat|dog", "cat", "dog"] * 3))
    with pytest.raises(UserError, match="seem to hold several classes"):
        load_shards(tmp_path)
    shard(tmp_path / "train.tar", samples(["0.5", "1", "1.25"] * 3))
    with pytest.raises(UserError, match="measurements are not supported"):
        load_shards(tmp_path)


def test_headers_in_headers_and_of_any_size_are_damage(tmp_path: Path) -> None:
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 1
    (tmp_path / "deep.tar").write_bytes((long_name.tobuf() + bytes(512)) * 5000)
    long_name.size = 2**33
    with (tmp_path / "large.tar").open("wb") as file:
        file.write(long_name.tobuf())
        file.truncate(2**33 + 4096)  # sparse
    for name in ("deep.tar", "large.tar"):
        with pytest.raises(UserError, match=rf"{name} can't be read as a tar file"):
            load_shards(tmp_path / name)


def test_hidden_shards_are_not_read(tmp_path: Path) -> None:
    shard(tmp_path / "birds.tar", samples([0, 1] * 5))
    (tmp_path / "._birds.tar").write_bytes(b"what macOS leaves behind")
    assert everything(tmp_path)[0] == 10
