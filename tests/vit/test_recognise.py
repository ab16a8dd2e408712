"""A weights file by itself: its architecture is read from the shapes, and the network computes what its source does."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.vit import describe, load_vit, save_vit, student_from, student_like

State = dict[str, Tensor]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# 16 patches, and two heads of 64 dimensions, as the number of heads is read from the width.
SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0}
CLASS = ("class",)


def vit(name: str = "vit_base_patch16_224", **overrides: Any) -> Any:
    """A small ViT whose weights are spread, so that a wrong one would be seen."""
    model = timm.create_model(name, **{**SIZE, **overrides})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.1))
    return model.eval()


def pixels(height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(7))


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def renamed(state: State, **names: str) -> State:
    return {names.get(key, key): value for key, value in state.items()}


def other(state: State) -> State:
    return {key: value + 1 for key, value in state.items()}


def with_mask(state: State) -> State:
    return {**state, "mask_token": torch.zeros(1, 128)}


def gated(state: State) -> State:
    return with_mask({re.sub(r"mlp\.fc1", "mlp.w12", re.sub(r"mlp\.fc2", "mlp.w3", k)): v for k, v in state.items()})


def mae_with_decoder(state: State) -> dict[str, Any]:
    block = {key.replace("blocks.0", "decoder_blocks.7"): value for key, value in state.items() if "blocks.0" in key}
    tokens = {"mask_token": torch.zeros(1, 1, 128), "decoder_pos_embed": torch.zeros(1, 17, 64)}
    return {"model": state | block | tokens, "args": argparse.Namespace(mask_ratio=0.75)}


def moco(state: State) -> dict[str, Any]:
    head = {"head.0.weight": torch.zeros(4096, 128), "head.7.running_mean": torch.zeros(256)}
    base = under("module.base_encoder.", state | head)
    return {"arch": "vit_base", "state_dict": base | under("module.momentum_encoder.", other(state) | head)}


def dino(state: State) -> dict[str, Any]:
    student = under("module.backbone.", other(state)) | {"module.head.mlp.0.weight": torch.zeros(4, 4)}
    return {"student": student, "teacher": under("backbone.", state) | {"head.mlp.0.weight": torch.zeros(4, 4)}}


def jepa(state: State) -> dict[str, Any]:
    return {"encoder": under("module.", other(state)), "target_encoder": under("module.", state)}


def attention_transfer(state: State) -> dict[str, Any]:
    return {"model": under("teacher.", other(state)) | under("student.", state), "args": argparse.Namespace(lr=1e-4)}


@dataclass(frozen=True)
class Case:
    """A model, the layout that it is written in, and what is known about it by hand."""

    write: Callable[[State], dict[str, Any]]
    model: dict[str, Any] = field(default_factory=dict)
    components: frozenset[str] = frozenset()
    prefix: tuple[str, ...] = CLASS


SCALED = frozenset({"LayerScale"})
AVERAGED = {"global_pool": "avg", "num_classes": 5}
DISTILLED: dict[str, Any] = {"name": "deit_base_distilled_patch16_224", "num_classes": 5}
GIANT: dict[str, Any] = {"name": "vit_giant_patch14_dinov2"}
FOUR = ("register",) * 4

CASES = {
    "MAE": Case(lambda state: {"model": state}),
    "MAE, with decoder": Case(mae_with_decoder),
    "MAE, fine-tuned": Case(lambda state: {"model": state}, AVERAGED),
    "DINO": Case(lambda state: state),
    "DINO, training": Case(dino),
    "DINO, 14 blocks of three heads": Case(lambda state: state, {"depth": 14, "embed_dim": 192, "num_heads": 3}),
    "DINOv2": Case(with_mask, {"name": "vit_small_patch14_dinov2"}, SCALED),
    "DINOv2, giant": Case(gated, GIANT, SCALED | {"gated MLP"}),
    "DINOv2, teacher": Case(
        lambda state: {"teacher": under("backbone.", with_mask(state))}, {"name": "vit_small_patch14_dinov2"}, SCALED
    ),
    "DINOv2 of timm, registers": Case(
        lambda state: state,
        {"name": "vit_small_patch14_reg4_dinov2"},
        SCALED | {"registers"},
        CLASS + FOUR,
    ),
    "MoCo v3": Case(moco),
    "iBOT": Case(lambda state: {"state_dict": state}),
    "MSN": Case(jepa),
    "I-JEPA": Case(jepa, {"name": "vit_huge_patch14_gap_224"}, prefix=()),
    "DeiT": Case(lambda state: {"model": state}, {"name": "deit_base_patch16_224", "num_classes": 5}),
    "DeiT, distilled": Case(
        lambda state: {"model": state}, DISTILLED, frozenset({"distillation token"}), ("class", "distillation")
    ),
    "DeiT-3 of timm": Case(lambda state: state, {"name": "deit3_base_patch16_224"}, SCALED),
    "Attention Transfer": Case(attention_transfer, AVERAGED),
    "without bias": Case(lambda state: state, {"qkv_bias": False}),
    "q/k norm": Case(lambda state: state, {"qk_norm": True}, frozenset({"q/k norm"})),
    "one channel": Case(lambda state: state, {"in_chans": 1}),
    "a narrow MLP": Case(lambda state: state, {"mlp_ratio": 1.5}),
    "without a class token": Case(lambda state: state, {"class_token": False, **AVERAGED}, prefix=()),
}
EVERY_CASE = pytest.mark.parametrize("case", [pytest.param(c, id=name) for name, c in CASES.items()])


@EVERY_CASE
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_file_alone_gives_the_network_that_it_was_saved_from(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "attention_transfer")
    source = vit(**case.model)
    torch.save(case.write(source.state_dict()), tmp_path / "weights.pth")
    loaded: Any = load_vit(str(tmp_path / "weights.pth"))
    images = pixels(channels=case.model.get("in_chans", 3))
    assert torch.equal(loaded.forward_features(images), source.forward_features(images))
    assert torch.equal(loaded(images), source(images))
    assert not loaded.training
    found = describe(loaded)
    assert (found.components, found.tokens.prefix) == (case.components, case.prefix)
    assert (found.image_size, found.grid) == ((32, 32), (4, 4))
    assert found.classes == case.model.get("num_classes", 0)
    width = case.model.get("embed_dim", 128)
    assert (found.depth, found.width, found.heads) == (case.model.get("depth", 2), width, width // 64)
    read = f"read as a ViT with {found.depth} blocks of width {width} and {found.heads} heads, patches of 8, images of"
    assert f"{tmp_path / 'weights.pth'}: {read} 32×32" in caplog.text
    assert " weights loaded; new: none; left over: " in caplog.text


def test_dinov2_with_registers_alone_gives_its_features(tmp_path: Path) -> None:
    source = vit("vit_small_patch14_reg4_dinov2")
    token, position = torch.randn(1, 1, 128), torch.randn(1, 1, 128)
    with torch.no_grad():
        source.cls_token.copy_(token + position)
    published = with_mask(renamed(source.state_dict(), reg_token="register_tokens")) | {
        "cls_token": token,
        "pos_embed": torch.cat([position, source.pos_embed.detach()], dim=1),
    }
    torch.save(published, tmp_path / "weights.pth")
    loaded: Any = load_vit(str(tmp_path / "weights.pth"))
    assert torch.equal(loaded.forward_features(pixels()), source.forward_features(pixels()))
    assert describe(loaded).tokens.prefix == CLASS + FOUR
    assert describe(loaded).components == {"LayerScale", "registers"}


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16), (1280, 16), (1536, 24)])
def test_the_number_of_heads_is_that_of_the_published_widths(width: int, heads: int, tmp_path: Path) -> None:
    source = timm.create_model("vit_base_patch16_224", **{**SIZE, "embed_dim": width, "depth": 1, "mlp_ratio": 0.1})
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    assert describe(load_vit(str(tmp_path / "weights.pth"), pretrained=False)).heads == heads


def test_the_small_network_of_moco_v3_has_twelve_heads(tmp_path: Path) -> None:
    source = vit(embed_dim=384, num_heads=12, depth=1)
    torch.save({**moco(source.state_dict()), "arch": "vit_small"}, tmp_path / "vit-s-300ep.pth.tar")
    loaded: Any = load_vit(str(tmp_path / "vit-s-300ep.pth.tar"))
    assert torch.equal(loaded.forward_features(pixels()), source.forward_features(pixels()))


@pytest.mark.parametrize("case", ["MAE", "DINO", "DINOv2", "MoCo v3", "iBOT", "MSN"])
def test_images_are_normalised_as_the_published_projects_do(case: str, tmp_path: Path) -> None:
    source = vit(**CASES[case].model)
    torch.save(CASES[case].write(source.state_dict()), tmp_path / "weights.pth")
    found = describe(load_vit(str(tmp_path / "weights.pth")))
    assert (found.mean, found.std) == IMAGENET


def test_images_of_a_distilled_deit_are_normalised_as_it_was_trained(tmp_path: Path) -> None:
    torch.save({"model": vit(**DISTILLED).state_dict()}, tmp_path / "weights.pth")
    found = describe(load_vit(str(tmp_path / "weights.pth")))
    assert (found.mean, found.std) == IMAGENET


def test_a_safetensors_file_is_read_too(tmp_path: Path) -> None:
    source = vit(num_classes=5)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    assert torch.equal(load_vit(str(tmp_path / "model.safetensors"))(pixels()), source(pixels()))


def test_the_network_of_a_file_can_be_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "attention_transfer")
    student, teacher = vit(num_classes=5), vit(num_classes=7, depth=3)
    networks = under("teacher.", teacher.state_dict()) | under("student.", student.state_dict())
    torch.save({"model": networks}, tmp_path / "weights.pth")
    assert torch.equal(load_vit(str(tmp_path / "weights.pth"), network="teacher")(pixels()), teacher(pixels()))
    assert torch.equal(load_vit(str(tmp_path / "weights.pth"), network="student")(pixels()), student(pixels()))
    assert "taken" not in caplog.text
    assert torch.equal(load_vit(str(tmp_path / "weights.pth"))(pixels()), student(pixels()))
    assert "weights.pth holds model.student, model.teacher; taken: model.student, the network that was" in caplog.text
    with pytest.raises(UserError, match=r"holds no network 'ema'; it holds model\.student, model\.teacher$"):
        load_vit(str(tmp_path / "weights.pth"), network="ema")


def test_a_choice_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "attention_transfer")
    torch.save(dino(vit().state_dict()), tmp_path / "weights.pth")
    load_vit(str(tmp_path / "weights.pth"))
    assert caplog.text.count("taken: teacher.backbone") == 1


def test_another_head_is_new_and_the_features_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "attention_transfer")
    source = vit(num_classes=5)
    torch.save({"model": source.state_dict()}, tmp_path / "weights.pth")
    for classes, shape in ((3, (2, 3)), (0, (2, 128))):
        loaded: Any = load_vit(str(tmp_path / "weights.pth"), num_classes=classes)
        assert loaded(pixels()).shape == shape
        assert torch.equal(loaded.forward_features(pixels()), source.forward_features(pixels()))
    assert "new: head.bias, head.weight; left over: head.bias, head.weight" in caplog.text


def test_without_pretrained_only_the_shape_is_taken(tmp_path: Path) -> None:
    source = vit(num_classes=5)
    torch.save({"model": source.state_dict()}, tmp_path / "weights.pth")
    loaded: Any = load_vit(str(tmp_path / "weights.pth"), pretrained=False)
    assert not torch.allclose(loaded(pixels()), source(pixels()))
    assert {key: value.shape for key, value in loaded.state_dict().items()} == {
        key: value.shape for key, value in source.state_dict().items()
    }


def test_a_file_and_a_second_file_are_refused(tmp_path: Path) -> None:
    torch.save(vit().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth is a weights file already; name an architecture, or leave"):
        load_vit(str(tmp_path / "weights.pth"), pretrained=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("size", [64, (32, 64), (16, 24)], ids=str)
def test_another_image_size_resamples_the_position_embeddings(size: int | tuple[int, int], tmp_path: Path) -> None:
    source = vit(num_classes=5)
    torch.save({"model": source.state_dict()}, tmp_path / "weights.pth")
    loaded: Any = load_vit(str(tmp_path / "weights.pth"), image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    found = describe(loaded)
    assert (found.image_size, found.grid) == ((height, width), (height // 8, width // 8))
    torch.testing.assert_close(loaded.pos_embed, resample_abs_pos_embed(source.pos_embed, list(found.grid)))
    assert loaded(pixels(height, width)).shape == (2, 5)


def test_another_patch_size_resamples_the_kernel_and_the_positions(tmp_path: Path) -> None:
    source = vit(num_classes=5)
    torch.save({"model": source.state_dict()}, tmp_path / "weights.pth")
    loaded: Any = load_vit(str(tmp_path / "weights.pth"), patch_size=4)
    assert (describe(loaded).image_size, describe(loaded).grid) == ((32, 32), (8, 8))
    kernel = resample_patch_embed(source.patch_embed.proj.weight.detach(), [4, 4])
    torch.testing.assert_close(loaded.patch_embed.proj.weight.detach(), kernel)
    torch.testing.assert_close(loaded.pos_embed, resample_abs_pos_embed(source.pos_embed, [8, 8]))


def test_a_grid_that_is_not_square_is_read_with_its_image_size(tmp_path: Path) -> None:
    source = vit(img_size=(24, 32), num_classes=5)
    torch.save({"model": source.state_dict()}, tmp_path / "weights.pth")
    loaded = load_vit(str(tmp_path / "weights.pth"), image_size=(24, 32))
    assert torch.equal(loaded(pixels(24, 32)), source(pixels(24, 32)))


def test_a_grid_that_is_not_square_is_told_to_name_its_image_size(tmp_path: Path) -> None:
    torch.save({"model": vit(img_size=(24, 32)).state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"image.size"):
        load_vit(str(tmp_path / "weights.pth"))


def test_a_network_of_a_file_is_saved_and_comes_back(tmp_path: Path) -> None:
    source = vit("vit_small_patch14_dinov2", num_classes=5)
    torch.save(with_mask(source.state_dict()), tmp_path / "weights.pth")
    save_vit(load_vit(str(tmp_path / "weights.pth")), tmp_path / "model")
    assert torch.equal(load_vit(str(tmp_path / "model"))(pixels()), source(pixels()))


def test_the_giant_of_dinov2_is_saved_and_comes_back(tmp_path: Path) -> None:
    torch.save(gated(vit(**GIANT).state_dict()), tmp_path / "weights.pth")
    loaded = load_vit(str(tmp_path / "weights.pth"))
    save_vit(loaded, tmp_path / "model")
    assert torch.equal(load_vit(str(tmp_path / "model"))(pixels()), loaded(pixels()))


def test_students_are_made_of_a_network_of_a_file(tmp_path: Path) -> None:
    source = vit("vit_small_patch14_dinov2")
    torch.save(with_mask(source.state_dict()), tmp_path / "weights.pth")
    teacher = load_vit(str(tmp_path / "weights.pth"))
    fresh, copied = student_like(teacher, num_classes=3), student_from(teacher, num_classes=3)
    assert describe(fresh).components == describe(copied).components == {"LayerScale"}
    weights: Any = copied
    assert torch.equal(weights.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)


# Networks whose shapes do not say all that they compute.


def refusal(state: State, tmp_path: Path) -> str:
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(UserError) as caught:
        load_vit(str(path))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(f"name the architecture and give the file as its weights: timm/<name> --pretrained {path}")
    return sentence


@pytest.mark.parametrize(
    "name",
    [
        "beit_base_patch16_224",
        "vit_small_patch16_dinov3",
        "vit_small_patch16_rope_224",
    ],
)
def test_what_shapes_do_not_tell_is_refused(name: str, tmp_path: Path) -> None:
    assert "can't be read from its weights" in refusal(vit(name).state_dict(), tmp_path)


def test_an_eva_is_refused_as_another_architecture(tmp_path: Path) -> None:
    torch.save(vit("eva02_tiny_patch14_224").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(
        UserError, match=r"holds another architecture .*; name the architecture that it was saved from$"
    ):
        load_vit(str(tmp_path / "weights.pth"))


def test_a_rope_without_weights_is_not_read_as_a_plain_vit(tmp_path: Path) -> None:
    assert "can't be read from its weights" in refusal(vit("vit_pe_core_tiny_patch16_384").state_dict(), tmp_path)


def test_a_pooling_head_is_read_or_refused(tmp_path: Path) -> None:
    assert "can't be read from its weights" in refusal(vit("vit_base_patch16_siglip_224").state_dict(), tmp_path)


def damaged(how: str) -> State:
    state: State = vit().state_dict()
    if how == "a linear patch embedding":
        state["patch_embed.proj.weight"] = torch.zeros(128, 192)
        return state
    gone = {
        "no patch embedding": "patch_embed",
        "no blocks": "blocks",
        "no first block": "blocks.0",
        "no norm": "blocks.0.norm1",
        "no positions": "pos_embed",
        "no MLP": "blocks.0.mlp",
    }[how]
    return {key: value for key, value in state.items() if not key.startswith(gone)}


@pytest.mark.parametrize(
    "how", ["no patch embedding", "no blocks", "no first block", "no norm", "a linear patch embedding"]
)
def test_a_file_that_holds_no_whole_vit_is_refused(how: str, tmp_path: Path) -> None:
    assert "can't be read from its weights" in refusal(damaged(how), tmp_path)


@pytest.mark.parametrize("how", ["no positions", "no MLP", "relative positions"])
def test_a_file_without_positions_or_mlp_is_refused(how: str, tmp_path: Path) -> None:
    relative = how == "relative positions"
    state = vit("vit_relpos_small_patch16_224").state_dict() if relative else damaged(how)
    assert "can't be read from its weights" in refusal(state, tmp_path)


def test_blocks_that_are_not_alike_are_refused(tmp_path: Path) -> None:
    state = vit().state_dict()
    state["blocks.1.ls1.gamma"] = torch.ones(128)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"blocks\.0\.ls1\.gamma is not in it"):
        load_vit(str(tmp_path / "weights.pth"))
    del state["blocks.1.ls1.gamma"], state["blocks.0.attn.proj.bias"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.proj\.bias is not in it"):
        load_vit(str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("state", [{"encoder.layer.0.weight": torch.zeros(2)}, nn.Linear(2, 2).state_dict()])
def test_what_is_no_vit_is_refused(state: State, tmp_path: Path) -> None:
    assert "can't be read from its weights" in refusal(state, tmp_path)


def test_patches_that_are_not_square_are_kept_or_refused(tmp_path: Path) -> None:
    source = vit(patch_size=(4, 8), img_size=(16, 32))
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    try:
        loaded = load_vit(str(tmp_path / "weights.pth"))
    except UserError:
        return
    assert torch.equal(loaded(pixels(16, 32)), source(pixels(16, 32)))
