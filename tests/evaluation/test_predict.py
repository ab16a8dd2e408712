"""The verb `predict`."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from attention_transfer import Run, UserError, load_run, predict, pretrain, train
from attention_transfer.data import digits
from attention_transfer.evaluation import overlay
from attention_transfer.evaluation.predictions import Prediction, show
from attention_transfer.training import Recipe
from attention_transfer.viewing.overlays import Pixels, overlaid
from attention_transfer.vit import save_vit


@pytest.fixture(scope="module")
def run(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("run") / "run"
    return train("copy", teacher=teacher, shots=2, recipe=Recipe(epochs=2, validate_every=1), out=str(out))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "digit.png"
    digits().test.images[0].save(path)
    return str(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with five digits in two folders, a damaged image, and what is not looked at."""
    folder = tmp_path / "photos"
    for name in ("a/1.png", "a/3.png", "b/2.PNG", "b/deep/4.jpg", "0.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digits().test.images[int(path.stem)].save(path)
    (folder / "a" / "half.png").write_bytes((folder / "a" / "1.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes((folder / "0.png").read_bytes())
    return folder


def names(folder: Path) -> list[str]:
    """What lies in a folder, hidden or not."""
    return sorted(entry.name for entry in folder.iterdir())


FOUND = ["0.png", "a/1.png", "a/3.png", "b/2.PNG", "b/deep/4.jpg"]


def test_a_prediction_is_the_softmax_of_the_network(run: Run, picture: str) -> None:
    (prediction,) = predict(str(run.path), [picture], top=10)
    pixels = torch.from_numpy(np.asarray(digits().test.images[0]).astype(np.float32) / 255)
    with torch.no_grad():
        expected = load_run(run.path).network((pixels[None, None] - 0.5) / 0.5).softmax(dim=-1)[0]
    assert prediction.classes[0] == str(int(expected.argmax()))
    assert sorted(prediction.probabilities, reverse=True) == list(prediction.probabilities)
    np.testing.assert_allclose(prediction.probabilities, expected.sort(descending=True).values, atol=1e-5)


def test_predictions_are_written_as_csv_and_json(run: Run, picture: str, tmp_path: Path) -> None:
    (prediction,) = predict(str(run.path), [picture], top=2, out=str(tmp_path / "p.csv"))
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(prediction.classes)
    predict(str(run.path), [picture, picture], top=2, out=str(tmp_path / "p.json"))
    content = json.loads((tmp_path / "p.json").read_text())
    assert [entry["classes"] for entry in content] == [list(prediction.classes)] * 2


def test_every_unreadable_image_is_named_and_nothing_written(run: Run, picture: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    damaged = tmp_path / "half.png"
    damaged.write_bytes(Path(picture).read_bytes()[:60])
    with pytest.raises(UserError) as caught:
        predict(
            str(run.path),
            [picture, str(tmp_path / "text.png"), str(damaged), str(tmp_path / "gone.png")],
            out=str(tmp_path / "p.csv"),
        )
    for name in ("text.png", "half.png", "gone.png"):
        assert name in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3
    assert not (tmp_path / "p.csv").exists()


def test_an_output_that_exists_is_kept(run: Run, picture: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        predict(str(run.path), [picture], out=str(tmp_path / "p.csv"))
    assert (tmp_path / "p.csv").read_text() == "mine"
    predict(str(run.path), [picture], out=str(tmp_path / "p.csv"), overwrite=True)
    assert (tmp_path / "p.csv").read_text() != "mine"


def test_a_folder_is_searched_and_what_is_damaged_is_left_out_and_listed(
    run: Run, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "attention_transfer"):
        found = predict(str(run.path), [str(photos)], out=str(tmp_path / "p.json"))
    assert [os.path.relpath(p.image, photos) for p in found] == FOUND
    assert "1 of 6 images were left out" in caplog.text
    assert "half.png is damaged" in caplog.text
    assert len(json.loads((tmp_path / "p.json").read_text())) == 5


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("a/*.png", ["a/1.png", "a/3.png"]), ("**/*.jpg", ["b/deep/4.jpg"]), ("?.png", ["0.png"])],
)
def test_a_pattern_stands_for_the_files_that_match_it(
    run: Run, photos: Path, pattern: str, expected: list[str]
) -> None:
    found = predict(str(run.path), [str(photos / pattern)])
    assert [os.path.relpath(p.image, photos) for p in found] == expected


def test_a_file_that_is_named_like_a_pattern_is_that_file(run: Run, picture: str, tmp_path: Path) -> None:
    odd = tmp_path / "digit[1].png"
    shutil.copy(picture, odd)
    assert [p.image for p in predict(str(run.path), [str(odd)])] == [str(odd)]


def test_a_file_of_two_folders_is_predicted_once(run: Run, photos: Path) -> None:
    found = predict(str(run.path), [str(photos / "a"), str(photos), str(photos / "a" / "*.png")])
    assert len({p.image for p in found}) == len(found) == 5


def test_batches_change_nothing_and_are_all_that_is_in_memory(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict(str(run.path), [str(photos)], top=10)
    sizes: list[int] = []
    forward = nn.Module.__call__

    def noted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if type(module).__name__ == "Classifier":
            sizes.append(len(args[0]))
        return forward(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", noted)
    in_twos = predict(str(run.path), [str(photos)], top=10, batch_size=2)
    assert max(sizes) == 2
    assert sum(sizes) == 5
    assert [p.image for p in in_twos] == [p.image for p in whole]
    for one, other in zip(in_twos, whole, strict=True):
        assert one.classes == other.classes
        assert one.probabilities == pytest.approx(other.probabilities, abs=2e-6)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_every_probability_is_given_where_all_are_asked_for(
    run: Run, picture: str, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"p{suffix}"
    (prediction,) = predict(str(run.path), [picture], top=1, probabilities="all", out=str(out))
    assert prediction.every is not None
    assert sum(prediction.every) == pytest.approx(1, abs=1e-5)
    assert prediction.every[int(prediction.classes[0])] == max(prediction.every) == prediction.probabilities[0]
    if suffix == ".json":
        (row,) = json.loads(out.read_text())
        assert row["every"] == {str(i): p for i, p in enumerate(prediction.every)}
    else:
        (row,) = csv.DictReader(out.read_text().splitlines())
        assert row["class"] == prediction.classes[0]
        assert [float(row[f"probability of {i}"]) for i in range(10)] == list(prediction.every)


def test_a_model_of_two_classes_gives_both_by_default(
    tiny_vit: Callable[..., Any], picture: str, tmp_path: Path
) -> None:
    save_vit(tiny_vit(num_classes=2), tmp_path / "model", labels=["cat", "dog"])
    (prediction,) = predict(str(tmp_path / "model"), [picture])
    assert sorted(prediction.classes) == ["cat", "dog"]


def test_a_model_without_names_gives_numbers(tiny_vit: Callable[..., Any], picture: str, tmp_path: Path) -> None:
    save_vit(tiny_vit(), tmp_path / "model")
    (prediction,) = predict(str(tmp_path / "model"), [picture], top=5)
    assert sorted(prediction.classes) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("class_token", [True, False])
def test_an_overlay_shows_the_attention_of_the_last_block(
    tiny_vit: Callable[..., Any],
    unfused_maps: Callable[[nn.Module, Tensor], list[Tensor]],
    tmp_path: Path,
    class_token: bool,
) -> None:
    model = tiny_vit(class_token=class_token, global_pool="token" if class_token else "avg")
    save_vit(model, tmp_path / "model")
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    (prediction,) = predict(str(tmp_path / "model"), [str(tmp_path / "black.png")], overlay=str(tmp_path / "drawn"))
    assert prediction.overlay == str(tmp_path / "drawn" / "black.png")
    drawn = np.asarray(Image.open(prediction.overlay))
    assert drawn.shape == (224, 224, 3)
    mean, std = (torch.tensor(model.pretrained_cfg[name]).mean() for name in ("mean", "std"))
    (maps,) = unfused_maps(model, torch.full((1, 1, 8, 8), float(-mean / std)))[-1]
    # Without a class token it is the mean query's row, which is the softmax of the mean of the rows' logits.
    rows = maps[:, 0, 1:] if class_token else maps.log().mean(dim=1).softmax(dim=-1)
    patches = rows.mean(dim=0)
    scaled = (patches / patches.quantile(0.99)).clamp_max(1).reshape(2, 2).numpy()
    strength = 0.4 + 0.45 * np.sqrt(scaled)[..., None]
    expected = strength * 255 * mpl.colormaps["inferno"](scaled)[..., :3]
    np.testing.assert_allclose(drawn[56::112, 56::112], expected, atol=2)  # the middles of the patches


def test_an_overlay_lies_on_the_image_at_its_own_size(tiny_vit: Callable[..., Any], tmp_path: Path) -> None:
    """What the centre crop left is in colours, and the margins are shaded greys."""
    save_vit(tiny_vit(img_size=64, patch_size=16, in_chans=3), tmp_path / "model")
    Image.effect_noise((500, 301), 60).save(tmp_path / "wide.png")
    (prediction,) = predict(str(tmp_path / "model"), [str(tmp_path / "wide.png")], overlay=str(tmp_path / "drawn"))
    assert prediction.overlay is not None
    drawn = np.asarray(Image.open(prediction.overlay)).astype(int)
    assert drawn.shape == (301, 500, 3)
    coloured = np.ptp(drawn, axis=-1) > 0
    kept = 301 * 64 / 73  # a side of 64 of 73 pixels
    for axis, length in ((0, 500), (1, 301)):
        places = np.flatnonzero(coloured.mean(axis=axis) > 0.1)
        assert places[[0, -1]] == pytest.approx([(length - kept) / 2, (length + kept) / 2], abs=5)  # a pixel of the 73


def test_a_copied_students_overlay_is_its_teachers(run: Run, teacher: str, picture: str, tmp_path: Path) -> None:
    drawn = []
    for name, model in (("student", str(run.path)), ("teacher", teacher)):
        (prediction,) = predict(model, [picture], overlay=str(tmp_path / name))
        assert prediction.overlay is not None
        drawn.append(np.asarray(Image.open(prediction.overlay)).astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1  # up to the rounding of two kernels


def test_overlays_keep_their_images_places_and_no_two_share_one(run: Run, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "a" / "1.png", photos / "a" / "1.bmp")
    found = predict(str(run.path), [str(photos)], overlay=str(tmp_path / "drawn"))
    drawn = sorted(str(file.relative_to(tmp_path / "drawn")) for file in (tmp_path / "drawn").rglob("*.png"))
    assert drawn == ["0.png", "a/1-2.png", "a/1.png", "a/3.png", "b/2.png", "b/deep/4.png"]
    assert {p.overlay for p in found} == {str(tmp_path / "drawn" / name) for name in drawn}


def test_pictures_that_are_there_are_kept(run: Run, picture: str, tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "mine.png").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        predict(str(run.path), [picture], overlay=str(tmp_path / "drawn"))
    predict(str(run.path), [picture], overlay=str(tmp_path / "drawn"), overwrite=True)
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == ["digit.png", "mine.png"]


def test_pictures_are_replaced_together_or_not_at_all(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = tmp_path / "drawn"
    predict(str(run.path), [str(photos / "0.png"), str(photos)], overlay=str(drawn))
    (drawn / "a" / "3.png").unlink()
    (drawn / "mine.png").write_text("mine")
    before = {name: (drawn / name).stat().st_ino for name in ("0.png", "a/1.png")}
    seen: list[Any] = []

    def fails_at_the_third(*args: Any) -> Pixels:
        seen.append(args)
        if len(seen) == 3:
            raise OSError(errno.ENOSPC, "No space left")
        return overlaid(*args)

    with monkeypatch.context() as patch:
        patch.setattr(overlay, "overlaid", fails_at_the_third)
        with pytest.raises(OSError, match="No space left"):
            predict(str(run.path), [str(photos)], overlay=str(drawn), overwrite=True)
    assert {name: (drawn / name).stat().st_ino for name in before} == before
    assert names(drawn / "a") == ["1.png"]
    predict(str(run.path), [str(photos)], overlay=str(drawn), overwrite=True)
    assert all((drawn / name).stat().st_ino != number for name, number in before.items())
    assert names(drawn / "a") == ["1.png", "3.png"]
    assert (drawn / "mine.png").read_text() == "mine"


def test_only_pictures_that_this_verb_drew_are_replaced(run: Run, photos: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    shutil.copytree(photos, drawn)  # the same names, but no image that is read
    before = {file: file.read_bytes() for file in drawn.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"drawn/0\.png was not drawn by this verb and is not replaced"):
        predict(str(run.path), [str(photos)], overlay=str(drawn), overwrite=True)
    assert {file: file.read_bytes() for file in drawn.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("images", "places"),
    [
        (["photos"], {"overlay": "photos"}),
        (["photos"], {"overlay": "photos/looks"}),
        (["photos"], {"overlay": "link"}),
        (["photos/0.png"], {"overlay": "photos"}),
        (["photos/*.png"], {"overlay": "photos"}),
        (["links"], {"overlay": "photos/a"}),
        (["photos"], {"out": "photos/labels.csv"}),
        (["photos/0.png"], {"out": "RUN/summary.json"}),
    ],
)
def test_nothing_is_written_where_something_is_read(
    images: list[str], places: dict[str, str], run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to(photos)
    Path("links").mkdir()
    Path("links/1.png").symlink_to(photos / "a" / "1.png")
    (photos / "labels.csv").write_text("mine")
    before = {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()}
    given = {name: place.replace("RUN", str(run.path)) for name, place in places.items()}
    with pytest.raises(UserError, match=r"choose another"):
        predict(str(run.path), images, overwrite=True, **given)  # type: ignore[arg-type]
    assert {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()} == before


def test_pictures_stay_and_the_command_can_be_given_again_where_the_table_could_not_be_written(
    run: Run, picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: dict[str, Any] = {"overlay": str(tmp_path / "drawn"), "out": str(tmp_path / "p.csv")}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left") as caught:
            predict(str(run.path), [picture], **places)
    assert caught.value.filename == places["out"]
    assert Image.open(tmp_path / "drawn" / "digit.png").format == "PNG"
    predict(str(run.path), [picture], **places)
    assert (tmp_path / "p.csv").exists()
    assert names(tmp_path / "drawn") == ["digit.png"]
    with pytest.raises(UserError, match="is not empty"):
        predict(str(run.path), [picture], overlay=places["overlay"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": []}, "no images given"),
        ({"images": ["FOLDER"]}, "holds no images"),
        ({"images": ["FOLDER/*.png"]}, r"no file matches .*\*\.png"),
        ({"images": ["FOLDER", "FOLDER/*.png"]}, r"holds no images[^\n]*\nno file matches"),
        ({"images": ["FOLDER/*.png", "gone.png"]}, r"no file matches [^\n]*\nthere is no image gone\.png; check"),
        ({"images": ["FOLDER/../empty.png"]}, r"empty\.png is empty$"),
        ({"run": "no/such/run"}, "there is no run no/such/run"),
        ({"top": 11}, "top is 11; choose from 1 to the 10 classes"),
        ({"top": 0}, "top is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"probabilities": "every"}, "probabilities is 'every'"),
        ({"overlay": __file__}, "is a file"),
        ({"overlay": f"{__file__}/x"}, r"x can't be made: .*test_predict\.py is a file"),
        ({"out": "FOLDER/full.csv", "overwrite": True}, r"full\.csv is a folder"),
    ],
)
def test_each_mistake_has_its_sentence(
    run: Run, picture: str, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (tmp_path / "empty.png").write_bytes(b"")
    given: dict[str, Any] = {"run": str(run.path), "images": [picture], **options}
    given["images"] = [name.replace("FOLDER", str(folder)) for name in given["images"]]
    if "out" in given:
        given["out"] = given["out"].replace("FOLDER", str(tmp_path))
        (tmp_path / "full.csv").mkdir()
    with pytest.raises(UserError, match=message):
        predict(**given)


def test_a_place_without_permission_is_refused_before_the_work(
    run: Run, picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # as the super-user everything is permitted
    with pytest.raises(UserError, match=r"p\.csv can't be written: no permission[^\n]*\n[^\n]*looks can't be written"):
        predict(str(run.path), [picture], out=str(tmp_path / "p.csv"), overlay=str(tmp_path / "looks"))
    assert not (tmp_path / "looks").exists()


def test_a_picture_that_fails_leaves_nothing_behind(
    run: Run, picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Image.Image, place: Path, **_: str) -> None:
        place.write_bytes(b"half")
        raise OSError(28, "No space left")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left") as caught:
        predict(str(run.path), [picture], overlay=str(tmp_path / "looks"))
    assert caught.value.filename == str(tmp_path / "looks" / "digit.png")
    assert not (tmp_path / "looks").exists()


def test_brackets_in_names_are_no_styles(
    run: Run, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "[red]"
    folder.mkdir()
    shutil.copy(picture, folder / "[x].png")
    (prediction,) = predict(str(run.path), [str(folder)])
    show([replace(prediction, image="[red]/[x].png", classes=("[/]", "[b]", "c"))], None)
    shown = capsys.readouterr().err
    for name in ("[red]/[x].png", "[/]  ", "[b]  "):
        assert name in shown


@pytest.mark.parametrize(
    ("images", "title", "rows"),
    [
        (["a/1.png", "a/2.png"], None, ["a/1.png", "a/2.png"]),
        ([f"{'a' * 50}/b/1.png", f"{'a' * 50}/c/1.png"], f"in {'a' * 50}", [" b/1.png", " c/1.png"]),
        ([f"/{'a' * 30}/b/1.png"], None, [f"/{'a' * 30}/b/1.png"]),
        ([f"{'a' * 50}.png", "b/1.png"], None, ["aaaa.png", "b/1.png"]),
        ([f"/{'a' * 50}/1.png", "b/1.png"], None, ["1.png", "b/1.png"]),
    ],
)
def test_a_long_folder_is_named_once(
    images: list[str], title: str | None, rows: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    show([Prediction(image, ("x",), (1.0,)) for image in images], None)
    shown = capsys.readouterr().err
    first = shown.splitlines()[0].strip()
    assert first == title if title else not first.startswith("in ")
    for row in rows:
        assert row in shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(run: Run, picture: str) -> None:
    with pytest.raises(UserError, match="cuda"):
        predict(str(run.path), [picture], device="cuda")


def test_a_folder_of_damaged_images_alone_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "one.png").write_text("no image")
    with pytest.raises(UserError, match=r"none of the 1 images can be read; the first: .*one.png"):
        predict(str(run.path), [str(tmp_path / "bad")], out=str(tmp_path / "p.csv"))
    assert not (tmp_path / "p.csv").exists()


def test_a_model_without_classes_predicts_nothing(
    tiny_vit: Callable[..., Any], teacher: str, picture: str, tmp_path: Path
) -> None:
    save_vit(tiny_vit(num_classes=0), tmp_path / "model")
    with pytest.raises(UserError, match="has no classification layer"):
        predict(str(tmp_path / "model"), [picture])
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="holds an ONNX model"):
        predict(str(tmp_path / "onnx"), [picture])
    made = pretrain(epochs=1, out=str(tmp_path / "teacher"))
    with pytest.raises(UserError, match="a pre-trained teacher, not a classifier"):
        predict(str(made.path), [picture])


@pytest.mark.parametrize(("top", "out"), [(0, None), (11, None), (1, "p.txt"), (1, "no/such/folder/p.csv")])
def test_impossible_requests_are_refused(run: Run, picture: str, top: int, out: str | None) -> None:
    with pytest.raises(UserError):
        predict(str(run.path), [picture], top=top, out=out)


def test_a_copied_student_is_complete_by_itself_and_says_when_its_teacher_is_gone(run: Run, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run.path, moved)
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace("teacher: ", "teacher: /nowhere"))
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_run(moved).network(images), load_run(run.path).network(images))
    shutil.rmtree(moved / "teacher")
    with pytest.raises(UserError, match="the teacher is gone"):
        load_run(moved)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        load_run(tmp_path)
