from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.errors import UserError
from attention_transfer.hooks import tensors_in
from attention_transfer.vit import PARTS, Part, capture, freeze, logits_of, parameters_of, parts_problems, take_part

IN_TIMM = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
IN_HF = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
}
IN_TORCHVISION = {"num_layers": 2, "num_heads": 3, "hidden_dim": 24, "mlp_dim": 48, "num_classes": 5}
LAYER_SCALE = re.compile(r"\.(ls[12]\.gamma|gamma_[12]|lambda_[12]|layer_scale[12]\.lambda1)$")


def in_hf(name: str, **settings: Any) -> nn.Module:
    transformers: Any = pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    return cast(nn.Module, kind(kind.config_class(**{**IN_HF, **settings})))


def in_hf_siglip() -> nn.Module:
    vision = {**IN_HF, "vocab_size": 8}
    return in_hf("SiglipForImageClassification", vision_config=vision, text_config=vision, num_labels=5)


def in_timm(name: str, **settings: Any) -> nn.Module:
    return cast(nn.Module, timm.create_model(name, **{**IN_TIMM, **settings}))


def in_torchvision() -> nn.Module:
    return cast(nn.Module, torchvision.models.VisionTransformer(image_size=8, patch_size=4, **IN_TORCHVISION))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "timm-ViT": partial(in_timm, "vit_tiny_patch16_224"),
    "timm-registers": partial(in_timm, "vit_small_patch14_reg4_dinov2"),
    "timm-DeiT": partial(in_timm, "deit_tiny_distilled_patch16_224"),
    "timm-BEiT": partial(in_timm, "beit_base_patch16_224"),
    "timm-EVA": partial(in_timm, "eva02_base_patch14_224"),
    "timm-RoPE": partial(in_timm, "vit_small_patch16_rope_mixed_224"),
    "timm-shared": partial(in_timm, "vit_srelpos_small_patch16_224"),
    "timm-CLIP": partial(in_timm, "vit_base_patch16_clip_224"),
    "timm-SigLIP": partial(in_timm, "vit_base_patch16_siglip_224"),
    "hf-ViT": partial(in_hf, "ViTForImageClassification", num_labels=5),
    "hf-DINOv2": partial(in_hf, "Dinov2WithRegistersForImageClassification", num_labels=5),
    "hf-BEiT": partial(in_hf, "BeitForImageClassification", num_labels=5, use_relative_position_bias=True),
    "hf-data2vec": partial(in_hf, "Data2VecVisionForImageClassification", use_shared_relative_position_bias=True),
    "hf-SigLIP": in_hf_siglip,
    "hf-YOLOS": partial(in_hf, "YolosModel", num_detection_tokens=5, image_size=[8, 8]),
    "torchvision-ViT": in_torchvision,
}
EVERY_NETWORK = pytest.mark.parametrize("name", NETWORKS)
EVERY_PART = pytest.mark.parametrize("part", PARTS)


def made(name: str, seed: int = 0) -> nn.Module:
    """A network with random weights, none of which is zero or one."""
    torch.manual_seed(seed)
    return spread(NETWORKS[name]())


def spread(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.1))
    return model.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def entries(model: nn.Module, parts: Iterable[Part]) -> dict[str, Tensor]:
    """Which entries of which parameters belong to one of the parts."""
    found = {name: torch.zeros_like(parameter, dtype=torch.bool) for name, parameter in model.named_parameters()}
    for part in parts:
        for name, rows in parameters_of(model, part).items():
            found[name][slice(None) if rows is None else rows] = True
    return found


@EVERY_NETWORK
def test_every_parameter_belongs_to_a_part_but_layer_scale(name: str) -> None:
    model = made(name)
    every = [n for n, _ in model.named_parameters()]
    parts: list[Part] = ["embeddings", "attention", "mlp", "norms", "pool", "head"]
    covered = {n for part in parts for n in parameters_of(model, part)}
    rest = [n for n in every if n not in covered]
    assert [n for n in rest if not LAYER_SCALE.search(n)] == []
    assert parameters_of(model, "all") == dict.fromkeys(every)
    assert set(rest) <= set(parameters_of(model, "blocks"))


@EVERY_NETWORK
def test_parts_that_do_not_overlap_do_not(name: str) -> None:
    model = made(name)
    parts: list[Part] = ["embeddings", "attention", "mlp", "pool", "head"]
    names = [n for part in parts for n in parameters_of(model, part)]
    assert len(names) == len(set(names))
    assert set(parameters_of(model, "qk")) <= set(parameters_of(model, "qkv")) <= set(parameters_of(model, "attention"))


def test_the_parts_of_a_plain_vit_are_these() -> None:
    model = in_timm("vit_tiny_patch16_224", depth=1)
    qk = {"blocks.0.attn.qkv.weight": slice(0, 48), "blocks.0.attn.qkv.bias": slice(0, 48)}
    projection = ["blocks.0.attn.proj.weight", "blocks.0.attn.proj.bias"]
    mlp = [f"blocks.0.mlp.{layer}.{leaf}" for layer in ("fc1", "fc2") for leaf in ("weight", "bias")]
    norms = [f"{norm}.{leaf}" for norm in ("blocks.0.norm1", "blocks.0.norm2", "norm") for leaf in ("weight", "bias")]
    assert parameters_of(model, "qk") == qk
    assert parameters_of(model, "qkv") == dict.fromkeys(qk)
    assert parameters_of(model, "attention") == dict.fromkeys([*qk, *projection])
    assert parameters_of(model, "mlp") == dict.fromkeys(mlp)
    assert parameters_of(model, "norms") == dict.fromkeys(norms)
    assert parameters_of(model, "blocks") == dict.fromkeys([*norms[:2], *qk, *projection, *norms[2:4], *mlp])
    assert parameters_of(model, "head") == dict.fromkeys(["head.weight", "head.bias"])
    assert list(parameters_of(model, "embeddings")) == [
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    ]
    assert parameters_of(model, "pool") == {}


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("timm-BEiT", "blocks.1.attn.relative_position_bias_table"),
        ("timm-shared", "shared_rel_pos.mlp.fc1.weight"),
        ("timm-RoPE", "rope.freqs"),
        ("hf-BEiT", "beit.layers.1.relative_position_bias.relative_position_bias_table"),
        ("hf-data2vec", "data2vec_vision.encoder.relative_position_bias.relative_position_bias_table"),
    ],
)
def test_positions_that_only_attention_reads_belong_to_it_wherever_they_are(name: str, positions: str) -> None:
    assert positions in parameters_of(made(name), "attention")


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        ("timm-registers", "embeddings", {"reg_token", "cls_token", "pos_embed"}),
        ("timm-CLIP", "embeddings", {"norm_pre.weight"}),
        ("timm-CLIP", "norms", {"norm_pre.weight"}),
        ("timm-DeiT", "head", {"head.weight", "head_dist.weight"}),
        ("timm-SigLIP", "pool", {"attn_pool.latent", "attn_pool.mlp.fc1.weight"}),
        ("hf-SigLIP", "pool", {"vision_model.head.probe", "vision_model.head.mlp.fc1.weight"}),
        ("hf-YOLOS", "embeddings", {"embeddings.detection_tokens", "encoder.interpolation.mid_position_embeddings"}),
        ("hf-data2vec", "mlp", {"data2vec_vision.encoder.layer.0.output.dense.weight"}),
        ("torchvision-ViT", "embeddings", {"conv_proj.weight", "class_token", "encoder.pos_embedding"}),
    ],
)
def test_what_is_special_has_its_part(name: str, part: Part, expected: set[str]) -> None:
    assert expected <= set(parameters_of(made(name), part))


@pytest.mark.parametrize("name", ["timm-BEiT", "timm-SigLIP"])
def test_neither_norm_nor_pool_before_the_classifier_belongs_to_the_head(name: str) -> None:
    assert parameters_of(made(name), "head") == dict.fromkeys(["head.weight", "head.bias"])


@EVERY_NETWORK
def test_queries_and_keys_depend_on_qk_and_values_on_the_rest_of_qkv(name: str) -> None:
    q, k, v = first_operands(made(name))
    other = changed(made(name), ["qk"])
    assert not torch.equal(other[0], q)
    assert not torch.equal(other[1], k)
    assert torch.equal(other[2], v)
    other = changed(made(name), ["qkv"], but=["qk"])
    assert torch.equal(other[0], q)
    assert torch.equal(other[1], k)
    assert not torch.equal(other[2], v)


@EVERY_NETWORK
def test_the_first_block_attends_by_embeddings_and_not_by_what_comes_after_it(name: str) -> None:
    operands = first_operands(made(name))
    assert not any(torch.equal(a, b) for a, b in zip(changed(made(name), ["embeddings"]), operands, strict=True))
    after: list[Part] = ["mlp", "pool", "head"]
    assert all(torch.equal(a, b) for a, b in zip(changed(made(name), after), operands, strict=True))


@EVERY_NETWORK
def test_every_part_has_a_say_in_the_output(name: str) -> None:
    present = [part for part in PARTS if parameters_of(made(name), part)]
    without_head = {"pool", "head"} if name == "hf-YOLOS" else {"pool"}
    assert set(PARTS) - set(present) <= without_head
    for part in present:
        model = made(name)
        with torch.no_grad():
            before = list(tensors_in(model(images())))
            change(model, [part])
            after = list(tensors_in(model(images())))
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        averaged = name == "hf-SigLIP" and part == "pool"  # this classifier averages the tokens itself
        assert same == averaged, part


def first_operands(model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the first block."""
    with capture(model) as calls, torch.no_grad():
        model(images())
    return calls[0].q, calls[0].k, calls[0].v


def changed(model: nn.Module, parts: Sequence[Part], but: Sequence[Part] = ()) -> tuple[Tensor, Tensor, Tensor]:
    change(model, parts, but)
    return first_operands(model)


@torch.no_grad()
def change(model: nn.Module, parts: Sequence[Part], but: Sequence[Part] = ()) -> None:
    inside, outside = entries(model, parts), entries(model, but)
    for name, parameter in model.named_parameters():
        parameter[inside[name] & ~outside[name]] *= 1.5


@EVERY_NETWORK
@EVERY_PART
def test_a_taken_part_equals_the_source_and_all_else_stays_bit_by_bit(name: str, part: Part) -> None:
    student, source = made(name, seed=0), made(name, seed=1)
    if not parameters_of(student, part):
        with pytest.raises(UserError, match=rf"has no parameters in the part '{part}'; leave it out"):
            take_part(student, source, [part])
        return
    before, given = state(student), state(source)
    taken = take_part(student, source, [part])
    inside = entries(student, [part])
    for key, parameter in student.named_parameters():
        assert torch.equal(parameter, torch.where(inside[key], given[key], before[key])), key
    assert [key for key, _ in student.named_parameters() if inside[key].any()] == [n for n in taken if n in inside]
    assert {key: value.tolist() for key, value in state(source).items()} == {k: v.tolist() for k, v in given.items()}


@pytest.mark.parametrize("parts", [["qk", "attention", "norms"], ["norms", "attention", "qk"]])
def test_several_parts_are_taken_once_each(parts: list[Part]) -> None:
    student, source = made("timm-ViT"), made("timm-ViT", seed=1)
    taken = take_part(student, source, parts)
    assert len(taken) == len(set(taken)) == 2 * 4 + 2 * 4 + 2
    assert torch.equal(cast(Any, student).blocks[0].attn.qkv.weight, cast(Any, source).blocks[0].attn.qkv.weight)


def test_a_source_of_another_precision_is_taken_in_the_students() -> None:
    student, source = made("timm-ViT"), made("timm-ViT", seed=1).double()
    take_part(student, source, ["mlp"])
    weight: Tensor = cast(Any, student).blocks[0].mlp.fc1.weight
    assert torch.equal(weight, cast(Any, source).blocks[0].mlp.fc1.weight.float())


@pytest.mark.parametrize("reverse", [False, True])
def test_a_backbone_of_transformers_gives_to_a_classifier_and_takes_from_it(reverse: bool) -> None:
    networks = [spread(in_hf("ViTModel")), made("hf-ViT", seed=1)]
    student, source = reversed(networks) if reverse else networks
    taken = take_part(student, source, ["embeddings", "blocks"])
    own, theirs = student.state_dict(), source.state_dict()
    for name in taken:
        other = name.removeprefix("vit.") if reverse else f"vit.{name}"
        assert torch.equal(own[name], theirs[other])
    assert len(taken) == 4 + 2 * 16


def test_statistics_of_a_batch_norm_are_taken_with_its_parameters() -> None:
    student, source = (cast(Any, made("timm-ViT", seed)) for seed in (0, 1))
    for network in (student, source):
        network.patch_embed.norm = nn.BatchNorm1d(24)
    source.patch_embed.norm.running_mean.fill_(3.0)
    assert "patch_embed.norm.running_mean" not in take_part(student, source, ["mlp"])
    assert "patch_embed.norm.running_mean" in take_part(student, source, ["norms"])
    assert (student.patch_embed.norm.running_mean == 3).all()


PLAIN = NETWORKS["timm-ViT"]


@pytest.mark.parametrize(
    ("student", "source", "parts", "message"),
    [
        (
            PLAIN,
            partial(in_timm, "vit_tiny_patch16_224", num_classes=7),
            ["mlp", "head"],
            r"^head\.weight is \(5, 24\) in the student and \(7, 24\) in the source; leave the head out",
        ),
        (
            PLAIN,
            partial(in_timm, "vit_tiny_patch16_224", img_size=16),
            ["embeddings"],
            r"^pos_embed is \(1, 5, 24\) in the student and \(1, 17, 24\) in the source; take other parts",
        ),
        (
            partial(in_timm, "vit_tiny_patch16_224", qkv_bias=True),
            partial(in_timm, "vit_tiny_patch16_224", qkv_bias=False),
            ["qk"],
            r"^the source has no blocks\.0\.attn\.qkv\.bias, which the student has; take other parts",
        ),
        (
            PLAIN,
            partial(in_timm, "vit_tiny_patch16_224", depth=3),
            ["blocks"],
            r"^the student has no place for the source's blocks\.2\.norm1\.weight; take other parts",
        ),
        (
            partial(in_timm, "eva02_base_patch14_224"),
            partial(in_timm, "eva02_tiny_patch14_224"),
            ["qk"],
            r"^the source has no blocks\.0\.attn\.q_proj\.weight, which the student has; take other parts",
        ),
        (
            PLAIN,
            in_torchvision,
            ["all"],
            "^a student of timm can't take parts of a model of torchvision; make both with one library",
        ),
        (
            PLAIN,
            partial(in_timm, "vit_tiny_patch16_224", num_classes=0),
            ["head"],
            "^VisionTransformer has no parameters in the part 'head'; leave it out",
        ),
        (
            PLAIN,
            PLAIN,
            ["mpl", "norm"],
            "^there is no part 'mpl'; did you mean 'mlp'\\?\nthere is no part 'norm'; did you mean 'norms'\\?$",
        ),
    ],
    ids=["head", "shape", "missing", "surplus", "projections", "library", "part", "name"],
)
def test_what_does_not_fit_is_refused_in_a_sentence_and_nothing_is_taken(
    student: Callable[[], nn.Module], source: Callable[[], nn.Module], parts: list[Part], message: str
) -> None:
    network = student()
    before = state(network)
    with pytest.raises(UserError, match=message):
        take_part(network, source(), parts)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_unknown_names_are_told_the_nearest() -> None:
    assert parts_problems(PARTS) == []
    assert parts_problems(["atention"]) == ["there is no part 'atention'; did you mean 'attention'?"]
    with pytest.raises(UserError, match="did you mean 'qkv'"):
        parameters_of(made("timm-ViT"), cast(Any, "qkvs"))
    with pytest.raises(UserError, match="did you mean 'head'"):
        freeze(made("timm-ViT"), ["all"], but=cast(Any, ["heads"]))


def test_an_attention_whose_projections_are_unknown_is_refused_by_name() -> None:
    model: Any = made("timm-ViT")
    model.blocks[1].attn.qkv = nn.Sequential(nn.Linear(24, 72))
    with pytest.raises(UserError, match=r'^blocks\.1\.attn \(Attention\) has projections .*; choose "attention"'):
        parameters_of(model, "qk")
    assert "blocks.1.attn.qkv.0.weight" in parameters_of(model, "attention")


def test_names_are_those_out_of_a_wrapper() -> None:
    model = made("timm-ViT")
    wrapped = cast(nn.Module, torch.compile(model))
    assert parameters_of(wrapped, "qk") == parameters_of(model, "qk")


CHOICES: dict[str, tuple[list[Part], list[Part]]] = {
    "linear probe": (["all"], ["head"]),
    "qkv only": (["all"], ["qkv", "head"]),
    "qk only": (["all"], ["qk", "head"]),
    "no qk": (["qk"], []),
    "no attention but qk": (["attention"], ["qk"]),
    "no MLP, no norms": (["mlp", "norms"], []),
}
CLASSIFIERS = [name for name in NETWORKS if name != "hf-YOLOS"]


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_frozen_stays_bit_by_bit_and_the_rest_learns(name: str, choice: str) -> None:
    parts, but = CHOICES[choice]
    model = made(name)
    free = copy.deepcopy(model)
    chosen, spared = entries(model, parts), entries(model, but)
    before = state(model)
    frozen = freeze(model, parts, but=but)
    for network in (model, free):
        train(network)
    learning = dict(free.named_parameters())
    for key, parameter in model.named_parameters():
        still = chosen[key] & ~spared[key]
        moved = parameter != before[key]
        assert not moved[still].any(), key
        moves = learning[key] != before[key]
        assert moved[~still & moves].float().mean() > 0.9 or not (~still & moves).any(), key
        assert (key in frozen.names) == bool(still.all()), key
        assert any(parameter is p for p, _ in frozen.rows) == bool(still.any() and not still.all()), key
    for parameter, rows in frozen.rows:
        key = next(n for n, p in model.named_parameters() if p is parameter)
        assert (chosen[key] & ~spared[key])[rows].all()


def train(model: nn.Module, steps: int = 2) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(logits_of(model(images())), torch.tensor([0, 1])).backward()
        optimizer.step()
    model.eval()


def test_rows_of_a_gradient_are_zeros_even_where_it_is_not_finite() -> None:
    model: Any = made("timm-ViT")
    frozen = freeze(model, ["qk"])
    weight = model.blocks[0].attn.qkv.weight
    assert any(parameter is weight and rows == slice(0, 48) for parameter, rows in frozen.rows)
    (weight * torch.nan).sum().backward()
    assert (weight.grad[:48] == 0).all()
    assert weight.grad[48:].isnan().all()


@pytest.mark.parametrize("first", [True, False])
def test_the_gradient_of_another_parameter_is_not_zeroed_with_it(first: bool) -> None:
    model: Any = made("timm-ViT")
    freeze(model, ["qk"])
    bias: Any = model.blocks[0].attn.qkv.bias
    other: Any = nn.Parameter(torch.zeros_like(bias))
    (bias + other if first else other + bias).backward(torch.ones_like(bias))  # one tensor is the gradient of both
    assert (other.grad == 1).all()
    assert (bias.grad[48:] == 1).all()
    assert (bias.grad[:48] == 0).all()


@pytest.mark.parametrize("but", ["qk", "qkv", "attention"])
def test_nothing_is_frozen_of_what_is_spared_altogether(but: Part) -> None:
    frozen = freeze(made("timm-ViT"), ["qk"], but=[but])
    assert (frozen.names, frozen.rows) == ((), [])


@EVERY_NETWORK
@pytest.mark.parametrize("choice", ["qk only", "no qk"])
def test_release_makes_trainable_what_was_and_nothing_else(name: str, choice: str) -> None:
    model = made(name)
    parts, but = CHOICES[choice]
    mine = next(iter(parameters_of(model, "mlp")))
    model.get_parameter(mine).requires_grad_(False)
    but = [part for part in but if parameters_of(model, part)]
    frozen = freeze(model, parts, but=but)
    frozen.release()
    assert [key for key, parameter in model.named_parameters() if not parameter.requires_grad] == [mine]
    model.get_parameter(next(iter(parameters_of(model, "qk")))).requires_grad_(False)
    frozen.release()
    assert len([parameter for parameter in model.parameters() if not parameter.requires_grad]) == 2
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.stack([parameter.sum() for parameter in rest]).sum().backward()
    assert all((cast(Tensor, parameter.grad) == 1).all() for parameter in rest)


def test_rows_of_what_is_frozen_already_need_no_hook() -> None:
    model = made("timm-ViT").requires_grad_(False)
    frozen = freeze(model, ["qk"])
    assert frozen.rows == []
    frozen.release()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_missing_part_can_neither_be_frozen_nor_spared() -> None:
    for parts, but in ((["pool"], []), (["all"], ["pool"])):
        model = made("timm-ViT")
        with pytest.raises(UserError, match="VisionTransformer has no parameters in the part 'pool'; leave it out"):
            freeze(model, cast(Any, parts), but=cast(Any, but))
        assert all(parameter.requires_grad for parameter in model.parameters())
