"""What README and examples show is run, without the network: random weights take the place of published ones.

The pages of the rules are held against the rules.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import runpy
from collections.abc import Callable
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attention_transfer import (
    BSS,
    L2SP,
    AttentionTransfer,
    Copy,
    Distill,
    FeatureKD,
    Guide,
    LogitKD,
    Rule,
    capture,
    student_like,
)

STEPS, NEARER = 50, 0.8  # as many steps of training, after which so much of the distance is left at most
ROOT = Path(__file__).parents[1]
create = timm.create_model


@pytest.fixture(autouse=True)
def _small_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, pretrained: bool = False, **settings: Any) -> Any:
        return create(name.partition(".")[0], depth=2, embed_dim=48, num_heads=2, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    torch.manual_seed(0)


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / name))


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


@torch.no_grad()
def sharpen(teacher: nn.Module) -> nn.Module:
    """Give a random teacher logits of about ±2, whose maps are far from even, as a trained one's are."""
    for name, parameter in teacher.named_parameters():
        if re.search(r"(qkv|q_proj|k_proj)\.weight", name):
            parameter.normal_(std=(2 / parameter.shape[-1]) ** 0.5)
    return teacher


@torch.no_grad()
def distance(teacher: nn.Module, student: nn.Module, images: Tensor) -> float:
    """Kullback–Leibler divergence of the maps, mean over layers, images, heads and rows."""
    maps = []
    for model in (teacher, student):
        with capture(model.eval()) as calls:
            model(images)
        maps.append(torch.stack([call.maps() for call in calls]))
    known, own = maps
    return float((known * (known / own).log()).sum(dim=-1).mean())


def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"<!-- tested -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    assert names["student"].blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert names["maps"].shape == (2, 2, 197, 197)


Pair = tuple[nn.Module, nn.Module, Tensor]


def timm_pair() -> Pair:
    teacher = sharpen(timm.create_model("vit_tiny_patch16_224", img_size=48))
    return teacher, student_like(teacher, num_classes=8), torch.randn(8, 3, 48, 48)


def hugging_face_pair() -> Pair:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    config = transformers.Dinov2Config(image_size=8, patch_size=4, **sizes)
    teacher = sharpen(transformers.Dinov2Model(config))
    return teacher, student_like(teacher, num_classes=8), torch.randn(8, 3, 8, 8)


@pytest.mark.parametrize("name", ["bare_loop.py", "hugging_face_loop.py"])
def test_a_loop_runs_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(name, monkeypatch)
    assert capsys.readouterr().out.count("loss") == 3


@pytest.mark.parametrize(
    ("name", "pair"), [("bare_loop.py", timm_pair), ("hugging_face_loop.py", hugging_face_pair)], ids=["timm", "hf"]
)
def test_in_a_loop_the_students_attention_comes_nearer_to_the_teachers(name: str, pair: Callable[[], Pair]) -> None:
    teacher, student, images = pair()
    before = distance(teacher, student, images)
    distances = example(name)["train"](teacher, student, repeat((images, torch.arange(8)), STEPS))
    assert len(distances) == STEPS
    assert all(later < earlier for earlier, later in pairwise(distances[::10]))
    assert distance(teacher, student, images) < NEARER * before


@pytest.mark.filterwarnings("ignore")  # of Lightning, about loaders and logs that are small
def test_a_module_of_lightning_trains_a_student_and_saves_no_teacher(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    teacher, student, images = timm_pair()
    frozen, before = copy.deepcopy(teacher.state_dict()), distance(teacher, student, images)
    batches = [(images, torch.arange(8))] * STEPS
    settings = {"accelerator": "cpu", "enable_progress_bar": False, "default_root_dir": tmp_path}
    trainer = example("lightning_module.py")["train"](teacher, student, batches, **settings)
    assert trainer.global_step == STEPS
    assert distance(teacher, student, images) < NEARER * before
    assert all(torch.equal(value, frozen[name]) for name, value in teacher.state_dict().items())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert list(saved) == [f"transfer.student.{name}" for name in student.state_dict()]


def test_the_trainer_brings_the_students_attention_nearer_and_saves_no_teacher(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    teacher, student, images = hugging_face_pair()
    frozen = copy.deepcopy(teacher.state_dict())
    before = distance(teacher, student, images)
    dataset = [{"pixel_values": image, "labels": label} for label, image in enumerate(images)]
    trainer = example("hugging_face_trainer.py")["train"](
        AttentionTransfer(teacher, student, [Distill(weight=3.0)]),
        dataset,
        str(tmp_path),
        max_steps=STEPS,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=STEPS,
        report_to="none",
        disable_tqdm=True,
        lr_scheduler_type="constant",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    assert distance(teacher, student, images) < NEARER * before
    assert trainer.predict(dataset).predictions.shape == (8, 8)
    assert all(torch.equal(value, frozen[name]) for name, value in teacher.state_dict().items())
    saved = load_file(tmp_path / f"checkpoint-{STEPS}" / "model.safetensors")
    assert saved.keys() == {f"student.{name}" for name in student.state_dict()}


def test_the_trainers_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    run("hugging_face_trainer.py", monkeypatch)
    assert "eval_loss" in capsys.readouterr().out


def test_timms_task_brings_the_students_attention_nearer_and_saves_the_student_alone() -> None:
    teacher, student, images = timm_pair()
    before = distance(teacher, student, images)
    transfer = AttentionTransfer(teacher, student, [Distill(weight=3.0)])
    task = example("timm_task.py")["AttentionTransferTask"](transfer, nn.CrossEntropyLoss(), verbose=False)
    task.setup_ema(decay=0.5)
    optimizer = torch.optim.AdamW(task.get_trainable_module().parameters(), lr=1e-3)
    results = []
    for step in range(STEPS):
        results.append(task(images, torch.arange(8)))
        optimizer.zero_grad()
        results[-1]["loss"].backward()
        optimizer.step()
        task.update_ema(step)
    assert results[-1]["loss"] < results[0]["loss"]
    assert results[-1]["output"].shape == (8, 8)
    torch.testing.assert_close(results[0]["loss"], results[0]["task_loss"] + 3.0 * results[0]["distill"])
    assert distance(teacher, student, images) < NEARER * before
    averaged = task.get_eval_model(ema=True)
    assert distance(teacher, student, images) < distance(teacher, averaged, images) < before
    for saved in (task.get_checkpoint_state()["state_dict"], task.get_checkpoint_state(ema=True)["state_dict_ema"]):
        assert saved.keys() == student.state_dict().keys()


def test_timms_task_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("timm_task.py", monkeypatch)
    assert capsys.readouterr().out.count("task_loss") == 3


@pytest.mark.parametrize(
    ("rule", "page"),
    [
        (Copy, "copy"),
        (Distill, "distill"),
        (Guide, "guide"),
        (LogitKD, "logit-kd"),
        (FeatureKD, "feature-kd"),
        (L2SP, "l2sp"),
        (BSS, "bss"),
    ],
)
def test_a_rules_page_has_all_its_parameters_with_their_defaults(rule: type[Rule], page: str) -> None:
    text = (ROOT / "docs" / "rules" / f"{page}.md").read_text()
    table = dict(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.+?) \|", text, re.MULTILINE))
    written: dict[str, str] = {}
    for names, values in table.items():
        written |= dict(zip(re.findall(r"\w+", names), values.split(", "), strict=True))
    in_words: dict[Any, set[str]] = {None: {"all", "none"}, 1.0: {"1", "1.0"}}
    defaults = {field.name: field.default for field in dataclasses.fields(rule)}
    assert written.keys() == defaults.keys()
    for name, default in defaults.items():
        shown = f'`"{default}"`' if isinstance(default, str) else str(default)
        assert written[name] in in_words.get(default, {shown}), name
