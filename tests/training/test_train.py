"""The verb `train`, from labels to a run folder, with a tiny teacher."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from attention_transfer import PRESETS, Copy, Guide, Pairing, UserError, load_run, load_vit, pretrain, train
from attention_transfer.data import digits, eval_transform
from attention_transfer.engine.optimiser import AveragedWeights
from attention_transfer.engine.progress import Bar
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.training import (
    Interrupted,
    Recipe,
    Run,
    read_metrics,
)
from attention_transfer.vit import save_vit

RECIPE = Recipe(epochs=6, batch_size=8, validate_every=2)
SHORT = replace(RECIPE, epochs=2, validate_every=1)


def train_tiny(teacher: str, out: Path, preset: str = "distill", **changes: Any) -> Run:
    return train(preset, **{"teacher": teacher, "shots": 2, "recipe": RECIPE, "out": str(out), **changes})


@pytest.fixture(scope="module")
def distilled(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that several tests look at and none changes."""
    return train_tiny(teacher, tmp_path_factory.mktemp("distilled") / "run")


@pytest.fixture
def copied(distilled: Run, tmp_path: Path) -> Path:
    """A copy of it, in which files may be spoilt."""
    return Path(shutil.copytree(distilled.path, tmp_path / "run"))


def history(run: Run) -> list[dict[str, float]]:
    """The metrics, without times."""
    rows = read_metrics(run.path / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_leaves_a_whole_run_folder(preset: str, teacher: str, tmp_path: Path) -> None:
    run = train_tiny(teacher, tmp_path / "run", preset, recipe=SHORT)
    names = {p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file()}
    (events,) = [name for name in names if name.startswith("tensorboard/events.out.tfevents.")]
    assert names == {
        "run.json",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "metrics.csv",
        "labelled.txt",
        "log.txt",
        "figures/attention.png",
        "figures/curve.png",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "model/config.json",
        "model/model.safetensors",
        "model/README.md",
        "summary.json",
        events,
        "tensorboard/hparams.yaml",
        *({"teacher/config.json", "teacher/model.safetensors"} if preset in ("copy", "copy-q") else ()),
    }
    assert json.loads((run.path / "summary.json").read_text()) == run.summary
    assert [row["epoch"] for row in history(run)] == [1, 2]
    assert run.summary["train"] == {"images": 20, "steps": 6, "seconds": run.summary["train"]["seconds"]}


def test_the_reported_accuracy_is_that_of_the_kept_weights(teacher: str, tmp_path: Path) -> None:
    run = train_tiny(teacher, tmp_path / "run", "copy")
    loaded = load_run(run.path)
    test = digits().test.with_transform(eval_transform(loaded.spec)).materialised()
    images, labels = test.tensors
    with torch.no_grad():
        right = (loaded.network(images).argmax(dim=1) == labels).float().mean()
    assert float(right) == pytest.approx(run.accuracy, abs=1e-6)
    best = max(row["validation/accuracy"] for row in history(run) if "validation/accuracy" in row)
    assert run.summary["validation"]["accuracy"] == best


def test_plain_timm_loads_the_student(teacher: str, tmp_path: Path) -> None:
    run = train_tiny(teacher, tmp_path / "run", "finetune", recipe=SHORT)
    student = timm.create_model(f"local-dir:{run.path / 'model'}", pretrained=True).eval()
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(student(images), load_run(run.path).network(images))


def test_the_same_run_twice_gives_identical_numbers(teacher: str, tmp_path: Path, distilled: Run) -> None:
    again = train_tiny(teacher, tmp_path / "run")
    assert history(again) == history(distilled)
    assert again.summary["test"] == distilled.summary["test"]


def test_another_seed_gives_other_numbers(teacher: str, tmp_path: Path, distilled: Run) -> None:
    other = train_tiny(teacher, tmp_path / "run", seed=1)
    assert history(other)[0]["train/loss"] != history(distilled)[0]["train/loss"]


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    teacher: str, tmp_path: Path, distilled: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def press_ctrl_c(bar: Bar) -> None:
        steps.append(None)
        if len(steps) == 11:  # in the middle of the fourth epoch: the checkpoint is that of the second
            os.kill(os.getpid(), signal.SIGINT)

    steps: list[None] = []
    with monkeypatch.context() as patch:
        patch.setattr(Bar, "advance", press_ctrl_c)
        with pytest.raises(Interrupted):
            train_tiny(teacher, tmp_path / "cut")
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "cut" / "summary.json").exists()
    resumed = train_tiny(teacher, tmp_path / "cut")
    assert history(resumed) == history(distilled)
    assert {**resumed.summary, "train": None} == {**distilled.summary, "train": None}


def test_a_finished_run_is_not_run_again(teacher: str, distilled: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        import_module("attention_transfer.training.train"), "fit", lambda *_, **__: pytest.fail("trained again")
    )
    assert train_tiny(teacher, distilled.path).summary == distilled.summary


def test_a_run_killed_after_its_last_epoch_only_needs_its_summary(teacher: str, distilled: Run, copied: Path) -> None:
    (copied / "summary.json").unlink()
    shutil.rmtree(copied / "model")
    again = train_tiny(teacher, copied)
    assert history(again) == history(distilled)
    assert {**again.summary, "train": None} == {**distilled.summary, "train": None}
    assert load_run(again.path).spec.classes == 10


def test_the_teacher_is_neither_changed_nor_saved(teacher: str, tmp_path: Path) -> None:
    before = load_vit(teacher).state_dict()
    run = train_tiny(teacher, tmp_path / "run", recipe=SHORT)
    after = load_vit(teacher).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    checkpoint = torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if "teacher" in name]
    student = sum(p.numel() for p in load_vit(str(run.path)).parameters())
    assert sum(t.numel() for t in checkpoint["state_dict"].values()) == student


def test_damaged_checkpoints_are_named(teacher: str, copied: Path) -> None:
    (copied / "summary.json").unlink()
    for name in ("last.ckpt", "best.ckpt"):
        path = copied / "checkpoints" / name
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged and the run"):
        train_tiny(teacher, copied)


def test_scratch_needs_no_teacher(tmp_path: Path) -> None:
    run = train("scratch", shots=1, recipe=Recipe(epochs=1, batch_size=10), out=str(tmp_path / "run"))
    assert run.summary["train"]["images"] == 10


@pytest.mark.parametrize("heads", ["mean", "match"])
def test_a_student_of_another_shape_copies_its_teacher_and_is_loaded_again(
    heads: str, teacher: str, tiny_vit: Any, tmp_path: Path
) -> None:
    save_vit(tiny_vit(num_heads=1, embed_dim=16), tmp_path / "small")
    pairing = Pairing(layers="last", heads=heads)  # type: ignore[arg-type]
    settings: dict[str, Any] = {"student": str(tmp_path / "small"), "pairing": pairing, "shots": 2, "epochs": 1}
    rules = [Copy(layers=2)]
    run = train("copy", teacher=teacher, rules=rules, out=str(tmp_path / "run"), **settings)  # type: ignore[arg-type]
    loaded = load_run(run.path)
    assert (loaded.spec.depth, loaded.spec.heads) == (3, 1)
    assert loaded.network.transfer.rules == tuple(rules)
    pairs = loaded.network.transfer.head_pairs
    if heads == "match":
        assert pairs is not None
        assert pairs.pairs.tolist() == run.summary["head_pairs"]
        assert (pairs.pairs[1:] >= 0).all()
    else:
        assert pairs is None


def test_a_student_of_its_own_and_a_pairing_need_a_method_that_uses_them(teacher: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"teacher": teacher, "out": str(tmp_path / "run")}
    with pytest.raises(UserError, match="starts from random weights; leave --student out"):
        train("gta", student="builtin/vit_digits", **settings)
    with pytest.raises(UserError, match="pairing has no effect without rules"):
        train("scratch", pairing=Pairing(), **settings)
    assert not (tmp_path / "run").exists()


def test_every_mistake_is_listed_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        train("copy", pretrained=False, fraction=2.0, recipe=Recipe(epochs=0), out=str(tmp_path / "run"))
    message = str(caught.value)
    assert "fraction is 2.0" in message
    assert "recipe.epochs is 0" in message
    assert "needs a teacher" in message
    assert "no teacher is named" in message
    assert list(tmp_path.iterdir()) == []


def test_more_shots_than_images_are_refused_before_anything_is_written(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has only"):
        train_tiny(teacher, tmp_path / "run", shots=1000)
    assert not (tmp_path / "run").exists()


def test_averaged_weights_follow_the_warmed_up_decay() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = AveragedWeights(network, 0.5)
    weights = [3.0, 5.0, -1.0, 7.0, 2.0]
    expected = weights[0]
    for count, weight in enumerate(weights):
        network.weight.data.fill_(weight)
        average.update()
        if count > 0:
            decay = min(0.5, (1 + count) / (10 + count))
            expected = decay * expected + (1 - decay) * weight
        with average.applied():
            assert network.weight.item() == pytest.approx(expected)
        assert network.weight.item() == weight


def weights_of(path: Path) -> dict[str, Tensor]:
    return dict(load_vit(str(path)).named_parameters())


def test_a_linear_probe_trains_the_head_alone(teacher: str, tmp_path: Path) -> None:
    run = train_tiny(teacher, tmp_path / "run", "linear-probe")
    before, after = weights_of(Path(teacher)), weights_of(run.path)
    for name, parameter in after.items():
        if name.startswith("head"):
            assert parameter.abs().max() > 1e-4  # it started at 2e-5
        else:
            assert torch.equal(parameter, before[name]), name


def test_parts_of_a_network_are_taken_and_the_rest_is_random(teacher: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=2, validate_every=1, lr=1e-12)
    taken = weights_of(train_tiny(teacher, tmp_path / "a", "attention-init", recipe=recipe).path)
    other = train_tiny(teacher, tmp_path / "b", "scratch", recipe=recipe, init=teacher, init_parts=["embeddings"])
    embedded, source = weights_of(other.path), weights_of(Path(teacher))
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.attn.proj.weight"):
        torch.testing.assert_close(taken[name], source[name])
        assert not torch.allclose(embedded[name], source[name])
    for name in ("cls_token", "patch_embed.proj.weight"):
        torch.testing.assert_close(embedded[name], source[name])
        assert not torch.allclose(taken[name], source[name])
    assert not torch.allclose(taken["blocks.0.mlp.fc1.weight"], source["blocks.0.mlp.fc1.weight"])
    assert not torch.allclose(embedded["blocks.0.mlp.fc1.weight"], source["blocks.0.mlp.fc1.weight"])


def test_the_teacher_is_fine_tuned_first_where_that_is_asked_for(teacher: str, tmp_path: Path) -> None:
    run = train_tiny(teacher, tmp_path / "run", "distill", tune_teacher=True, recipe=SHORT)
    tuned = tmp_path / "run-teacher"
    assert json.loads((tuned / "summary.json").read_text())["preset"] == "finetune"
    config = read_mapping(run.path / "config.yaml")
    assert (config["teacher"], config["tune_teacher"]) == (str(tuned), False)  # or to repeat it would tune it twice


@pytest.mark.parametrize("epochs", [0, 1])
def test_in_the_first_epochs_the_head_alone_is_trained(epochs: int, teacher: str, tmp_path: Path) -> None:
    run = train_tiny(teacher, tmp_path / "run", "finetune", recipe=replace(RECIPE, epochs=2, head_epochs=epochs))
    weights = torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)
    first = min(weights["optimizer"]["state"].values(), key=lambda state: state["step"])
    steps = {name: int(state["step"]) for name, state in weights["optimizer"]["state"].items()}
    heads = {name for name in steps if ".head." in name}
    assert {steps[name] for name in heads} == {6}
    assert {steps[name] for name in steps.keys() - heads} == {int(first["step"])} == {6 - 3 * epochs}


def test_mixed_batches_change_the_training_and_not_the_validation(teacher: str, tmp_path: Path) -> None:
    plain = train_tiny(teacher, tmp_path / "plain", "gta", recipe=SHORT)
    recipe = replace(SHORT, cutmix=1.0, transmix="teacher")
    mixed = train_tiny(teacher, tmp_path / "mixed", "gta", recipe=recipe)
    assert history(plain)[0]["train/task"] != history(mixed)[0]["train/task"]
    again = train_tiny(teacher, tmp_path / "again", "gta", recipe=recipe)
    assert [row["train/task"] for row in history(again)] == [row["train/task"] for row in history(mixed)]


def test_a_guided_student_that_starts_at_random_is_warned_about(
    teacher: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_tiny(teacher, tmp_path / "run", "gta", init="random", recipe=SHORT)
    assert "has none to keep" in caplog.text


def test_weights_of_rules_follow_the_training(teacher: str, tmp_path: Path) -> None:
    """The weight is 0 in the second half, where the total is the task's loss alone."""
    run = train_tiny(teacher, tmp_path / "run", "gta", rules=[Guide(weight=5.0, schedule="off", until=0.5)])
    rows = history(run)
    assert rows[0]["train/loss"] > rows[0]["train/task"] + 1e-9 or rows[1]["train/loss"] > rows[1]["train/task"]
    assert rows[-1]["train/loss"] == pytest.approx(rows[-1]["train/task"], abs=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_parts": ["mlp"], "init": "random"}, "init_parts has no effect on random weights"),
        ({"init_parts": ["mpl"], "init": "teacher"}, "there is no part 'mpl'; did you mean 'mlp'"),
        ({"trained": ["haed"]}, "did you mean 'head'"),
        ({"recipe": replace(RECIPE, transmix="student")}, "weighs the labels of CutMix, which is off"),
        ({"recipe": replace(RECIPE, head_epochs=6)}, "recipe.head_epochs is 6"),
        ({"recipe": replace(RECIPE, cutmix=-1.0)}, "recipe.cutmix is -1.0"),
    ],
)
def test_contradictions_of_init_parts_and_mixing_are_refused(
    teacher: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_tiny(teacher, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_logits_of_a_teacher_that_never_saw_a_class_are_refused(tmp_path: Path) -> None:
    pretrained = pretrain(epochs=1, out=str(tmp_path / "teacher"))
    with pytest.raises(UserError, match=r"LogitKD needs a teacher that knows the classes.*add --tune-teacher"):
        train_tiny(str(pretrained.path), tmp_path / "run", "logit-kd", tune_teacher=False)
    with pytest.raises(UserError, match="tune_teacher fine-tunes a teacher, but none is named"):
        train("scratch", tune_teacher=True, recipe=RECIPE, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
