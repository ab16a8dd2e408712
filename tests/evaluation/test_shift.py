"""Shifted images: classes of published sets, accuracy on the same classes, and differences of two models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from attention_transfer import UserError, cli, corrupt, evaluate, load_vit
from attention_transfer.data import DATA, ArrayImages, Split, Splits, digits, eval_transform
from attention_transfer.evaluation import mean_difference
from attention_transfer.evaluation.shift import Judged, ShiftScore, corruption_errors, measure_shifts
from attention_transfer.evaluation.shifted_images import ShiftedSet, imagenet_subset, imagenet_wnids, shifted_sets
from attention_transfer.vit import describe, save_vit

Build = Callable[..., Any]
WNIDS = imagenet_wnids()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Splits:
    whole = digits()

    def part(split: Split, count: int) -> Split:
        return split.take(np.flatnonzero(split.labels < 6)[:count])

    made = Splits("small", whole.classes[:6], part(whole.train, 60), part(whole.validation, 30), part(whole.test, 40))
    monkeypatch.setitem(DATA, "small", lambda: made)
    return made


def imagenet(name: str = "imagenet", classes: Sequence[str] = WNIDS) -> Splits:
    split = Split(ArrayImages(np.zeros((1, 2, 2, 3), dtype=np.uint8)), np.zeros(1, dtype=np.int64))
    return Splits(name, tuple(classes), split, split, split)


def folders(path: Path, names: Sequence[str], count: int = 1) -> Path:
    for name in names:
        (path / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (4, 4)).save(path / name / f"{index}.png")
    return path


def saved(model: Any, path: Path) -> str:
    save_vit(model, path)
    return str(path)


def test_published_subsets_are_those_of_timm() -> None:
    for name in ("ImageNet-A", "ImageNet-R"):
        assert len(imagenet_subset(name)) == 200
        assert imagenet_subset(name) < {*WNIDS}
    assert "n01498041" in imagenet_subset("ImageNet-A")  # stingray; not tench
    assert "n01440764" not in imagenet_subset("ImageNet-A")


@pytest.mark.parametrize("title", ["ImageNet-A", "ImageNet-R"])
def test_a_published_set_is_known_by_its_classes(title: str, tmp_path: Path) -> None:
    wnids = sorted(imagenet_subset(title))
    (found,) = shifted_sets([str(folders(tmp_path / "any", wnids))], imagenet(), "test")
    assert found.name == title
    assert [WNIDS[label] for label in found.split.labels] == wnids
    with pytest.raises(UserError, match=f"has 199 of the 200 classes of {title}; unpack its archive again"):
        shifted_sets([str(folders(tmp_path / title.lower(), wnids[1:]))], imagenet(), "test")


def test_imagenet_v2_has_numbers_and_words_do_not_matter(tmp_path: Path) -> None:
    place = folders(tmp_path / "imagenetv2-matched-frequency-format-val", [str(n) for n in range(1000)])
    words = [f"word {n}" for n in range(1000)]
    (found,) = shifted_sets([str(place)], imagenet(classes=words), "test")
    names = [path.parent.name for path in found.split.images.paths]  # type: ignore[attr-defined]
    assert [str(label) for label in found.split.labels] == names
    sketch = folders(tmp_path / "sketch", WNIDS[5:8])
    (found,) = shifted_sets([str(sketch)], imagenet(classes=words), "test")
    assert found.classes.tolist() == [5, 6, 7]
    with pytest.raises(UserError, match=r"3 of the 3 classes of sketch are not among those of flowers"):
        shifted_sets([str(sketch)], imagenet("flowers", words), "test")


def test_imagenet_c_is_a_tree(tmp_path: Path) -> None:
    for group, kind in (("weather", "fog"), ("noise", "shot_noise")):
        for severity in ("1", "3"):
            folders(tmp_path / "c" / group / kind / severity, WNIDS[:2])
    found = shifted_sets([str(tmp_path / "c")], imagenet(), "test")
    assert [(each.corruption, each.severity) for each in found] == [
        *(("shot_noise", s) for s in (1, 3)),
        *(("fog", s) for s in (1, 3)),
    ]
    (one, three) = shifted_sets([str(tmp_path / "c" / "weather" / "fog")], imagenet(), "test")
    assert (one.severity, three.severity) == (1, 3)


def test_a_folder_with_splits_gives_the_one_that_is_asked_for(tmp_path: Path) -> None:
    for part in ("train", "val"):
        folders(tmp_path / "d" / part, WNIDS[:3], {"train": 1, "val": 2}[part])
    (found,) = shifted_sets([str(tmp_path / "d")], imagenet(), "validation")
    assert len(found.split) == 6
    with pytest.raises(UserError, match="has no test split, but train and validation; choose one with --split"):
        shifted_sets([str(tmp_path / "d")], imagenet(), "test")


def test_what_can_not_be_a_shifted_set(tmp_path: Path) -> None:
    (tmp_path / "empty" / WNIDS[0]).mkdir(parents=True)
    folders(tmp_path / "other", ["cats", WNIDS[0]])
    with pytest.raises(UserError) as error:
        shifted_sets([str(tmp_path / name) for name in ("empty", "other", "nowhere")], imagenet(), "test")
    empty, other, nowhere = str(error.value).splitlines()
    assert empty == "empty holds no images; fill it, or leave it out of --shift"
    assert "1 of the 2 classes of other are not among those of imagenet ('cats')" in other
    assert "there is no folder" in nowhere


def judged(name: str, own: NDArray[np.float64], there: NDArray[np.float64]) -> Judged:
    return Judged(name, np.arange(own.shape[1]), own, lambda _: there)


def test_of_fewer_classes_only_these_compete() -> None:
    """Three classes, a set with two: the third one's logit is the largest everywhere, and counts for nothing."""
    labels = np.array([0, 0, 1, 1, 2, 2])
    own = np.array([[2, 1, 9], [1, 2, 9], [1, 2, 9], [0, 2, 9], [0, 0, 9], [9, 0, 0]], dtype=float)
    there = np.array([[2, 1, 9], [1, 2, 9], [2, 1, 9], [1, 2, 9]], dtype=float)
    split = Split(ArrayImages(np.zeros((4, 2, 2), dtype=np.uint8)), np.array([0, 0, 1, 1]))
    found = measure_shifts([judged("a", own, there)], labels, [ShiftedSet("s", split, np.array([0, 1]))])
    (score,) = found.scores
    assert (score.top1.value, score.unshifted.value, score.drop.value) == (0.5, 0.75, 0.25)
    whole = Split(split.images, np.array([0, 1, 2, 2]))
    (score,) = measure_shifts([judged("a", own, there)], labels, [ShiftedSet("s", whole, np.arange(3))]).scores
    assert score.top1.value == 0.5
    assert score.unshifted.value == pytest.approx(1 / 6)


def test_two_models_raw_and_beyond_what_they_differ_unshifted() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 400)

    def logits(accuracy: float) -> NDArray[np.float64]:
        right = np.arange(400) < round(accuracy * 400)
        return np.where(np.eye(2)[labels] == right[:, None], 1.0, 0.0)

    split = Split(ArrayImages(np.zeros((400, 2, 2), dtype=np.uint8)), labels)
    models = [
        judged("a", logits(0.9), logits(0.6)),
        judged("b", logits(0.8), logits(0.55)),
        judged("c", logits(0.895), logits(0.4)),
    ]
    found = measure_shifts(models, labels, [ShiftedSet("s", split, np.arange(2))])
    ab, ac, _ = found.differences
    assert (ab.models, ab.matched, ac.models, ac.matched) == (("a", "b"), False, ("a", "c"), True)
    assert ab.top1.difference.value == pytest.approx(0.05)
    assert ab.unshifted.difference.value == pytest.approx(0.1)
    assert ab.beyond.value == pytest.approx(-0.05)
    assert ac.beyond.value == pytest.approx(0.195)
    assert ac.beyond.low is not None and ac.beyond.high is not None
    assert ac.beyond.low > 0.1


def test_the_difference_of_two_samples_has_the_interval_of_scipy() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(1, 1, 60), draw.normal(0, 2, 30)
    found = mean_difference(a, b)
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert found.low == pytest.approx(welch.low, abs=0.1)
    assert found.high == pytest.approx(welch.high, abs=0.1)
    assert mean_difference([1, 1], [0, 0]).low is None
    with pytest.raises(UserError, match="nothing to average"):
        mean_difference([], [1])


def test_errors_over_corruptions() -> None:
    """By hand: fog 0.5 and 0.7, snow 0.2; the speckle noise of the extra set does not count."""
    labels = np.zeros(10, dtype=np.int64)

    def there(right: Sequence[int]) -> list[Judged]:
        made = []
        for name, n in zip("ab", right, strict=True):
            logits = np.where(np.arange(10)[:, None] < n, [1.0, 0.0], [0.0, 1.0])
            made.append(judged(name, logits, logits))
        return made

    scores: list[ShiftScore] = []
    for kind, severity, right in (
        ("fog", 1, (5, 10)),
        ("fog", 2, (3, 6)),
        ("snow", 1, (8, 9)),
        ("speckle_noise", 1, (0, 0)),
    ):
        split = Split(ArrayImages(np.zeros((10, 2, 2), dtype=np.uint8)), labels)
        scores += measure_shifts(there(right), labels, [ShiftedSet(kind, split, np.arange(2), kind, severity)]).scores
    a, b = corruption_errors(scores)
    assert (a.corruptions, a.mce) == (2, 1.0)
    assert a.error == pytest.approx((0.6 + 0.2) / 2)
    assert b.error == pytest.approx((0.2 + 0.1) / 2)
    assert b.mce == pytest.approx((0.2 / 0.6 + 0.1 / 0.2) / 2)


def test_written_once_and_measured(tiny_vit: Build, small: Splits, tmp_path: Path, capsys: Any) -> None:
    made = corrupt("small", str(tmp_path / "c"), kinds=["contrast", "fog"], severities=[1, 5], limit=12)
    assert (made.images, made.files, made.kinds, made.severities) == (12, 48, ("contrast", "fog"), (1, 5))
    models = [saved(tiny_vit(seed, num_classes=6), tmp_path / str(seed)) for seed in (0, 1)]
    found = evaluate(models, data="small", shift=str(tmp_path / "c"), limit=12, out=str(tmp_path / "scores.json"))
    assert found.shifts is not None
    assert len(found.shifts.scores) == 8
    score = next(s for s in found.shifts.scores if (s.model, s.corruption, s.severity) == (models[1], "contrast", 5))
    model = load_vit(models[1])
    pixels = eval_transform(describe(model))
    right = [
        int(model(pixels(Image.open(file))[None]).argmax()) == small.classes.index(file.parent.name)
        for file in sorted((tmp_path / "c" / "contrast" / "5").rglob("*.jpg"))
    ]
    assert score.top1.value == np.mean(right)
    assert json.loads((tmp_path / "scores.json").read_text())["shifts"]["corruption"][0]["corruptions"] == 2
    assert "mean error" in capsys.readouterr().err


def test_the_same_settings_write_the_same_images(small: Splits, tmp_path: Path) -> None:
    for name in "ab":
        cli.run(
            ["corrupt", "small", str(tmp_path / name), "--kinds", "[snow,frost]", "--severities", "2", "--limit", "3"]
        )
    written = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(written) == 7
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in written)
    with pytest.raises(UserError, match="exists; choose another folder with --out, or replace it with --overwrite"):
        corrupt("small", str(tmp_path / "a"))
    (tmp_path / "a" / "note.txt").write_text("mine")
    corrupt("small", str(tmp_path / "a"), kinds="fog", severities=1, limit=2, overwrite=True)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"fog", "corrupt.json", "note.txt"}
    (tmp_path / "a" / "fog" / "mine.jpg").write_text("mine")
    with pytest.raises(UserError, match=r"mine\.jpg was not written by `corrupt`, and would be removed"):
        corrupt("small", str(tmp_path / "a"), kinds="fog", severities=1, limit=2, overwrite=True)


def test_objects_are_put_on_other_backgrounds(tmp_path: Path) -> None:
    pictures, masks = tmp_path / "pictures", tmp_path / "masks"
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[5:10, 10:20] = 255
    for part in ("train", "val", "test"):
        for name in ("cats", "dogs"):
            for place in (pictures, masks):
                (place / part / name).mkdir(parents=True)
            Image.new("RGB", (30, 20), (200, 10, 10)).save(pictures / part / name / "0.png")
            Image.fromarray(mask).save(masks / part / name / "0.png")
    (tmp_path / "green").mkdir()
    Image.new("RGB", (50, 50), (0, 255, 0)).save(tmp_path / "green" / "grass.png")
    corrupt(str(pictures), str(tmp_path / "out"), backgrounds=str(tmp_path / "green"), masks=str(masks))
    pixels = np.asarray(Image.open(tmp_path / "out" / "cats" / "000000.png"))
    assert (pixels[mask == 255] == (200, 10, 10)).all()
    assert (pixels[mask == 0] == (0, 255, 0)).all()
    with pytest.raises(UserError, match="has no masks to cut its objects out by"):
        corrupt(str(pictures), str(tmp_path / "two"), backgrounds=str(tmp_path / "green"))
    (masks / "test" / "dogs" / "0.png").unlink()
    with pytest.raises(UserError, match="1 of 2 images have no mask of the same name"):
        corrupt(str(pictures), str(tmp_path / "two"), backgrounds=str(tmp_path / "green"), masks=str(masks))
    assert not (tmp_path / "two").exists()


def test_wrong_settings(small: Splits, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        corrupt("small", str(tmp_path / "c"), severities=6, limit=0, masks="m")
    assert len(str(error.value).splitlines()) == 3
    with pytest.raises(UserError, match="there is no corruption 'frog'; did you mean 'fog'"):
        corrupt("small", str(tmp_path / "c"), kinds="frog")
    with pytest.raises(UserError, match="backgrounds take the place of corruptions"):
        corrupt("small", str(tmp_path / "c"), kinds="fog", backgrounds="b")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty, and `corrupt` did not write it"):
        corrupt("small", str(tmp_path / "full"), overwrite=True)
