from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from attention_transfer.data import eval_transform, load_data
from attention_transfer.errors import UserError
from attention_transfer.vit import describe, load_vit, read_state, save_vit

Build = Callable[..., Any]


@pytest.fixture
def digits_vit() -> nn.Module:
    """The built-in ViT with random weights, which differ from those that another call would draw."""
    return load_vit("builtin/vit_digits", pretrained=False)


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_saved_model_comes_back_with_equal_logits(tiny_vit: Build, images: Tensor, tmp_path: Path) -> None:
    model = tiny_vit()
    save_vit(model, tmp_path / "model")
    for folder in (tmp_path / "model", tmp_path):  # the model's folder, or that of the run around it
        loaded = load_vit(str(folder))
        assert torch.equal(loaded(images), model(images))
        assert not loaded.training


def test_timm_loads_a_saved_model_by_itself(tiny_vit: Build, images: Tensor, tmp_path: Path) -> None:
    model = tiny_vit(name="vit_small_patch14_reg4_dinov2")
    save_vit(model, tmp_path / "model")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    assert torch.equal(loaded(images), model(images))


def test_input_normalisation_is_saved_too(tiny_vit: Build, tmp_path: Path) -> None:
    save_vit(tiny_vit(pretrained_cfg_overlay={"mean": (0.1,), "std": (0.4,)}), tmp_path)
    loaded = load_vit(str(tmp_path))
    assert (describe(loaded).mean, describe(loaded).std) == ((0.1,), (0.4,))


def test_class_names_are_saved_too(tiny_vit: Build, tmp_path: Path) -> None:
    save_vit(tiny_vit(num_classes=2), tmp_path, labels=["cat", "dog"])
    loaded: Any = load_vit(str(tmp_path))
    assert list(loaded.pretrained_cfg["label_names"]) == ["cat", "dog"]


def test_saving_replaces_the_model_that_was_there_and_leaves_what_else_there_was(
    tiny_vit: Build, images: Tensor, tmp_path: Path
) -> None:
    save_vit(tiny_vit(seed=1), tmp_path / "runs" / "model")
    (tmp_path / "runs" / "model" / "old.txt").touch()
    model = tiny_vit(seed=2)
    save_vit(model, tmp_path / "runs" / "model")
    assert torch.equal(load_vit(str(tmp_path / "runs" / "model"))(images), model(images))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["model"]
    assert (tmp_path / "runs" / "model" / "old.txt").exists()


def test_without_pretrained_only_the_shape_is_taken(tiny_vit: Build, images: Tensor, tmp_path: Path) -> None:
    model = tiny_vit()
    save_vit(model, tmp_path)
    loaded = load_vit(str(tmp_path), pretrained=False)
    assert not torch.allclose(loaded(images), model(images))
    assert describe(loaded) == describe(model)


def test_another_number_of_classes_keeps_the_backbone(tiny_vit: Build, images: Tensor, tmp_path: Path) -> None:
    model = tiny_vit()
    save_vit(model, tmp_path)
    loaded: Any = load_vit(str(tmp_path), num_classes=7)
    assert loaded(images).shape == (4, 7)
    assert torch.equal(loaded.forward_features(images), model.forward_features(images))
    assert load_vit(str(tmp_path), num_classes=0)(images).shape == (4, 24)


def test_another_image_size_resamples_the_position_embeddings(tiny_vit: Build, tmp_path: Path) -> None:
    model = tiny_vit()
    save_vit(model, tmp_path)
    loaded: Any = load_vit(str(tmp_path), image_size=16)
    assert loaded(torch.randn(1, 1, 16, 16)).shape == (1, 5)
    torch.testing.assert_close(loaded.pos_embed, resample_abs_pos_embed(model.pos_embed, [4, 4]))
    assert torch.equal(loaded.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)


def test_a_weights_file_is_resampled_to_another_image_size_too(digits_vit: Any, tmp_path: Path) -> None:
    save_file(digits_vit.state_dict(), tmp_path / "weights.safetensors")
    loaded: Any = load_vit("builtin/vit_digits", pretrained=str(tmp_path / "weights.safetensors"), image_size=16)
    torch.testing.assert_close(loaded.pos_embed, resample_abs_pos_embed(digits_vit.pos_embed, [8, 8]))


def test_a_weights_file_gives_timms_architecture_its_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="attention_transfer")
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3).eval()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    spec, path = "timm/vit_tiny_patch16_224", str(tmp_path / "weights.safetensors")
    batch = torch.randn(1, 3, 32, 32)
    loaded = load_vit(spec, pretrained=path, num_classes=3, image_size=32)
    assert torch.equal(loaded(batch), source(batch))
    assert "new: none; left over: none" in caplog.text


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state}], ids=["bare", "in a checkpoint"])
def test_a_pytorch_file_loads_and_a_head_that_does_not_fit_stays_new(
    wrap: Callable[[Any], Any], digits_vit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="attention_transfer")
    torch.save(wrap(digits_vit.state_dict()), tmp_path / "weights.pth")
    spec, path = "builtin/vit_digits", str(tmp_path / "weights.pth")
    batch = torch.randn(2, 1, 8, 8)
    assert torch.equal(load_vit(spec, pretrained=path)(batch), digits_vit(batch))
    caplog.clear()
    loaded: Any = load_vit(spec, pretrained=path, num_classes=3)
    assert loaded(batch).shape == (2, 3)
    assert torch.equal(loaded.forward_features(batch), digits_vit.forward_features(batch))
    assert "new: head.bias, head.weight; left over: head.bias, head.weight" in caplog.text


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("content", ["truncated", "text", "empty"])
def test_a_file_that_is_no_checkpoint_is_refused(content: str, suffix: str, digits_vit: Any, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(digits_vit.state_dict(), path)
    else:
        save_file(digits_vit.state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"Not Found\n", "empty": b""}[content])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_vit("builtin/vit_digits", pretrained=str(path))


@settings(deadline=None, max_examples=60)
@given(content=st.binary(max_size=40))
@example(content=b".")
@example(content=b"K")
@example(content=b"hello world\n")
@example(content=b"\x80\x02}q\x00.")
def test_no_bytes_get_past_as_weights_or_as_another_error(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pth"):
        read_state(path)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {"step": 1}, {}, None], ids=repr)
def test_a_checkpoint_without_named_tensors_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth"):
        read_state(tmp_path / "weights.pth")


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": Malicious(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="pickled code"):
        load_vit("builtin/vit_digits", pretrained=str(tmp_path / "weights.pth"))
    assert not (tmp_path / "ran").exists()
    # The file does run code for those who let it.
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no weights file"):
        load_vit("builtin/vit_digits", pretrained=str(tmp_path / "nothing.pth"))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"depth": 2}, "weights are missing"),
        ({"embed_dim": 48}, "another shape"),
    ],
)
def test_weights_of_another_architecture_are_refused(
    overrides: dict[str, int], reason: str, tiny_vit: Build, tmp_path: Path
) -> None:
    digits = {"patch_size": 2, "embed_dim": 96, "depth": 6, "num_classes": 10, "global_pool": "avg"}
    save_file(tiny_vit(**{**digits, **overrides}).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=f"another architecture than builtin/vit_digits: .*{reason}"):
        load_vit("builtin/vit_digits", pretrained=str(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("timm/vit_tiny_patch16_22", "did you mean timm/vit_tiny_patch16_224"),
        ("builtin/vit_digit", "did you mean 'vit_digits'"),
        ("timm/zzzz", "list_models"),
        ("nowhere/at/all", "not found.*timm/<name>, hf/<name or folder>.*builtin/vit_digits, the folder"),
    ],
)
def test_an_unknown_name_is_refused_with_what_there_is(spec: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        load_vit(spec, pretrained=False)


def test_the_builtin_has_no_weights_to_ask_for() -> None:
    with pytest.raises(UserError, match="no weights of its own"):
        load_vit("builtin/vit_digits")


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(UserError, match="ResNet has no supported attention"):
        load_vit("timm/resnet18", pretrained=False)


def test_a_folder_that_is_no_model_is_refused(tiny_vit: Build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_vit(str(tmp_path))
    save_vit(tiny_vit(), tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{broken")
    with pytest.raises(UserError, match="no JSON"):
        load_vit(str(tmp_path))
    (tmp_path / "model" / "config.json").write_text('{"architecture": "vit_tiny_patch16_224", "model_args": 3}')
    with pytest.raises(UserError, match="cannot be loaded"):
        load_vit(str(tmp_path))


def test_a_folder_with_damaged_weights_is_refused(tiny_vit: Build, tmp_path: Path) -> None:
    save_vit(tiny_vit(), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_vit(str(tmp_path))
    weights.unlink()
    with pytest.raises(UserError, match="there is no weights file"):
        load_vit(str(tmp_path))


def test_a_file_whose_architecture_cannot_be_read_is_told_how_to_be_used(tmp_path: Path) -> None:
    save_file({"tower.weight": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="name the architecture and give the file as its weights"):
        load_vit(str(tmp_path / "weights.safetensors"))


def test_the_network_of_characters_comes_with_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was trained for is in the package; the file is the one that its page describes."""
    # The images that it is tested with are the same, however many there are to train with.
    monkeypatch.setattr("attention_transfer.data.scenes._A_CHARACTER", {"train": 1, "validation": 1, "test": 30})
    page = files("attention_transfer.vit").joinpath("pretrained", "README.md").read_text(encoding="utf-8")
    content = files("attention_transfer.vit").joinpath("pretrained", "vit_characters.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() in page
    model: Any = load_vit("builtin/vit_characters")
    spec, test = describe(model), load_data("character-scenes").test
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    some = range(0, len(test), 5)
    images = torch.stack([eval_transform(spec)(test.images[i]) for i in some])
    with torch.no_grad():
        found = model(images).argmax(dim=1)
    assert (found == torch.from_numpy(test.labels[::5])).float().mean() > 0.9


def test_the_network_of_characters_takes_other_sizes_and_classes() -> None:
    own: Any = load_vit("builtin/vit_characters")
    other: Any = load_vit("builtin/vit_characters", image_size=96, num_classes=3)
    assert describe(other).grid == (12, 12)
    torch.testing.assert_close(other.blocks[2].attn.qkv.weight, own.blocks[2].attn.qkv.weight)
    assert other(torch.zeros(1, 3, 96, 96)).shape == (1, 3)


@pytest.mark.parametrize("size", [0, -3, 4097, 10**9, (8, 10**9)])
def test_a_size_that_would_fill_memory_is_refused(size: Any) -> None:
    with pytest.raises(UserError, match="give a number of pixels from 1 to 4096"):
        load_vit("builtin/vit_digits", pretrained=False, image_size=size)
