"""`--repair` of the verbs that look at networks: each is shown or judged with a test-time register, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from attention_transfer import UserError, describe, evaluate, load_vit, segment, show, similarity, train
from attention_transfer.config.show import Show
from attention_transfer.data import digits, eval_transform
from attention_transfer.evaluation import similarity as measured
from attention_transfer.evaluation.attention_panels import maps_of
from attention_transfer.evaluation.metrics import classification
from attention_transfer.evaluation.subjects import load_subject, spread, with_repaired
from attention_transfer.training import Recipe
from attention_transfer.vit import find_register_neurons, save_vit

Build = Callable[..., Any]
BLOCK, UNIT, PATCH = 1, 7, 2
RECIPE = Recipe(epochs=1, batch_size=8, validate_every=1)


@pytest.fixture
def planted(tiny_vit: Build, tmp_path: Path) -> str:
    """A network in which one unit of the second block fires at one patch, and makes its output huge."""
    model = tiny_vit(num_classes=10, pretrained_cfg_overlay={"mean": (0.5,), "std": (0.5,)})
    with torch.no_grad():
        model.pos_embed[0, 1 + PATCH, 3] += 30
        mlp = model.blocks[BLOCK].mlp
        mlp.fc1.weight[UNIT], mlp.fc1.bias[UNIT] = 20 * torch.eye(24)[3], -25
        mlp.fc2.weight[:, UNIT] = 8 * torch.eye(24)[4]
    save_vit(model, tmp_path / "planted")
    return str(tmp_path / "planted")


@pytest.fixture
def flat(tiny_vit: Build, tmp_path: Path) -> str:
    """A network without artefacts."""
    model = tiny_vit(num_classes=10)
    with torch.no_grad():
        model.pos_embed.zero_()
        model.patch_embed.proj.weight.zero_()
    save_vit(model, tmp_path / "flat")
    return str(tmp_path / "flat")


def repaired(path: str, images: Any) -> nn.Module:
    """What a user would do in Python."""
    model = load_vit(path)
    transform = eval_transform(describe(model))
    inputs = torch.stack([transform(images[int(i)]) for i in spread(len(images), 50)])
    return load_vit(path, repair=find_register_neurons(model, [inputs]))


def test_each_model_is_judged_again(planted: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate([planted], data="digits", repair=True, limit=40)
    plain, mended = found.models
    assert (plain.name, mended.name) == (planted, f"{planted}, repaired")
    assert [pair.models for pair in found.differences] == [(plain.name, mended.name)]
    whole = digits()
    split = whole.test.take(spread(len(whole.test), 40))
    model = repaired(planted, whole.train.images)
    inputs = split.with_transform(eval_transform(describe(model))).materialised().tensors[0]
    with torch.no_grad():
        direct = classification(model(inputs).double(), split.labels)
    assert mended.scores.nll.value == pytest.approx(direct.nll.value, abs=1e-5)
    assert mended.scores.nll.value != plain.scores.nll.value
    assert "10 register neurons in blocks " in capsys.readouterr().err


def test_what_a_repair_changes_block_by_block(planted: str, tiny_vit: Build, tmp_path: Path) -> None:
    found = similarity(planted, data="digits", repair=True, limit=6)
    train_images = digits().train.images
    six = digits().test.images.take(spread(450, 6))
    model = repaired(planted, train_images)
    assert found == measured(load_vit(planted), model, six)
    assert found.tokens == "patches"
    save_vit(tiny_vit(1, num_classes=10), tmp_path / "other")
    against = similarity(str(tmp_path / "other"), planted, "digits", repair=True, limit=6)
    assert against == measured(load_vit(str(tmp_path / "other")), model, six)
    with pytest.raises(UserError, match="b is left out; name a second network, or set epochs"):
        similarity(planted, data="digits")


def test_each_network_is_shown_again(planted: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.effect_noise((8, 8), 60).save(photo)
    figure = show([planted], [str(photo)], repair=True, difference=True, labels=["mine"])
    titles = [axis.get_title() for axis in figure.axes if axis.images]
    assert titles[1:] == ["mine", "mine, repaired", "mine, repaired\n− mine"]
    subjects = with_repaired([load_subject(planted, None, "cpu")], [Image.open(photo)])
    plain, mended = (next(iter(maps_of(s, Image.open(photo), Show([planted], ["x"])).maps.values())) for s in subjects)
    assert not np.allclose(plain, mended)
    assert subjects[0].spec.tokens.prefix == ("class",)  # the first is left as it was
    with pytest.raises(UserError, match="repair and epochs exclude each other"):
        show([planted], [str(photo)], repair=True, epochs=True, out=str(tmp_path / "x.gif"))


def test_networks_that_can_not_be_repaired_are_all_named(
    planted: str, flat: str, tiny_vit: Build, tmp_path: Path
) -> None:
    save_vit(tiny_vit(name="vit_relpos_small_patch16_224", num_classes=10), tmp_path / "relative")
    run = train("copy", teacher=planted, shots=2, recipe=RECIPE, out=str(tmp_path / "run"))
    names = [planted, flat, str(tmp_path / "relative"), str(run.path)]
    with pytest.raises(UserError) as caught:
        evaluate(names, data="digits", repair=True, limit=20)
    first, second, third = str(caught.value).splitlines()
    assert first.startswith(f"{flat}: no patch of 50 images has an output of more than")
    assert second.startswith(f"{tmp_path / 'relative'}: VisionTransformerRelPos can't be repaired")
    assert third.startswith(f"{run.path}: it copies its teacher's attention, so that there is nothing of its own")


def test_a_run_is_repaired_and_a_repaired_teacher_is_not_repaired_twice(planted: str, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch_size=20, validate_every=1, lr=1e-6, keep_epochs=True)
    run = train("gta", teacher=planted, shots=2, recipe=recipe, repair=True, out=str(tmp_path / "run"))
    plain, mended = segment([str(run.path)], data="digit-scenes", limit=4, repair=True, training=4)
    assert plain.results[0].per_head != mended.results[0].per_head
    with pytest.raises(UserError, match="planted, repaired: it is repaired already, as its run had it"):
        similarity(str(run.path), data="digits", epochs=True, repair=True, limit=6)
    drift = similarity(str(run.path), data="digits", epochs=True, limit=6).drift
    assert [each.epoch for each in drift] == [1, 2]
