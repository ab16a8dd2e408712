"""Pre-training that is judged by nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attention_transfer import UserError, evaluate, pretrain
from attention_transfer.data import DATA, Normalise, Split, Splits, digits, eval_pixels, eval_transform
from attention_transfer.training import Recipe, Run, read_metrics
from attention_transfer.training.neighbours import JudgedAutoencoder
from attention_transfer.vit import describe

RECIPE = Recipe(epochs=4, batch_size=64, lr=2e-3, validate_every=2, label_smoothing=0.0, workers=0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Splits:
    """Few digits, as an embedded data set."""
    whole = digits()

    def part(split: Split, count: int) -> Split:
        return split.take(np.arange(count))

    made = Splits("small", whole.classes, part(whole.train, 400), part(whole.validation, 150), part(whole.test, 10))
    monkeypatch.setitem(DATA, "small", lambda: made)
    return made


def pretrained(out: Path, **settings: Any) -> Run:
    return pretrain(data="small", out=str(out), **{"recipe": RECIPE, **settings})


def rows_of(run: Run) -> list[dict[str, float]]:
    rows = read_metrics(run.path / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def features(model: Any, split: Split) -> Any:
    images = split.with_transform(eval_transform(describe(model))).materialised().tensors[0]
    with torch.no_grad():
        found = model.forward_head(model.forward_features(images), pre_logits=True).double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_neighbours_vote_as_in_plain_loops(small: Splits, tiny_vit: Callable[..., Any]) -> None:
    encoder = tiny_vit()
    spec = describe(encoder)
    plain = {name: part.with_transform(eval_pixels(spec)) for name, part in small.parts.items()}
    judged = JudgedAutoencoder(encoder, plain["train"], workers=0, mask_ratio=0.5).eval()
    found = judged.watch(plain["validation"], None, name="test", batch_size=64)(Normalise(spec))
    train, held_out = features(encoder, small.train), features(encoder, small.validation)
    right = 0
    for image, label in zip(held_out, small.validation.labels, strict=True):
        cosines = (train @ image).tolist()
        votes = [0.0] * len(small.classes)
        for index in sorted(range(len(train)), key=lambda i: -cosines[i])[:20]:
            votes[small.train.labels[index]] += math.exp(cosines[index] / 0.07)
        right += int(np.argmax(votes)) == label
    assert right / len(held_out) > 0.3  # chance is 0.1
    assert found == {"validation/knn_accuracy": pytest.approx(right / len(held_out))}


def test_a_run_has_the_accuracy_of_its_kept_encoder(tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run", knn=True)
    (kept,) = evaluate([str(run.path)], data="small", split="validation", frozen="knn").models
    assert run.summary["validation"]["knn_accuracy"] == pytest.approx(kept.scores.top1.value)
    best = next(row for row in rows_of(run) if row["epoch"] == run.summary["best_epoch"])
    assert best["validation/knn_accuracy"] == run.summary["validation"]["knn_accuracy"]
    log = (run.path / "log.txt").read_text()
    assert f"k-NN accuracy {100 * best['validation/knn_accuracy']:.1f} % on held-out images" in log


def test_training_is_bitwise_what_it_is_without(tmp_path: Path) -> None:
    runs = [pretrained(tmp_path / str(knn), knn=knn) for knn in (True, False)]
    judged, plain = map(rows_of, runs)
    assert ["validation/knn_accuracy" in row for row in judged] == [False, True, False, True]
    assert [{n: v for n, v in row.items() if n != "validation/knn_accuracy"} for row in judged] == plain
    assert runs[0].summary["best_epoch"] == runs[1].summary["best_epoch"]
    assert "knn_accuracy" not in runs[1].summary["validation"]
    saved = [torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in runs]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())


def test_a_run_that_was_cut_off_ends_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pretrained(tmp_path / "whole", knn=True)
    judge, calls = JudgedAutoencoder._judge, []

    def dies_the_second_time(self: JudgedAutoencoder, *arguments: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("killed")
        return judge(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(JudgedAutoencoder, "_judge", dies_the_second_time)
        with pytest.raises(RuntimeError, match="killed"):
            pretrained(tmp_path / "cut", knn=True)
    cut = pretrained(tmp_path / "cut", knn=True)
    assert "resumed after step" in (cut.path / "log.txt").read_text()
    assert rows_of(cut) == rows_of(whole)
    assert cut.summary["validation"] == whole.summary["validation"]


def test_images_that_do_not_fit_in_memory_are_loaded_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = pretrained(tmp_path / "kept", knn=True)
    monkeypatch.setattr("attention_transfer.training.neighbours.keep_pixels", lambda images, _: images)
    assert rows_of(pretrained(tmp_path / "loaded", knn=True)) == rows_of(kept)


def test_without_classes_or_whole_weights_it_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    images = tmp_path / "flat"
    images.mkdir()
    draw = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(images / f"{number}.png")
    out = tmp_path / "out" / "run"
    with pytest.raises(UserError, match=r"^knn needs images of two classes or more, .*flat have no labels[^\n]*$"):
        pretrain(data=str(images), knn=True, recipe=RECIPE, out=str(out))
    with pytest.raises(UserError, match="knn needs the whole network on a device"):
        pretrained(out, knn=True, strategy="fsdp")
    assert [path.name for path in tmp_path.iterdir()] == ["flat"]
