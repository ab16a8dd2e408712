"""Every family of ViTs, small and random: what this library sees is what the family's own code computes.

The table of docs/families.md is made here, from the same cases; to write it anew:
FAMILIES_UPDATE=1 python -m pytest tests/vit/test_families.py
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attention_transfer.errors import UserError
from attention_transfer.hooks import tensors_in
from attention_transfer.vit import AttentionProbe, capture, describe, load_vit, logits_of, student_like

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
UPDATE = "FAMILIES_UPDATE=1 python -m pytest tests/vit/test_families.py"
INTRODUCTION = """\
# Families

This table is made by `tests/vit/test_families.py`. It builds each model below with two narrow blocks and random weights
and checks that

- the attention maps of [`capture`][attention_transfer.vit.capture.capture], also those of the attention pool, are those
  that the model's own code computes without a fused kernel: differences <= 1e-5 in single precision;
- the number and kinds of the tokens, the patch grid and the components are as
  [`describe`][attention_transfer.vit.describe.describe] says;
- the output of the model is bitwise the same with and without `capture`;
- the student of [`student_like`][attention_transfer.student_like] has the same tokens and components, and gives class
  logits;
- a frozen teacher, which runs in training only as far as its attention is needed, gives bitwise the queries and keys of
  `capture`.

The library is written as in the names that [`load_vit`][attention_transfer.load_vit] takes; `hf` is Hugging Face
transformers. A *weights file* is laid out as its project does it; `load_vit` reads the architecture from the weights.
*Prefix tokens* come before the patches, *components* are parts beyond the plain ViT, and an *attention pool* gathers
the tokens with one more attention call.
"""
NOTES = """\
`ViTMAEModel` itself hides and shuffles its patches at random in every forward. `capture` shows its attention, but it is
refused as a teacher or student; `load_vit("hf/…")` makes a `ViTModel` of such weights.

## Refused

Models of other designs are refused in a sentence that names what is supported: windowed, hierarchical, class and
channel attention, parallel blocks, convolutions. Checked are
"""
SIZE = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "num_classes": 0}
HF_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
ANY_SIZE: dict[str, Any] = {"image_size": 32, "input_size": (24, 32)}  # positions of a square, fitted to the image
CLASS = ("class",)
FOUR_REGISTERS = ("register",) * 4


@dataclass(frozen=True)
class Family:
    """A model, and what is known about it by hand."""

    title: str
    library: str
    model: str
    build: Callable[[], nn.Module]
    prefix: tuple[str, ...]
    components: frozenset[str]
    pool: bool
    suffix: int
    grid: tuple[int, int]


def in_timm(
    title: str,
    name: str,
    *components: str,
    prefix: tuple[str, ...] = CLASS,
    pool: bool = False,
    **settings: Any,
) -> Family:
    if name.startswith("naflexvit"):  # takes images of any size; this only says which
        settings["pretrained_cfg_overlay"] = {"input_size": (3, 24, 32)}
    else:
        settings["img_size"] = (24, 32)
    build = partial(timm.create_model, name, **SIZE, **settings)
    return Family(title, "timm", f"`{name}`", build, prefix, frozenset(components), pool, suffix=0, grid=(3, 4))


def in_file(title: str, layout: Callable[[dict[str, Tensor]], dict[str, Any]]) -> Family:
    """A weights file in the layout of its project, whose architecture is read from the weights."""

    def build() -> nn.Module:
        source = timm.create_model("vit_base_patch16_224", **{**SIZE, "embed_dim": 128}, img_size=32)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(layout(source.state_dict()), Path(folder) / "weights.pth")
            return load_vit(str(Path(folder) / "weights.pth"))

    return Family(title, "timm", "weights file", build, CLASS, frozenset(), pool=False, suffix=0, grid=(4, 4))


def in_hf(
    title: str,
    name: str,
    *components: str,
    prefix: tuple[str, ...] = CLASS,
    pool: bool = False,
    suffix: int = 0,
    square: bool = False,
    **settings: Any,
) -> Family:
    sizes = {**HF_SIZE, "image_size": 32 if square else (24, 32), "patch_size": 8, **settings}

    def build() -> nn.Module:
        transformers = hugging_face()
        config = getattr(transformers, f"{name}Config")(**sizes)
        return cast(nn.Module, getattr(transformers, f"{name}Model")(config))

    grid = (4, 4) if square else (3, 4)
    return Family(title, "hf", f"`{name}Model`", build, prefix, frozenset(components), pool, suffix, grid)


def from_vit_mae() -> Family:
    """Weights of the masked autoencoder, which `load_vit` reads as a ViT."""

    def build() -> nn.Module:
        with tempfile.TemporaryDirectory() as folder:
            cast(Any, in_hf("", "ViTMAE").build()).save_pretrained(folder)
            return load_vit(f"hf/{folder}")

    return replace(in_hf("MAE", "ViT"), model="`ViTMAEModel`, read as `ViTModel`", build=build)


def in_torchvision() -> Family:
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    build = partial(torchvision.models.VisionTransformer, image_size=32, patch_size=8, **sizes)
    model = "`VisionTransformer`"
    return Family("ViT", "torchvision", model, build, CLASS, frozenset(), pool=False, suffix=0, grid=(4, 4))


def moco_v3(state: dict[str, Tensor]) -> dict[str, Any]:
    networks = ("module.base_encoder", "module.momentum_encoder")
    heads = {f"{network}.head.{layer}.weight": torch.zeros(4, 4) for network in networks for layer in (0, 3, 6)}
    return {"state_dict": heads | {f"{network}.{k}": value for network in networks for k, value in state.items()}}


def ibot(state: dict[str, Tensor]) -> dict[str, Any]:
    head = {"module.head.mlp.0.weight": torch.zeros(4, 4), "module.backbone.masked_embed": torch.zeros(1, 128)}
    network = head | {f"module.backbone.{k}": value for k, value in state.items()}
    return {"student": network, "teacher": {k.removeprefix("module."): value for k, value in network.items()}}


def msn(state: dict[str, Tensor]) -> dict[str, Any]:
    network = {"module.fc.fc1.weight": torch.zeros(4, 4)} | {f"module.{k}": value for k, value in state.items()}
    return {"encoder": network, "target_encoder": dict(network), "epoch": 3}


FAMILIES = (
    in_timm("ViT", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    in_timm("DeiT", "deit_tiny_patch16_224.fb_in1k"),
    in_timm(
        "DeiT, distilled",
        "deit_tiny_distilled_patch16_224.fb_in1k",
        "distillation token",
        prefix=("class", "distillation"),
    ),
    in_timm("DeiT-3", "deit3_small_patch16_224.fb_in1k", "LayerScale"),
    in_timm("DINO", "vit_small_patch16_224.dino"),
    in_timm("DINOv2", "vit_small_patch14_dinov2.lvd142m", "LayerScale"),
    in_timm(
        "DINOv2, registers",
        "vit_small_patch14_reg4_dinov2.lvd142m",
        "LayerScale",
        "registers",
        prefix=CLASS + FOUR_REGISTERS,
    ),
    in_timm(
        "DINOv3",
        "vit_small_patch16_dinov3.lvd1689m",
        "LayerScale",
        "RoPE",
        "registers",
        prefix=CLASS + FOUR_REGISTERS,
    ),
    in_timm("MAE", "vit_base_patch16_224.mae"),
    in_file("MoCo v3", moco_v3),
    in_file("iBOT", ibot),
    in_file("MSN", msn),
    in_timm("I-JEPA", "vit_huge_patch14_gap_224.in1k_ijepa", prefix=()),
    in_timm("BEiT", "beit_base_patch16_224.in22k_ft_in22k_in1k", "LayerScale", "relative position bias"),
    in_timm("BEiT v2", "beitv2_base_patch16_224.in1k_ft_in22k_in1k", "LayerScale", "relative position bias"),
    in_timm("BEiT-3", "beit3_base_patch16_224.in22k_ft_in1k", "norm of the attention's output"),
    in_timm("CLIP", "vit_base_patch16_clip_224.openai", "pre-norm"),
    in_timm("EVA-02", "eva02_tiny_patch14_224.mim_in22k", "RoPE", "gated MLP"),
    in_timm("SigLIP", "vit_base_patch16_siglip_224.webli", prefix=(), pool=True),
    in_timm("SigLIP 2", "vit_base_patch16_siglip_224.v2_webli", prefix=(), pool=True),
    in_timm("ViT-SO400M", "vit_so400m_patch14_siglip_224.webli", prefix=(), pool=True),
    in_timm("FlexiViT", "flexivit_small.1200ep_in1k"),
    in_timm("PE core", "vit_pe_core_tiny_patch16_384.fb", "RoPE", "pre-norm", pool=True),
    in_timm("PE spatial", "vit_pe_spatial_tiny_patch16_512.fb", "RoPE", "pre-norm"),
    in_timm("RoPE ViT", "vit_small_patch16_rope_224.naver_in1k", "LayerScale", "RoPE"),
    in_timm("RoPE ViT, mixed", "vit_small_patch16_rope_mixed_224.naver_in1k", "LayerScale", "RoPE"),
    in_timm(
        "NaFlexViT, averaged",
        "naflexvit_base_patch16_gap.e300_s576_in1k",
        "LayerScale",
        "registers",
        prefix=FOUR_REGISTERS,
    ),
    in_timm("NaFlexViT, SigLIP 2", "naflexvit_base_patch16_siglip.v2_webli", prefix=(), pool=True),
    in_timm(
        "relative position ViT",
        "vit_relpos_small_patch16_224.sw_in1k",
        "LayerScale",
        "relative position bias",
        prefix=(),
    ),
    in_timm("GAP ViT", "vit_medium_patch16_gap_240.sw_in12k", "LayerScale", prefix=()),
    in_timm("AIMv2", "aimv2_large_patch14_224.apple_pt", "gated MLP", prefix=()),
    in_timm(
        "Sapiens 2",
        "vit_base_patch16_sapiens2.fb",
        "LayerScale",
        "RoPE",
        "gated MLP",
        "q/k norm",
        "registers",
        prefix=CLASS + ("register",) * 8,
        num_kv_heads=(2, 1),  # the second block's heads share their keys and values
    ),
    in_hf("ViT", "ViT"),
    in_hf("DeiT, distilled", "DeiT", "distillation token", prefix=("class", "distillation")),
    in_hf("DINOv2", "Dinov2", "LayerScale", **ANY_SIZE),
    in_hf(
        "DINOv2, registers",
        "Dinov2WithRegisters",
        "LayerScale",
        "registers",
        prefix=CLASS + FOUR_REGISTERS,
        **ANY_SIZE,
    ),
    in_hf(
        "DINOv3",
        "DINOv3ViT",
        "LayerScale",
        "RoPE",
        "registers",
        prefix=CLASS + FOUR_REGISTERS,
        num_register_tokens=4,
    ),
    in_hf("BEiT", "Beit", "LayerScale", "relative position bias", use_relative_position_bias=True),
    in_hf("CLIP", "CLIPVision", "pre-norm", square=True),
    in_hf("SigLIP", "SiglipVision", prefix=(), pool=True, square=True),
    from_vit_mae(),
    in_hf("I-JEPA", "IJepa", prefix=()),
    in_hf("YOLOS", "Yolos", "detection tokens", suffix=5, num_detection_tokens=5),
    in_hf("MSN", "ViTMSN"),
    in_hf("data2vec", "Data2VecVision", "LayerScale", "relative position bias", use_relative_position_bias=True),
    in_torchvision(),
)
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f.library}-{f.title}")


OTHERS = {
    "timm": (
        "swin_tiny_patch4_window7_224",
        "hiera_tiny_224",
        "cait_xxs24_224",
        "xcit_nano_12_p8_224",
        "maxvit_tiny_rw_224",
        "convnext_atto",
        "samvit_base_patch16",
        "vit_base_patch16_xp_224",
    ),
    "hf": ("SwinModel", "ConvNextModel", "SegformerModel"),
    "torchvision": ("swin_t", "resnet18"),
}


def other(library: str, name: str) -> nn.Module:
    """A model of another design, without weights."""
    with torch.device("meta"):
        if library == "timm":
            return cast(nn.Module, timm.create_model(name))
        if library == "torchvision":
            return cast(nn.Module, torchvision.models.get_model(name))
        transformers = hugging_face()
        config = getattr(transformers, name.replace("Model", "Config"))()
        return cast(nn.Module, getattr(transformers, name)(config))


def hugging_face() -> Any:
    """The transformers package, which is optional."""
    return pytest.importorskip("transformers")


def made(family: Family) -> nn.Module:
    """The model with random weights, spread so that its attention maps are not flat."""
    torch.manual_seed(0)
    model = family.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.1))
    return model.eval()


def images_for(family: Family) -> Tensor:
    rows, columns = family.grid
    return torch.randn(2, 3, 8 * rows, 8 * columns, generator=torch.Generator().manual_seed(7))


def run(model: Callable[..., Any], images: Tensor) -> Any:
    """One forward; a model that draws random numbers (ViT-MAE shuffles its patches) always draws the same."""
    torch.manual_seed(1)
    return model(images)


class Softmaxes(TorchFunctionMode):
    """Keeps the result of each softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is Tensor.softmax:
            self.results.append(result)
        return result


def own_maps(family: Family, model: nn.Module, images: Tensor) -> list[Tensor]:
    """The maps of each block, and those of the attention pool, by the family's own code without a fused kernel."""
    own = {"timm": maps_of_timm, "hf": maps_of_hf, "torchvision": maps_of_torchvision}
    with torch.no_grad():
        return own[family.library](model, images)


def maps_of_timm(model: nn.Module, images: Tensor) -> list[Tensor]:
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if hasattr(module, "fused_attn"):
            cast(Any, module).fused_attn = False
    softmaxes = Softmaxes()
    with softmaxes:
        run(plain, images)
    return softmaxes.results


def maps_of_hf(model: nn.Module, images: Tensor) -> list[Tensor]:
    config = copy.deepcopy(cast(Any, model).config)
    plain = cast(Any, type(model))._from_config(config, attn_implementation="eager").eval()
    plain.load_state_dict(model.state_dict())
    pooled = maps_of_multihead(plain)
    maps: Sequence[Tensor] = run(partial(plain, output_attentions=True), images).attentions
    return [*maps, *pooled]


def maps_of_torchvision(model: nn.Module, images: Tensor) -> list[Tensor]:
    plain = copy.deepcopy(model)
    maps = maps_of_multihead(plain)
    run(plain, images)
    return maps


def maps_of_multihead(model: nn.Module) -> list[Tensor]:
    """A list that grows by each head's map of every `torch.nn.MultiheadAttention` that runs."""
    maps: list[Tensor] = []

    def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        maps.append(output[1])

    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(ask, with_kwargs=True)
            module.register_forward_hook(keep)
    return maps


def is_flat(maps_BHNN: Tensor) -> bool:
    """Whether attention is almost even, or almost the same for all queries."""
    tokens = maps_BHNN.shape[-1]
    uneven = maps_BHNN.amax(dim=-1).mean() > 2 / tokens
    differing = maps_BHNN.shape[-2] == 1 or maps_BHNN.std(dim=-2).mean() > 0.2 / tokens
    return not bool(uneven and differing)


@EVERY_FAMILY
def test_maps_are_those_of_the_familys_own_unfused_code(family: Family) -> None:
    model, images = made(family), images_for(family)
    with capture(model, pool=family.pool) as calls, torch.no_grad():
        run(model, images)
    expected = own_maps(family, model, images)
    assert [call.layer for call in calls] == ([0, 1, -1] if family.pool else [0, 1])
    for call, maps in zip(calls, expected, strict=True):
        assert not is_flat(maps)
        assert maps.dtype == torch.float32
        torch.testing.assert_close(call.maps(), maps, atol=1e-5, rtol=0)


@EVERY_FAMILY
def test_tokens_grid_and_components_are_as_described(family: Family) -> None:
    model, images = made(family), images_for(family)
    spec = describe(model)
    assert (spec.library, spec.depth, spec.heads) == (family.library, 2, 2)
    assert (spec.tokens.prefix, spec.tokens.suffix) == (family.prefix, family.suffix)
    assert (spec.grid, spec.image_size) == (family.grid, images.shape[-2:])
    assert (spec.components, spec.pool) == (family.components, family.pool)
    with capture(model) as calls, torch.no_grad():
        run(model, images)
    for call in calls:
        assert call.maps().shape == (2, spec.heads, spec.sequence, spec.sequence)
        assert call.q.shape[-1] == spec.head_dim
        assert call.tokens == spec.tokens


@EVERY_FAMILY
@pytest.mark.parametrize("gradients", [False, True], ids=["without gradients", "with gradients"])
def test_capturing_changes_no_bit_of_the_output(family: Family, gradients: bool) -> None:
    model, images = made(family), images_for(family)
    with torch.set_grad_enabled(gradients):
        expected = list(tensors_in(run(model, images)))
        with capture(model, pool=family.pool):
            actual = list(tensors_in(run(model, images)))
    assert expected
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@EVERY_FAMILY
def test_the_student_has_the_same_components_and_gives_class_logits(family: Family) -> None:
    teacher, images = made(family), images_for(family)
    student = student_like(teacher, num_classes=3)
    spec = describe(student)
    assert (spec.components, spec.tokens, spec.grid) == (family.components, describe(teacher).tokens, family.grid)
    assert (spec.depth, spec.heads, spec.classes, spec.pool) == (2, 2, 3, family.pool)
    with capture(student) as calls:
        logits = logits_of(run(student, images))
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()
    assert [call.q.shape[-2] for call in calls] == [spec.sequence] * 2


@EVERY_FAMILY
def test_a_probe_gives_the_very_queries_and_keys(family: Family) -> None:
    model, images = made(family), images_for(family)
    with capture(model) as calls, torch.no_grad():
        run(model, images)
    probed = run(AttentionProbe(model, [0, 1]), images)
    assert sorted(probed) == [0, 1]
    for call in calls:
        assert torch.equal(probed[call.layer].q, call.q)
        assert torch.equal(probed[call.layer].k, call.k)


@pytest.mark.parametrize(("library", "name"), [(library, name) for library in OTHERS for name in OTHERS[library]])
def test_other_designs_are_refused_with_what_is_supported(library: str, name: str) -> None:
    assert_refused(other(library, name))


@pytest.mark.parametrize("name", ["vit_dwee_patch16_reg1_gap_256", "vit_dlittle_patch16_reg1_gap_256"])
def test_differential_attention_is_refused_with_what_is_supported(name: str) -> None:
    assert_refused(other("timm", name))


def assert_refused(model: nn.Module) -> None:
    sentence = (
        f"{type(model).__name__} has no supported attention: a plain vision transformer of timm, Hugging Face "
        "transformers or torchvision is needed, whose blocks attend over all tokens"
    )
    with pytest.raises(UserError, match=sentence):
        describe(model)
    with pytest.raises(UserError, match=sentence):
        student_like(model, num_classes=3)
    with pytest.raises(UserError, match=sentence), capture(model):
        pass


def test_a_relative_position_bias_that_all_blocks_share_is_a_component() -> None:
    shared = in_timm("", "vit_srelpos_small_patch16_224.sw_in1k", prefix=())
    assert describe(made(shared)).components == {"LayerScale", "relative position bias"}


@pytest.mark.parametrize("mask_ratio", [0.0, 0.75])
def test_a_vit_mae_that_shuffles_patches_is_captured_but_not_described(mask_ratio: float) -> None:
    family = in_hf("", "ViTMAE", mask_ratio=mask_ratio)
    model, images = made(family), images_for(family)
    with capture(model) as calls, torch.no_grad():
        run(model, images)
    for call, maps in zip(calls, own_maps(family, model, images), strict=True):
        torch.testing.assert_close(call.maps(), maps, atol=1e-5, rtol=0)
    for use in (describe, partial(student_like, num_classes=3)):
        with pytest.raises(UserError, match=r"ViTMAEModel .*load_vit\('hf/FOLDER'\)"):
            use(model)


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_a_model_with_a_text_tower_is_told_of_its_vision_tower(name: str) -> None:
    transformers = hugging_face()
    vision = {**HF_SIZE, "image_size": 32, "patch_size": 8}
    model = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(text_config={**HF_SIZE, "vocab_size": 8}, vision_config=vision)
    )
    with pytest.raises(UserError, match=rf"{name}Model holds a text tower too; pass its vision tower, model\.vision_m"):
        describe(model)
    assert describe(model.vision_model).grid == (4, 4)


@pytest.mark.parametrize("name", ["ViT", "Dinov2", "Beit", "CLIPVision", "SiglipVision"])
def test_eager_attention_is_told_how_to_be_seen(name: str) -> None:
    model = eager(name)
    with pytest.raises(UserError, match=r'set_attn_implementation\("sdpa"\), or load it with attn_implementation'):
        describe(model)
    cast(Any, model).set_attn_implementation("sdpa")
    with capture(model) as calls, torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert len(calls) == 2


def eager(name: str) -> nn.Module:
    transformers = hugging_face()
    config = getattr(transformers, f"{name}Config")(**HF_SIZE, image_size=32, patch_size=8)
    kind = getattr(transformers, f"{name}Model")
    return cast(nn.Module, kind._from_config(config, attn_implementation="eager").eval())


def test_the_page_of_families_is_what_these_cases_give() -> None:
    page = families_page(FAMILIES)
    if os.environ.get("FAMILIES_UPDATE") == "1":
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page, f"docs/families.md is out of date; write it anew with: {UPDATE}"


def families_page(families: Sequence[Family]) -> str:
    """The text of docs/families.md."""
    rows = [
        "| library | family | model | prefix tokens | components | attention pool | student: class name |",
        "|---|---|---|---|---|---|---|",
        *map(row, families),
    ]
    refused = [f"- {library}: {', '.join(f'`{name}`' for name in names)}" for library, names in OTHERS.items()]
    return "\n".join([INTRODUCTION, *rows, "", NOTES, *refused, ""])


def row(family: Family) -> str:
    model = made(family)
    spec = describe(model)
    suffix = f"; after the patches: {spec.tokens.suffix} detection" if spec.tokens.suffix else ""
    cells = (
        family.library,
        family.title,
        family.model,
        (counted(spec.tokens.prefix) or "none") + suffix,
        ", ".join(sorted(spec.components, key=str.lower)) or "none",
        "yes" if spec.pool else "no",
        f"`{type(student_like(model, num_classes=3)).__name__}`",
    )
    return f"| {' | '.join(cells)} |"


def counted(kinds: Sequence[str]) -> str:
    """Kinds of tokens in their order, e.g. "class, 4 register"."""
    return ", ".join(kind if kinds.count(kind) == 1 else f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
