"""Folders whose configuration or weights are damaged are refused in one sentence, before memory is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from attention_transfer.errors import UserError
from attention_transfer.vit import load_vit, save_vit

Build = Callable[..., Any]
Config = dict[str, Any]


def refusal(name: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_vit(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tiny_vit: Build, tmp_path: Path) -> Path:
    save_vit(tiny_vit(), tmp_path / "m")
    return tmp_path / "m"


def change(folder: Path, how: Callable[[Config], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    how(config)
    (folder / "config.json").write_text(json.dumps(config))


DAMAGES: dict[str, Callable[[Config], object]] = {
    "arguments that are text": lambda c: c.update(model_args="x"),
    "settings that are a number": lambda c: c.update(pretrained_cfg=5),
    "no architecture": lambda c: c.update(architecture=None),
    "an architecture of nobody": lambda c: c.update(architecture="vit_of_nobody"),
    "an architecture without attention": lambda c: c.update(architecture="resnet18"),
    "no patches": lambda c: c["model_args"].update(patch_size=0),
    "heads that do not divide": lambda c: c["model_args"].update(num_heads=7),
    "an unknown pooling": lambda c: c["model_args"].update(global_pool="nope"),
    "an unknown argument": lambda c: c["model_args"].update(nope=1),
    "a mean that is text": lambda c: c["pretrained_cfg"].update(mean="x"),
    "a mean of digits": lambda c: c["pretrained_cfg"].update(mean="123"),
    "a deviation of zero": lambda c: c["pretrained_cfg"].update(std=[0.0]),
    "a mean that is not finite": lambda c: c["pretrained_cfg"].update(mean=[float("nan")]),
    "a million blocks": lambda c: c["model_args"].update(depth=10**6),
    "a width of a billion": lambda c: c["model_args"].update(embed_dim=3 * 10**9),
    "a width of 60,000": lambda c: c["model_args"].update(embed_dim=60_000),
    "an image of a million pixels a side": lambda c: c["model_args"].update(img_size=10**6),
    "classes without end": lambda c: c.update(num_classes=10**400),
}


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_configuration_is_refused(damage: str, pretrained: bool, folder: Path) -> None:
    change(folder, DAMAGES[damage])
    refusal(str(folder), pretrained=pretrained)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "5", "{}", '{"a": 1}', "9" * 5000, "\x00"])
def test_what_is_no_configuration_is_refused_by_its_name(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    assert str(folder / "config.json") in refusal(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", ["a folder", "a file"])
def test_weights_that_are_not_finite_are_refused(form: str, value: float, folder: Path) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    state["blocks.1.mlp.fc1.weight"][0, 0] = value
    save_file(state, file)
    name = str(folder if form == "a folder" else file)
    assert "1 weights of" in refusal(name)
    assert "blocks.1.mlp.fc1.weight" in refusal(name)
    assert isinstance(load_vit(name, pretrained=False), nn.Module)


@pytest.mark.parametrize("form", ["{}", "timm/local-dir:{}", "hf/{}"])
def test_a_folder_of_timm_is_opened_by_any_of_its_names(
    form: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = load_vit(str(folder)).blocks[0].attn.qkv.weight  # type: ignore[index,union-attr]
    monkeypatch.setenv("HOME", str(folder.parent))
    for path in (folder, "~/m"):
        loaded: Any = load_vit(form.format(path))
        assert torch.equal(loaded.blocks[0].attn.qkv.weight, weight)


def test_home_is_known_in_weights_files_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    expected = load_file(folder / "model.safetensors")["blocks.0.attn.qkv.weight"]
    for loaded in (load_vit("~/m/model.safetensors"), load_vit(str(folder), pretrained="~/m/model.safetensors")):
        model: Any = loaded
        assert torch.equal(model.blocks[0].attn.qkv.weight, expected)


def test_a_network_of_a_file_is_named_after_a_hash(tiny_vit: Build, tmp_path: Path) -> None:
    teacher, student = tiny_vit(1, in_chans=3), tiny_vit(2, in_chans=3)
    parts = {"teacher": teacher, "student": student}
    file = str(tmp_path / "model_final.pth")
    torch.save({"model": {f"{n}.backbone.{k}": v for n, m in parts.items() for k, v in m.state_dict().items()}}, file)
    for name, expected in {file: teacher, f"{file}#teacher": teacher, f"{file}#student": student}.items():
        found: Any = load_vit(name)
        assert torch.equal(found.blocks[0].attn.qkv.weight, expected.blocks[0].attn.qkv.weight)
    assert "holds no network 'nobody'" in refusal(f"{file}#nobody")


@pytest.mark.parametrize("name", ["", " ", "x" * 5000, "\x00", "timm/local-dir:/no/such/folder"])
def test_what_can_be_no_name_is_refused(name: str) -> None:
    assert "a model is timm/<name>" in refusal(name)
