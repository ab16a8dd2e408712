"""The verb `evaluate`: scores of runs and models, differences, frozen features, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attention_transfer import UserError, cli, evaluate, load_vit, train
from attention_transfer.data import DATA, Split, Splits, digits, eval_transform
from attention_transfer.evaluation import classification, forward_cost, frozen_features, knn
from attention_transfer.evaluation.subjects import spread
from attention_transfer.training import Recipe, Run
from attention_transfer.vit import describe, save_vit

Build = Callable[..., Any]


@pytest.fixture(scope="module")
def run(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("run") / "run"
    return train("copy", teacher=teacher, shots=2, recipe=Recipe(epochs=1, validate_every=1), out=str(out))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Splits:
    """Few digits of six classes, as an embedded data set."""
    whole = digits()

    def part(split: Split, count: int) -> Split:
        return split.take(np.flatnonzero(split.labels < 6)[:count])

    parts = part(whole.train, 60), part(whole.validation, 30), part(whole.test, 40)
    made = Splits("small", whole.classes[:6], *parts)
    monkeypatch.setitem(DATA, "small", lambda: made)
    return made


def saved(model: Any, path: Path, labels: list[str] | None = None) -> str:
    save_vit(model, path, labels=labels)
    return str(path)


def test_a_run_has_the_accuracy_of_its_summary(run: Run, teacher: str, tmp_path: Path) -> None:
    found = evaluate([str(run.path), teacher], out=str(tmp_path / "scores"))
    scores = found.models[0].scores
    assert (found.data, found.split, found.images) == ("digits", "test", 450)
    assert scores.top1.value == pytest.approx(run.summary["test"]["accuracy"], abs=1e-6)
    assert scores.nll.value == pytest.approx(run.summary["test"]["cross_entropy"], abs=1e-5)
    (pair,) = found.differences
    assert pair.models == (str(run.path), teacher)
    assert pair.top1.difference.value == pytest.approx(scores.top1.value - found.models[1].scores.top1.value)
    written = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(asdict(found)))
    assert Image.open(tmp_path / "scores" / "reliability.png").width > 500


def test_a_model_without_names_takes_the_order_of_the_data(
    tiny_vit: Build, small: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_vit(num_classes=6)
    found = evaluate([saved(model, tmp_path / "six")], data="small")
    assert found.models[0].classes == small.classes
    assert found.models[0].scores.top5 is not None
    assert "six has 6 classes without names: they are taken for those of small, in order" in caplog.text


def test_classes_are_matched_by_name(tiny_vit: Build, small: Splits, tmp_path: Path) -> None:
    model = tiny_vit(num_classes=8)
    names = ["seven", "5", "4", "3", "2", "1", "0", "none"]
    (found,) = evaluate([saved(model, tmp_path / "eight", names)], data="small").models
    counts = np.array(found.scores.confusion).sum(axis=1)
    assert dict(zip(names, counts.tolist(), strict=True)) == {
        name: int((small.test.labels == small.classes.index(name)).sum()) if name in small.classes else 0
        for name in names
    }
    with pytest.raises(UserError, match=r"has 5 classes, among which '5' of small are not"):
        evaluate([saved(tiny_vit(), tmp_path / "five", list("01234"))], data="small")
    with pytest.raises(UserError, match=r"has 3 classes without names, among which '3', '4', '5' of small are not"):
        evaluate([saved(tiny_vit(num_classes=3), tmp_path / "three")], data="small")


def test_frozen_features(tiny_vit: Build, small: Splits, tmp_path: Path) -> None:
    model, other = (tiny_vit(seed, num_classes=0) for seed in (0, 1))
    paths = [saved(model, tmp_path / "a"), saved(other, tmp_path / "b")]
    with pytest.raises(UserError) as error:
        evaluate(paths, data="small")
    assert str(error.value).splitlines() == [
        f"{path} has no classification layer; judge its features with --frozen knn or linear" for path in paths
    ]
    found = evaluate(paths, data="small", frozen="knn")
    train_features, test = (frozen_features(load_vit(paths[0]), part.images) for part in (small.train, small.test))
    votes = knn(train_features, small.train.labels, test)
    direct = (votes.argmax(dim=1).numpy() == small.test.labels).astype(float)
    assert found.models[0].scores.top1.value == direct.mean()
    linear = evaluate(paths[:1], data="small", frozen="linear")
    assert linear.models[0].scores.top1.value > 0.5
    with pytest.raises(UserError, match="judged by the training images' labels; choose another split"):
        evaluate(paths, data="small", frozen="knn", split="train")


def test_differences_are_paired(tiny_vit: Build, small: Splits, tmp_path: Path) -> None:
    paths = [saved(tiny_vit(seed, num_classes=6), tmp_path / str(seed)) for seed in range(3)]
    found = evaluate(paths, data="small", split="validation", limit=20)
    assert [pair.models for pair in found.differences] == [(paths[i], paths[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert {pair.top1.images for pair in found.differences} == {20}


def test_a_folder_of_classes(tiny_vit: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(15):
            pixels = draw.integers(0, 256, (10, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    model = saved(tiny_vit(num_classes=2), tmp_path / "model", ["dogs", "cats"])
    found = evaluate([model], data=str(tmp_path / "photos"), out=str(tmp_path / "scores.json"))
    assert (found.images, found.models[0].classes) == (6, ("dogs", "cats"))
    assert json.loads((tmp_path / "scores.json").read_text())["models"][0]["scores"]["top5"] is None
    assert "6 test images" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"scores\.json exists"):
        evaluate([model], data=str(tmp_path / "photos"), out=str(tmp_path / "scores.json"))


def test_wrong_settings(tiny_vit: Build, small: Splits, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        evaluate(["a", "a"], bins=0, limit=0, batch_size=0)
    assert len(str(error.value).splitlines()) == 4
    with pytest.raises(UserError, match="no model is named"):
        evaluate([])
    model = saved(tiny_vit(num_classes=6), tmp_path / "model")
    with pytest.raises(UserError, match="the models are no runs, so that nothing says which images to take"):
        evaluate([model])
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is a file that does not end in \.json"):
        evaluate([model], data="small", out=str(tmp_path / "note.txt"))


def test_logits_that_are_not_finite(
    tiny_vit: Build, small: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_vit(num_classes=6)
    model.head.bias.data[0] = 3e38
    model.head.weight.data[0] = 3e38
    path = saved(model, tmp_path / "model")
    with pytest.raises(UserError, match="gives logits that are not finite; leave it out"):
        evaluate([path], data="small")


def test_on_the_command_line(tiny_vit: Build, small: Splits, tmp_path: Path, capsys: Any) -> None:
    model = saved(tiny_vit(num_classes=6), tmp_path / "model")
    cli.run(["evaluate", model, "--data", "small", "--limit", "12"])
    shown = capsys.readouterr().err
    assert "12 test images of small" in shown
    assert "confuses most often" in shown


def test_all_models_together(tiny_vit: Build, small: Splits, tmp_path: Path) -> None:
    models = [tiny_vit(seed, num_classes=6) for seed in range(2)]
    paths = [saved(model, tmp_path / str(seed)) for seed, model in enumerate(models)]
    found = evaluate(paths, data="small", ensemble=True, limit=20)
    assert [model.name for model in found.models] == [*paths, "ensemble of 2"]
    assert [pair.models[1] for pair in found.differences] == [paths[1], "ensemble of 2", "ensemble of 2"]
    split = small.test.take(spread(40, 20))
    inputs = split.with_transform(eval_transform(describe(models[0]))).materialised().tensors[0]
    with torch.no_grad():
        mean = torch.stack([load_vit(path)(inputs).softmax(dim=1) for path in paths]).mean(dim=0)
    direct = classification(mean.double().log(), split.labels)
    assert found.models[2].scores.nll.value == pytest.approx(direct.nll.value, abs=1e-5)
    assert found.models[2].scores.top1.value == direct.top1.value
    assert found.models[2].cost is None
    with pytest.raises(UserError, match="an ensemble needs at least two models"):
        evaluate(paths[:1], data="small", ensemble=True)
    more = [saved(tiny_vit(num_classes=6), tmp_path / "other")]
    save_vit(tiny_vit(num_classes=7), tmp_path / "seven", labels=[*small.classes, "none"])
    with pytest.raises(UserError, match="no ensemble can be made of them"):
        evaluate([*more, str(tmp_path / "seven")], data="small", ensemble=True)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_flops_are_those_of_the_products(pool: str, tiny_vit: Build) -> None:
    """By hand: 5 tokens of width 24, 3 blocks, 3 heads of 8, MLPs of 96, patches of 16 pixels."""
    cost = forward_cost(model := tiny_vit(global_pool=pool), describe(model), batch=2)
    block = 5 * 24 * 72 + 2 * 3 * 5 * 5 * 8 + 5 * 24 * 24 + 2 * 5 * 24 * 96
    assert cost.flops == 2 * (4 * 16 * 24 + 3 * block + 24 * 5)
    assert cost.images_per_second > 0
