"""Files in the layouts of the projects that publish them give a named architecture their weights, and others none."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.vit import describe, labels_of, load_vit, save_vit, student_from, student_like

Build = Callable[..., Any]
State = dict[str, Tensor]
WIDTH = 24  # of tiny_vit


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def without(state: State, *beginnings: str) -> State:
    return {key: value for key, value in state.items() if not key.startswith(beginnings)}


def renamed(state: State, pattern: str, replacement: str) -> State:
    return {re.sub(pattern, replacement, key): value for key, value in state.items()}


def other(state: State) -> State:
    """Another network of the same shapes."""
    return {key: value + 1 for key, value in state.items()}


def linear(name: str, outputs: int = 6) -> State:
    return {f"{name}.weight": torch.randn(outputs, WIDTH), f"{name}.bias": torch.randn(outputs)}


def trained(**networks: State) -> dict[str, Any]:
    """Networks in a training checkpoint as MAE, DINO and DeiT write it."""
    optimizer = {"state": {0: {"exp_avg": torch.zeros(WIDTH)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    return {**networks, "optimizer": optimizer, "epoch": 3, "args": argparse.Namespace(lr=1e-3, output_dir="")}


def mae(state: State) -> dict[str, Any]:
    return {"model": without(state, "head", "fc_norm") | linear("norm", WIDTH)}


def mae_with_decoder(state: State) -> dict[str, Any]:
    block = {key.replace("blocks.0", "decoder_blocks.0"): v for key, v in state.items() if key.startswith("blocks.0")}
    tokens = {"mask_token": torch.zeros(1, 1, WIDTH), "decoder_pos_embed": torch.zeros(1, 5, WIDTH)}
    decoder = linear("decoder_embed", WIDTH) | linear("decoder_norm", WIDTH) | linear("decoder_pred", 48)
    return trained(model=state | tokens | block | decoder)


def dino(state: State) -> dict[str, Any]:
    head = linear("head.mlp.0", 48) | {"head.last_layer.weight_g": torch.ones(8, 1)}
    student = under("module.", under("backbone.", other(state)) | head)
    return trained(student=student, teacher=under("backbone.", state) | head, dino_loss={"center": torch.zeros(1, 8)})


def dinov2(state: State) -> dict[str, Any]:
    return {**state, "mask_token": torch.zeros(1, WIDTH)}


def dinov2_teacher(state: State) -> dict[str, Any]:
    heads = linear("dino_head.mlp.0") | linear("ibot_head.mlp.0")
    return {"teacher": under("backbone.", dinov2(state)) | heads}


def dinov2_chunked(state: State) -> dict[str, Any]:
    """Blocks in two chunks, as `block_chunks` of DINOv2's training leaves them: chunk 1 counts on from chunk 0."""
    chunks = {key: re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}", key) for key in state}
    return {
        "teacher": under("backbone.", {chunks[key]: value for key, value in dinov2(state).items() if key in chunks})
    }


def dinov2_giant(state: State) -> dict[str, Any]:
    return dinov2(renamed(renamed(state, r"mlp\.fc1\.", "mlp.w12."), r"mlp\.fc2\.", "mlp.w3."))


def moco(state: State) -> dict[str, Any]:
    head = {"head.0.weight": torch.zeros(48, WIDTH), "head.1.running_mean": torch.zeros(48)}
    predictor = {"module.predictor.0.weight": torch.zeros(48, 8)}
    base = under("module.base_encoder.", state | head)
    return {"state_dict": base | under("module.momentum_encoder.", other(state) | head) | predictor, "epoch": 300}


def ibot(state: State) -> dict[str, Any]:
    head = linear("head.mlp.0") | {"head.last_layer2.weight_g": torch.ones(8, 1)}
    masked = {"masked_embed": torch.zeros(1, WIDTH)}
    teacher = under("backbone.", state) | head
    return trained(student=under("module.", under("backbone.", other(state) | masked) | head), teacher=teacher)


def msn(state: State) -> dict[str, Any]:
    head = linear("fc.fc1") | linear("pred.fc1") | {"fc.bn1.running_mean": torch.zeros(6)}
    encoder, target = (under("module.", network | head) for network in (other(state), state))
    return {"encoder": encoder, "target_encoder": target, "prototypes": torch.zeros(4, 6), "opt": {"state": {}}}


def deit_training(state: State) -> dict[str, Any]:
    return trained(model=other(state), model_ema=state)


def deit3(state: State) -> dict[str, Any]:
    return {"model": renamed(state, r"\.ls([12])\.gamma$", r".gamma_\1")}


def beit(state: State) -> dict[str, Any]:
    """The pre-trained release: the table of the first block is that of all; the blocks of `SHARED` agree on it."""
    own = re.compile(r"attn\.relative_position_bias_table$")
    shared = {
        "rel_pos_bias.relative_position_bias_table": state["blocks.0.attn.relative_position_bias_table"],
        "rel_pos_bias.relative_position_index": torch.zeros(5, 5, dtype=torch.long),
        "mask_token": torch.zeros(1, 1, WIDTH),
    }
    backbone = {key: value for key, value in without(state, "head", "fc_norm").items() if not own.search(key)}
    return {"model": backbone | shared | linear("norm", WIDTH) | linear("lm_head")}


def beit_fine_tuned(state: State) -> dict[str, Any]:
    index = {f"blocks.{i}.attn.relative_position_index": torch.zeros(5, 5, dtype=torch.long) for i in range(3)}
    return {"model": state | index}


def attention_transfer(state: State) -> dict[str, Any]:
    return trained(model=under("teacher.", without(other(state), "head")) | under("student.", state))


def split(state: State, q: str, k: str, v: str) -> State:
    """The fused weights of queries, keys and values as three."""
    parts: State = {}
    for key, value in state.items():
        if ".qkv." in key:
            parts |= {key.replace("qkv", n): part for n, part in zip((q, k, v), value.chunk(3), strict=True)}
        else:
            parts[key] = value
    return parts


@dataclass(frozen=True)
class Layout:
    """How a project writes a model of timm, and what is said when it is loaded."""

    write: Callable[[State], dict[str, Any]]
    log: str = "new: none; left over: none"
    model: dict[str, Any] = field(default_factory=dict)
    logits: bool = False  # whether the head is in the file; elsewhere the last block is compared


BARE: dict[str, Any] = {"num_classes": 0}
DINOV2: dict[str, Any] = {"name": "vit_small_patch14_dinov2", "num_classes": 0}
GIANT: dict[str, Any] = {"name": "vit_giant_patch14_dinov2", "num_classes": 0}
BEIT: dict[str, Any] = {"name": "beit_base_patch16_224", "init_values": 0.1}
SHARED = BEIT | {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
AVERAGED: dict[str, Any] = {"global_pool": "avg"}
DISTILLED: dict[str, Any] = {"name": "deit_tiny_distilled_patch16_224"}
NEW = "new: fc_norm.bias, fc_norm.weight, head.bias, head.weight; left over: "

LAYOUTS = {
    "MAE": Layout(mae, NEW + "norm.bias, norm.weight", AVERAGED),
    "MAE, fine-tuned": Layout(lambda state: {"model": state}, model=AVERAGED, logits=True),
    "MAE, with decoder": Layout(mae_with_decoder, "left over: decoder_blocks.0.attn.proj.bias, ", BARE),
    "DINO": Layout(lambda state: state, model=BARE),
    "DINO, training": Layout(dino, model=BARE),
    "DINOv2": Layout(dinov2, model=DINOV2),
    "DINOv2, giant": Layout(dinov2_giant, model=GIANT),
    "DINOv2, teacher": Layout(dinov2_teacher, model=DINOV2),
    "DINOv2, chunked": Layout(dinov2_chunked, model=DINOV2),
    "MoCo v3": Layout(moco, "left over: head.0.weight, head.1.running_mean", BARE),
    "iBOT": Layout(ibot, model=BARE),
    "MSN": Layout(msn, "left over: fc.bn1.running_mean, fc.fc1.bias, fc.fc1.weight, pred.fc1.bias", BARE),
    "DeiT": Layout(lambda state: {"model": state}, logits=True),
    "DeiT, distilled": Layout(lambda state: {"model": state}, model=DISTILLED, logits=True),
    "DeiT, training": Layout(deit_training, logits=True),
    "DeiT-3": Layout(
        deit3,
        model={"name": "deit3_small_patch16_224"},
        logits=True,
    ),
    "BEiT": Layout(beit, NEW + "lm_head.bias, lm_head.weight, mask_token, norm.bias, norm.weight", BEIT),
    "BEiT, fine-tuned": Layout(beit_fine_tuned, model=BEIT, logits=True),
    "BEiT, DeepSpeed": Layout(lambda state: {"module": state}, model=BEIT, logits=True),
    "BEiT, shared": Layout(lambda state: {"model": state}, model=SHARED, logits=True),
    "Attention Transfer": Layout(attention_transfer, model=AVERAGED, logits=True),
    "q, k, v": Layout(lambda state: split(state, "q", "k", "v"), logits=True),
    "q_proj, k_proj, v_proj": Layout(lambda state: split(state, "q_proj", "k_proj", "v_proj"), logits=True),
    "to_q, to_k, to_v": Layout(lambda state: split(state, "to_q", "to_k", "to_v"), logits=True),
    "wq, wk, wv": Layout(lambda state: split(state, "wq", "wk", "wv"), logits=True),
    "q, k, v without bias": Layout(lambda state: split(state, "q", "k", "v"), model={"qkv_bias": False}, logits=True),
}
EVERY_LAYOUT = pytest.mark.parametrize("layout", [pytest.param(layout, id=name) for name, layout in LAYOUTS.items()])


@pytest.fixture
def source(tiny_vit: Build) -> Build:
    """Builds the model that a file holds; the blocks of a BEiT all have the table of the first."""

    def build(layout: Layout) -> Any:
        model = tiny_vit(seed=1, **layout.model)
        if layout.write is beit:
            for block in model.blocks[1:]:
                block.attn.relative_position_bias_table = model.blocks[0].attn.relative_position_bias_table
        return model

    return build


@pytest.fixture
def blank(tiny_vit: Build, tmp_path: Path) -> Callable[..., str]:
    """Writes a folder with a model whose weights are no other's, and names it."""

    def write(**model: Any) -> str:
        save_vit(tiny_vit(seed=2, **model), tmp_path / "blank")
        return str(tmp_path / "blank")

    return write


def last_block(model: Any, images: Tensor) -> Tensor:
    """Tokens after the last block, before any norm or pooling."""
    return torch.cat([tensor.flatten() for tensor in model.forward_intermediates(images, norm=False)[1]])


@EVERY_LAYOUT
def test_a_published_file_gives_the_architecture_its_very_weights(
    layout: Layout,
    source: Build,
    blank: Callable[..., str],
    images: Tensor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "attention_transfer")
    model = source(layout)
    torch.save(layout.write(model.state_dict()), tmp_path / "weights.pth")
    loaded: Any = load_vit(blank(**layout.model), pretrained=str(tmp_path / "weights.pth"))
    assert torch.equal(last_block(loaded, images), last_block(model, images))
    if layout.logits:
        assert torch.equal(loaded(images), model(images))
    elif not hasattr(loaded, "fc_norm") or isinstance(loaded.fc_norm, nn.Identity):
        assert torch.equal(loaded.forward_features(images), model.forward_features(images))
    line = next(record.getMessage() for record in caplog.records if "weights loaded" in record.getMessage())
    count = len(model.state_dict()) - (4 if layout.log.startswith(NEW) else 0)
    assert line.startswith(f"{tmp_path / 'weights.pth'}: {count} weights loaded; new: ")
    assert layout.log in line
    assert not loaded.training


def test_dinov2_with_registers_adds_the_position_of_the_class_token_to_it(
    tiny_vit: Build, blank: Callable[..., str], images: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "attention_transfer")
    registers: dict[str, Any] = {"name": "vit_small_patch14_reg4_dinov2", "num_classes": 0}
    model = tiny_vit(seed=1, **registers)
    token, position = torch.randn(1, 1, WIDTH), torch.randn(1, 1, WIDTH)
    with torch.no_grad():
        model.cls_token.copy_(token + position)
    published = renamed(model.state_dict(), "^reg_token$", "register_tokens") | {
        "cls_token": token,
        "pos_embed": torch.cat([position, model.pos_embed.detach()], dim=1),
        "mask_token": torch.zeros(1, WIDTH),
    }
    torch.save(published, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    loaded: Any = load_vit(blank(**registers), pretrained=str(tmp_path / "dinov2_vits14_reg4_pretrain.pth"))
    assert torch.equal(loaded.forward_features(images), model.forward_features(images))
    assert describe(loaded).tokens.prefix == ("class", *("register",) * 4)
    assert "new: none; left over: none" in caplog.text


def test_a_safetensors_file_does_as_well_as_one_of_pytorch(
    tiny_vit: Build, blank: Callable[..., str], images: Tensor, tmp_path: Path
) -> None:
    model = tiny_vit(seed=1)
    save_file(under("module.", model.state_dict()), tmp_path / "weights.safetensors")
    assert torch.equal(load_vit(blank(), pretrained=str(tmp_path / "weights.safetensors"))(images), model(images))


def test_half_precision_is_read_in_single_precision(tiny_vit: Build, blank: Callable[..., str], tmp_path: Path) -> None:
    model = tiny_vit(seed=1)
    torch.save({key: value.half() for key, value in model.state_dict().items()}, tmp_path / "weights.pth")
    loaded: Any = load_vit(blank(), pretrained=str(tmp_path / "weights.pth"))
    assert loaded.head.weight.dtype == torch.float32
    assert torch.equal(loaded.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight.half().float())


def test_the_network_of_a_file_can_be_chosen(
    tiny_vit: Build, blank: Callable[..., str], images: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "attention_transfer")
    teacher, student = tiny_vit(seed=3), tiny_vit(seed=4)
    networks = under("teacher.", teacher.state_dict()) | under("student.", student.state_dict())
    torch.save(trained(model=networks), tmp_path / "release.pth")
    folder, path = blank(), str(tmp_path / "release.pth")
    assert torch.equal(load_vit(folder, pretrained=path, network="teacher")(images), teacher(images))
    assert torch.equal(load_vit(folder, pretrained=path, network="student")(images), student(images))
    assert "taken:" not in caplog.text
    assert torch.equal(load_vit(folder, pretrained=path)(images), student(images))
    assert "release.pth holds model.student, model.teacher; taken: model.student, the network that was" in caplog.text
    with pytest.raises(UserError, match=r"holds no network 'ema'; it holds model\.student, model\.teacher$"):
        load_vit(folder, pretrained=path, network="ema")


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_network_of_no_file_is_refused(pretrained: bool, blank: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="no file is named; leave it out"):
        load_vit(blank(), pretrained=pretrained, network="teacher")


def test_a_head_that_does_not_fit_is_new_and_said(
    tiny_vit: Build, blank: Callable[..., str], images: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "attention_transfer")
    model = tiny_vit(seed=1, num_classes=7)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    folder, path = blank(), str(tmp_path / "weights.pth")
    loaded: Any = load_vit(folder, pretrained=path)
    assert torch.equal(loaded.forward_features(images), model.forward_features(images))
    assert "new: head.bias, head.weight; left over: head.bias, head.weight" in caplog.text
    assert torch.equal(load_vit(folder, pretrained=path, num_classes=7)(images), model(images))
    caplog.clear()
    assert load_vit(folder, pretrained=path, num_classes=0)(images).shape == (4, WIDTH)
    assert "new: none; left over: head.bias, head.weight" in caplog.text


# Sizes: tiny_vit takes images of 8 pixels in patches of 4.


@pytest.mark.parametrize("size", [16, (16, 8), (8, 20)], ids=str)
def test_position_embeddings_are_resampled_to_another_image_size(
    size: int | tuple[int, int], tiny_vit: Build, blank: Callable[..., str], tmp_path: Path
) -> None:
    model = tiny_vit(seed=1)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    loaded: Any = load_vit(blank(), pretrained=str(tmp_path / "weights.pth"), image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    assert describe(loaded).grid == (height // 4, width // 4)
    expected = resample_abs_pos_embed(model.pos_embed, [height // 4, width // 4])
    torch.testing.assert_close(loaded.pos_embed, expected)
    assert torch.equal(loaded.blocks[2].mlp.fc2.weight, model.blocks[2].mlp.fc2.weight)
    assert loaded(torch.randn(1, 1, height, width)).shape == (1, 5)


def test_a_folder_of_images_that_are_not_square_is_resampled_from_its_own_grid(tiny_vit: Build, tmp_path: Path) -> None:
    model = tiny_vit(img_size=(8, 24))
    save_vit(model, tmp_path / "wide")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    assert describe(load_vit(str(tmp_path / "wide"))).grid == (2, 6)
    for pretrained in (True, str(tmp_path / "weights.pth")):
        for size, grid in (((16, 24), [4, 6]), ((24, 8), [6, 2])):  # the second has as many patches
            loaded: Any = load_vit(str(tmp_path / "wide"), pretrained=pretrained, image_size=size)
            expected = resample_abs_pos_embed(model.pos_embed, grid, [2, 6])
            torch.testing.assert_close(loaded.pos_embed, expected)


def test_the_tables_of_a_beit_are_resampled_too(source: Build, blank: Callable[..., str], tmp_path: Path) -> None:
    layout = LAYOUTS["BEiT"]
    torch.save(layout.write(source(layout).state_dict()), tmp_path / "weights.pth")
    folder, path = blank(**BEIT), str(tmp_path / "weights.pth")
    loaded: Any = load_vit(folder, pretrained=path, image_size=(16, 12))
    tables = [block.attn.relative_position_bias_table for block in loaded.blocks]
    assert tables[0].shape == (7 * 5 + 3, 3)
    assert all(torch.equal(table, tables[0]) for table in tables)
    old: Any = load_vit(folder, pretrained=path)
    own = old.blocks[0].attn.relative_position_bias_table
    torch.testing.assert_close(tables[0][-3:], own[-3:])  # those of the class token
    torch.testing.assert_close(tables[0][:-3].mean(0), own[:-3].mean(0), atol=0.2, rtol=0)


@pytest.mark.parametrize("pretrained", ["a file", "the folder"])
def test_patch_kernels_are_resampled_to_another_patch_size(
    pretrained: str, tiny_vit: Build, blank: Callable[..., str], tmp_path: Path
) -> None:
    model = tiny_vit(seed=1)
    save_vit(model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    loaded: Any = (
        load_vit(blank(), pretrained=str(path), patch_size=2)
        if pretrained == "a file"
        else load_vit(str(tmp_path / "model"), patch_size=2)
    )
    assert describe(loaded).grid == (4, 4)
    expected = resample_patch_embed(model.patch_embed.proj.weight.detach(), [2, 2])
    torch.testing.assert_close(loaded.patch_embed.proj.weight.detach(), expected)
    torch.testing.assert_close(loaded.pos_embed, resample_abs_pos_embed(model.pos_embed, [4, 4]))


def test_a_name_of_timm_takes_sizes_that_are_not_its_own() -> None:
    spec = "timm/vit_tiny_patch16_224"
    model = load_vit(spec, pretrained=False, image_size=(32, 48), patch_size=8, num_classes=3)
    found = describe(model)
    assert (found.image_size, found.grid, found.classes) == ((32, 48), (4, 6), 3)
    assert model(torch.randn(1, 3, 32, 48)).shape == (1, 3)


def test_a_name_of_timm_gets_the_weights_of_a_file_at_another_patch_size(tmp_path: Path) -> None:
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, depth=12)
    torch.save({"teacher": under("backbone.", source.state_dict())}, tmp_path / "dino.pth")
    loaded: Any = load_vit(
        "timm/vit_tiny_patch16_224", pretrained=str(tmp_path / "dino.pth"), image_size=32, patch_size=8, num_classes=0
    )
    torch.testing.assert_close(loaded.pos_embed, resample_abs_pos_embed(source.pos_embed, [4, 4]))
    assert torch.equal(loaded.blocks[11].mlp.fc1.weight, source.blocks[11].mlp.fc1.weight)


# What would be another network is refused.


@pytest.mark.parametrize(
    ("theirs", "ours", "name"),
    [
        ({"init_values": 0.1}, {}, r"6 weights .*blocks\.0\.ls1\.gamma, …"),
        ({"qk_norm": True}, {}, r"12 weights .*blocks\.0\.attn\.k_norm\.bias, …"),
        ({"pre_norm": True}, {"patch_bias": True}, r"2 weights .*norm_pre\.bias, …"),
        ({"reg_tokens": 2, "no_embed_class": True}, {"no_embed_class": True}, r"1 weights .*reg_token, …"),
        ({"qkv_bias": True}, {"qkv_bias": False}, r"3 weights .*blocks\.0\.attn\.qkv\.bias, …"),
        ({"name": "vit_base_patch16_224"}, {"pos_embed": "none"}, r"1 weights .*pos_embed, …"),
        ({"depth": 4}, {}, r"12 weights .*blocks\.3\.attn\.proj\.bias, …"),
    ],
    ids=["LayerScale", "q/k norm", "pre-norm", "registers", "bias", "positions", "blocks"],
)
def test_weights_of_the_backbone_that_would_be_left_over_are_refused(
    theirs: dict[str, Any], ours: dict[str, Any], name: str, tiny_vit: Build, tmp_path: Path
) -> None:
    given = tiny_vit(**theirs).state_dict()
    if "patch_bias" in ours:  # a model with a pre-norm has no bias in its patches
        given["patch_embed.proj.bias"] = torch.zeros(WIDTH)
    save_vit(tiny_vit(**without_marker(ours)), tmp_path / "model")
    torch.save({"model": given}, tmp_path / "weights.pth")
    sentence = rf"^{tmp_path}/weights\.pth has {name}\), so that it would be another network; name the architecture"
    with pytest.raises(UserError, match=sentence):
        load_vit(str(tmp_path / "model"), pretrained=str(tmp_path / "weights.pth"))


def without_marker(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "patch_bias"}


def test_a_table_that_all_blocks_share_is_refused_by_a_beit_without_tables(
    source: Build, blank: Callable[..., str], tmp_path: Path
) -> None:
    layout = LAYOUTS["BEiT"]
    torch.save(layout.write(source(layout).state_dict()), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="relative_position_bias_table"):
        load_vit(blank(**BEIT | {"use_rel_pos_bias": False}), pretrained=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("where", ["missing", "left over"])
def test_learned_frequencies_of_a_rope_are_weights_of_the_backbone(
    where: str, tiny_vit: Build, blank: Callable[..., str], tmp_path: Path
) -> None:
    mixed, axial = "vit_small_patch16_rope_mixed_224", "vit_small_patch16_rope_224"
    state = tiny_vit(name=mixed, seed=1).state_dict()
    assert "rope.freqs" in state
    torch.save(without(state, "rope") if where == "missing" else state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"rope\.freqs"):
        load_vit(blank(name=mixed if where == "missing" else axial), pretrained=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    ("theirs", "ours", "reason"),
    [
        ({"depth": 2}, {}, r"12 weights are missing and 0 have another shape \(blocks\.2\.attn\.proj\.bias is not in"),
        ({}, {"init_values": 0.1}, r"6 weights are missing and 0 have another shape \(blocks\.0\.ls1\.gamma is not in"),
        ({}, {"global_pool": "token", "fc_norm": True}, r"2 weights are missing .*fc_norm\.bias is not in it"),
        ({"global_pool": "avg"}, {}, r"2 weights are missing and 0 have another shape \(norm\.bias is not in it\)"),
        ({"embed_dim": 48}, {}, r"another shape \(blocks\.0\.attn\.proj\.bias is \(48,\) where \(24,\) is needed\)"),
        ({"in_chans": 3}, {}, r"0 weights are missing and 1 have another shape \(patch_embed\.proj\.weight is"),
        ({"mlp_ratio": 2}, {}, r"0 weights are missing and 9 have another shape"),
        ({"name": "deit_tiny_distilled_patch16_224"}, {}, r"weights\.pth h"),
        ({}, {"name": "deit_tiny_distilled_patch16_224"}, r"weights\.pth h"),
        ({"name": "beit_base_patch16_224"}, {}, r"6 weights are missing .*blocks\.0\.attn\.qkv\.bias is not in it"),
        ({}, {"name": "eva02_tiny_patch14_224"}, r"weights are missing"),
        ({}, {"name": "vit_base_patch16_siglip_224"}, r"weights\.pth h"),
        ({"class_token": False, "global_pool": "avg"}, {}, r"weights\.pth h"),
    ],
    ids=[
        "fewer blocks",
        "no LayerScale",
        "no second norm",
        "no first norm",
        "width",
        "channels",
        "hidden width",
        "a distillation token",
        "no distillation token",
        "BEiT for a ViT",
        "ViT for an EVA",
        "ViT for a SigLIP",
        "no class token",
    ],
)
def test_weights_that_are_missing_or_of_another_shape_are_refused(
    theirs: dict[str, Any], ours: dict[str, Any], reason: str, tiny_vit: Build, tmp_path: Path
) -> None:
    torch.save({"model": tiny_vit(**theirs).state_dict()}, tmp_path / "weights.pth")
    save_vit(tiny_vit(**ours), tmp_path / "model")
    with pytest.raises(UserError, match=reason) as caught:
        load_vit(str(tmp_path / "model"), pretrained=str(tmp_path / "weights.pth"))
    assert "\n" not in str(caught.value)


def test_a_refusal_speaks_of_weights_and_not_of_python(
    tiny_vit: Build, blank: Callable[..., str], tmp_path: Path
) -> None:
    torch.save(tiny_vit().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"holds another architecture than .*pos_embed"):
        load_vit(blank(**BEIT), pretrained=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("damage", ["weights gone", "weights of another shape", "weights too many"])
def test_a_folder_whose_weights_do_not_fit_is_refused(damage: str, tiny_vit: Build, tmp_path: Path) -> None:
    save_vit(tiny_vit(), tmp_path / "model")
    state = tiny_vit().state_dict()
    if damage == "weights gone":
        state = without(state, "blocks.1")
    elif damage == "weights of another shape":
        state["norm.weight"] = torch.ones(7)
    else:
        state["blocks.0.ls1.gamma"] = torch.ones(WIDTH)
    save_file(state, tmp_path / "model" / "model.safetensors")
    with pytest.raises(
        UserError, match=r"model cannot be loaded: its config\.json and weights do not fit \("
    ) as caught:
        load_vit(str(tmp_path / "model"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ["[]", '{"library": "open_clip"}'])
def test_a_configuration_of_another_program_is_refused(config: str, blank: Callable[..., str]) -> None:
    folder = Path(blank())
    (folder / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"config\.json"):
        load_vit(str(folder))


# Class names belong to a head.


@pytest.mark.parametrize("classes", [0, 7])
def test_another_head_has_no_class_names(classes: int, tiny_vit: Build, tmp_path: Path) -> None:
    save_vit(tiny_vit(num_classes=2), tmp_path, labels=["cat", "dog"])
    assert labels_of(load_vit(str(tmp_path), num_classes=classes)) is None


def test_a_student_has_not_the_class_names_of_its_teacher(tiny_vit: Build, tmp_path: Path) -> None:
    save_vit(tiny_vit(num_classes=2), tmp_path, labels=["cat", "dog"])
    teacher = load_vit(str(tmp_path))
    assert labels_of(teacher) == ["cat", "dog"]
    assert labels_of(student_from(teacher, num_classes=7)) is None
    assert labels_of(student_like(teacher, num_classes=7)) is None


def test_class_names_survive_being_saved_again(tiny_vit: Build, tmp_path: Path) -> None:
    save_vit(tiny_vit(num_classes=2), tmp_path / "first", labels=["cat", "dog"])
    save_vit(load_vit(str(tmp_path / "first")), tmp_path / "second")
    assert labels_of(load_vit(str(tmp_path / "second"))) == ["cat", "dog"]


# Names.


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        (
            "timm/vit_smal_patch16_224",
            r"^timm has no model 'vit_smal_patch16_224'; did you mean timm/vit_small_patch16_224, ",
        ),
        ("timm/vit_smal_patch16_224.augreg_in21k", "did you mean timm/vit_small_patch16_224"),
        ("timm/", "not found; a model is timm/<name>"),
        ("vit_small_patch16_224", "^vit_small_patch16_224 not found; a model is timm/<name>"),
        ("TIMM/vit_small_patch16_224", "not found; a model is timm/<name>"),
        ("", "a model is timm/<name>|holds no model"),
    ],
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_name_that_does_not_exist_is_refused_with_the_nearest(
    pretrained: bool, spec: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=hint):
        load_vit(spec, pretrained=pretrained)


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_tag_that_does_not_exist_is_refused_with_those_that_do(pretrained: bool) -> None:
    with pytest.raises(UserError, match="augreg_in21k"):
        load_vit("timm/vit_tiny_patch16_224.augreg_in22k", pretrained=pretrained)


def test_an_architecture_without_published_weights_is_not_blamed_on_the_network() -> None:
    with pytest.raises(UserError, match=r"^timm/vit_small_patch16_36x1_224 has no (published|pretrained) weights"):
        load_vit("timm/vit_small_patch16_36x1_224")


def test_a_network_that_takes_no_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"^timm/resnet18 does not take that size .*; leave it out$"):
        load_vit("timm/resnet18", pretrained=False, image_size=32)


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("no such file in the cache, and no network"),
        OfflineModeIsEnabled("HF_HUB_OFFLINE is set"),
        URLError("Temporary failure in name resolution"),
        TimeoutError("timed out"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_a_network_weights_by_name_are_refused_with_what_to_do(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fail)
    sentence = (
        rf"^the weights of timm/vit_tiny_patch16_224 could not be fetched \({type(error).__name__}\); connect to the "
        "network, or give a local file with --pretrained FILE, or random weights with --pretrained false$"
    )
    with pytest.raises(UserError, match=sentence):
        load_vit("timm/vit_tiny_patch16_224")
