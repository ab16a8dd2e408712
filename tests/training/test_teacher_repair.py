"""`train --repair`: the teacher's artefacts are moved out before its attention is transferred.

Everything is held against timm's own register and a hook that moves the units in plain loops.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from attention_transfer import Distill, UserError, capture, describe, export, load_run, load_vit, train
from attention_transfer.config.training import Compare, Train
from attention_transfer.data import digits, eval_transform
from attention_transfer.evaluation.subjects import load_teacher
from attention_transfer.experiments.cells import Cells
from attention_transfer.experiments.grid import grid_of, run_of
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.training import Recipe, ResolvedRecipe, Run, read_metrics, teacher_repair
from attention_transfer.training.asked import filled_in
from attention_transfer.training.networks import bind, make_networks
from attention_transfer.training.train_problems import train_problems
from attention_transfer.vit import save_vit

Build = Callable[..., Any]
Maps = Callable[[Any, Tensor], list[Tensor]]
SIZES = {"patch_size": 2, "num_classes": 10}
BLOCK, UNIT, PATCH = 0, 7, 5
SINK = 1 + PATCH


@pytest.fixture
def planted(tiny_vit: Build, tmp_path: Path) -> str:
    """A teacher in which one unit fires at one patch; its output is huge, and the next block attends to it alone."""
    model = tiny_vit(1, **SIZES, pretrained_cfg_overlay={"mean": (0.5,), "std": (0.5,)})
    with torch.no_grad():
        model.pos_embed[0, SINK, 3] += 30
        mlp, attention = model.blocks[BLOCK].mlp, model.blocks[BLOCK + 1].attn
        mlp.fc1.weight[UNIT], mlp.fc1.bias[UNIT] = 20 * torch.eye(24)[3], -25
        mlp.fc2.weight[:, UNIT] = 8 * torch.eye(24)[4]
        attention.qkv.bias[:24] = 2.0
        attention.qkv.weight[24:48, 4] = 2.0
    save_vit(model, tmp_path / "teacher")
    return str(tmp_path / "teacher")


@pytest.fixture
def pixels() -> Tensor:
    """Eight digits as the teacher sees them."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=8, in_chans=1, patch_size=2)
    spec = describe(model)
    test = digits().test.images
    return torch.stack([eval_transform(spec)(test[i]) for i in range(8)])


def train_tiny(teacher: str, out: Path, preset: str = "copy", **changes: Any) -> Run:
    recipe = Recipe(epochs=2, batch_size=20, validate_every=1)
    return train(
        preset, **{"teacher": teacher, "shots": 2, "recipe": recipe, "out": str(out), "repair": True, **changes}
    )


def history(run: Run) -> list[dict[str, float]]:
    rows = read_metrics(run.path / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def recorded(run: Run) -> dict[str, list[int]]:
    units: dict[str, list[int]] = json.loads((run.path / "repair.json").read_text())["units"]
    return units


def repaired_by_hand(teacher: str, units: dict[str, list[int]]) -> Any:
    """timm's network with one register of zeros, and a hook on each block with register neurons."""
    plain = load_vit(teacher)
    state = dict(plain.state_dict())
    sizes = {"img_size": 8, "in_chans": 1, "embed_dim": 24, "depth": 3, "num_heads": 3, **SIZES}
    model: Any = timm.create_model("vit_tiny_patch16_224", reg_tokens=1, **sizes).eval()
    state["reg_token"] = torch.zeros(1, 1, 24)
    old = state["pos_embed"]
    state["pos_embed"] = torch.cat([old[:, :1], torch.zeros(1, 1, 24), old[:, 1:]], dim=1)
    model.load_state_dict(state)

    def hook(moved: list[int]) -> Callable[..., Tensor]:
        def move(module: Any, given: Any, output: Tensor) -> Tensor:
            after = output.clone()
            for image in range(len(output)):
                for unit in moved:
                    after[image, 1, unit] = max(output[image, token, unit] for token in range(output.shape[1]))
                    after[image, 2:, unit] = 0
            return after

        return move

    for block, moved in units.items():
        model.blocks[int(block)].mlp.act.register_forward_hook(hook(moved))
    return model


def without_register(maps_BHNN: Tensor) -> Tensor:
    """Class token and patches alone, rows made to sum to one."""
    kept = [0, *range(2, maps_BHNN.shape[-1])]
    maps_BHNN = maps_BHNN[:, :, kept][..., kept]
    return maps_BHNN / maps_BHNN.sum(dim=-1, keepdim=True)


def on_sink(maps_BHNN: Tensor) -> float:
    """What the class token and the other patches give to the patch of the artefact."""
    return float(maps_BHNN[:, :, [n for n in range(maps_BHNN.shape[-1]) if n != SINK], SINK].mean())


def test_a_copied_student_attends_as_the_repaired_teacher_over_class_token_and_patches(
    planted: str, pixels: Tensor, unfused_maps: Maps, tmp_path: Path
) -> None:
    run, usual = train_tiny(planted, tmp_path / "run"), train_tiny(planted, tmp_path / "usual", repair=False)
    assert UNIT in recorded(run)[str(BLOCK)]
    attended = []
    for each in (run, usual):
        loaded = load_run(each.path)
        assert loaded.spec.tokens.prefix == ("class",)
        with torch.no_grad(), capture(loaded.network.student) as calls:
            loaded.network(pixels)
        attended.append([call.maps() for call in calls])
    by_hand = map(without_register, unfused_maps_of_hooked(repaired_by_hand(planted, recorded(run)), pixels))
    torch.testing.assert_close(attended[0], list(by_hand))
    torch.testing.assert_close(attended[1], unfused_maps(load_vit(planted), pixels))
    repaired, plain = (on_sink(maps[BLOCK + 1]) for maps in attended)
    assert plain > 0.8
    assert repaired < 0.1


def unfused_maps_of_hooked(model: Any, images: Tensor) -> list[Tensor]:
    """As the fixture, on the model itself: a deep copy's hooks would be those of the original."""
    maps: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, given, output: maps.append(given[0].detach()))
    with torch.no_grad():
        model(images)
    return maps


def test_distillation_goes_towards_the_repaired_maps(planted: str, pixels: Tensor, unfused_maps: Maps) -> None:
    config = Train("distill", teacher=planted, init="random")
    losses = {}
    for repair in (False, True):
        torch.manual_seed(0)
        teacher, student = make_networks(config, 10)
        assert teacher is not None
        with torch.no_grad():
            for parameter in student.parameters():  # or its maps would be flat, and as far from any target
                parameter.add_(0.3 * torch.randn_like(parameter))
        if repair:
            found = teacher_repair.repair_teacher(teacher, digits().train.images, None)
            assert found.neurons is not None and found.images <= teacher_repair.REPAIRED_ON
            units = {str(block): list(own) for block, own in found.neurons.units.items()}
            targets = list(map(without_register, unfused_maps_of_hooked(repaired_by_hand(planted, units), pixels)))
        else:
            targets = unfused_maps(load_vit(planted), pixels)
        recipe = ResolvedRecipe(epochs=1, batch_size=8, validate_every=1, lr=1e-3)
        losses[repair] = bind(teacher, student, [Distill()], config, recipe)(pixels).losses["distill"]
        own = unfused_maps(student.eval(), pixels)
        terms = [-(t * s.log()).sum(dim=-1).mean() for t, s in zip(targets, own, strict=True)]
        torch.testing.assert_close(losses[repair].detach(), torch.stack(terms).mean())
        assert (on_sink(targets[BLOCK + 1]) > 0.8) is not repair
    assert losses[True].item() != pytest.approx(losses[False].item(), rel=0.01)


@pytest.mark.parametrize("preset", ["distill", "gta"])
def test_the_student_starts_as_without_a_repair_and_needs_none(preset: str, planted: str, tmp_path: Path) -> None:
    run = train_tiny(planted, tmp_path / "run", preset)
    usual = train_tiny(planted, tmp_path / "usual", preset, repair=False)
    assert history(run) != history(usual)
    assert not (run.path / "teacher").exists()
    student = timm.create_model(f"local-dir:{run.path / 'model'}", pretrained=True)
    assert (student.reg_token, student.num_prefix_tokens) == (None, 1)
    spec, teacher = describe(student), load_teacher(str(run.path), "cpu")
    assert teacher is not None and teacher.name == f"{planted}, repaired"
    assert teacher.spec.tokens.prefix == ("class", "register")
    assert "registers" not in teacher.spec.components - spec.components  # it is not the student that lacks something


def test_the_initial_weights_are_those_of_a_run_without(planted: str, tmp_path: Path) -> None:
    never = {"recipe": Recipe(epochs=1, batch_size=8, validate_every=1, lr=1e-8, head_lr=1.0, weight_decay=0.0)}
    states = [
        load_vit(str(train_tiny(planted, tmp_path / str(repair), "gta", repair=repair, **never).path)).state_dict()
        for repair in (False, True)
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value)


def test_the_run_is_complete_and_says_what_was_repaired(
    planted: str, pixels: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    original = load_vit(planted).state_dict()
    run = train_tiny(planted, tmp_path / "run")
    units = recorded(run)
    what = f"10 register neurons in blocks {', '.join(units)}, of "
    assert f"repair of the teacher: {what}" in caplog.text
    assert "found on 20 images" in caplog.text
    assert what in (run.path / "model" / "README.md").read_text()
    assert what in (run.path / "log.txt").read_text()
    assert read_mapping(run.path / "config.yaml")["repair"] is True
    kept = load_vit(str(run.path / "teacher")).state_dict()
    assert kept.keys() == original.keys()
    assert all(torch.equal(kept[name], value) for name, value in original.items())
    before = load_run(run.path).network(pixels)
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    torch.testing.assert_close(load_run(tmp_path / "moved").network(pixels), before)
    (tmp_path / "moved" / "repair.json").write_text('{"images": 20, "units": {"one": 1}, "block": 0, "artefacts": 1}')
    with pytest.raises(UserError, match=r"repair\.json does not say how a teacher was repaired"):
        load_run(tmp_path / "moved")
    (tmp_path / "moved" / "repair.json").unlink()
    with pytest.raises(UserError, match=r"repair\.json is gone"):
        load_run(tmp_path / "moved")


def test_one_file_holds_the_repaired_teacher(planted: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    run = train_tiny(planted, tmp_path / "run")
    report = export(str(run.path), to="onnx", out=str(tmp_path / "file"))  # which compares its logits with the run's
    assert report.random_images > 0
    what = str(teacher_repair.TeacherRepair.of_run(run.path))
    assert what in (tmp_path / "file" / "README.md").read_text()


def test_a_resumed_run_has_the_same_neurons_without_looking_again(
    planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_tiny(planted, tmp_path / "run")
    rows, test = history(whole), whole.summary["test"]
    for name in ("summary.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.jsonl", "metrics.csv"):
        (whole.path / name).unlink()
    looked: list[int] = []
    find = teacher_repair.neurons_on

    def counted(*given: Any, **settings: Any) -> Any:
        looked.append(1)
        return find(*given, **settings)

    monkeypatch.setattr(teacher_repair, "neurons_on", counted)
    again = train_tiny(planted, tmp_path / "run")
    assert (history(again), again.summary["test"], looked) == (rows, test, [])
    train_tiny(planted, tmp_path / "run", overwrite=True)
    assert looked == [1]
    with pytest.raises(UserError, match="repair is True there and False here"):
        train_tiny(planted, tmp_path / "run", repair=False)


def test_a_teacher_without_artefacts_is_left_as_it_is_which_is_said(
    tiny_vit: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flat = tiny_vit(1, **SIZES, pretrained_cfg_overlay={"mean": (0.5,), "std": (0.5,)})
    with torch.no_grad():
        flat.pos_embed.zero_()
        flat.patch_embed.proj.weight.zero_()
    save_vit(flat, tmp_path / "flat")
    run = train_tiny(str(tmp_path / "flat"), tmp_path / "run")
    assert "no artefacts on 20 images, so that it is left as it is" in caplog.text
    usual = train_tiny(str(tmp_path / "flat"), tmp_path / "usual", repair=False)
    assert history(run) == history(usual)
    assert load_run(run.path).network.transfer.teacher is not None


@pytest.mark.parametrize(
    ("preset", "sentence"),
    [
        ("finetune", "repair has no effect without rules that read the teacher, which preset 'finetune' does not have"),
        ("l2sp", "repair has no effect without rules that read the teacher"),
        ("feature-kd", "FeatureKD compares token by token, and repair gives the teacher one more token"),
    ],
)
def test_where_it_has_no_effect_or_no_place_it_is_refused(
    preset: str, sentence: str, planted: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        train_tiny(planted, tmp_path / "run", preset)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_can_not_be_repaired_is_refused_before_anything_is_written(
    tiny_vit: Build, tmp_path: Path
) -> None:
    save_vit(tiny_vit(1, name="vit_relpos_small_patch16_224", **SIZES), tmp_path / "relative")
    with pytest.raises(UserError, match="VisionTransformerRelPos can't be repaired"):
        train_tiny(str(tmp_path / "relative"), tmp_path / "run", "distill")
    assert not (tmp_path / "run").exists()


def test_in_a_grid_it_concerns_the_methods_that_read_the_teacher(planted: str, tmp_path: Path) -> None:
    config = Compare("scratch,distill", teacher=planted, seeds="0", shots="1", grid={"repair": [False, True]})
    cells = Cells(config, tmp_path, grid_of(config))
    assert len(cells.grid) == 4
    assert set(cells.by_name) == {
        "scratch-1shot-seed0",
        "distill-1shot-repair=False-seed0",
        "distill-1shot-repair=True-seed0",
    }
    shared = Compare("scratch,gta", teacher=planted, repair=True)
    runs = [cell for cell in grid_of(shared) if cell.seed == 0]
    asked = [run_of(shared, cell, tmp_path) for cell in runs]
    assert [(each.preset, each.repair) for each in asked] == [("scratch", False), ("gta", True)]
    assert not [problem for each in asked for problem in train_problems(filled_in(each))]
