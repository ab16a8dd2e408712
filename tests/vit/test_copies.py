"""A copied student attends as its source does, or is refused; and what a ViT may be wrapped in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.transfer import AttentionTransfer, Distill
from attention_transfer.vit import (
    capture,
    describe,
    part_of,
    save_vit,
    student_from,
    student_like,
    take_part,
    unwrapped,
)

Build = Callable[..., Any]


def maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad(), capture(model.eval()) as calls:
        model(images)
    return [call.maps() for call in calls]


def hugging_face() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    model = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def adapted(model: Any, targets: list[str]) -> Any:
    peft = pytest.importorskip("peft")
    found = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    return found.eval()


def normed(model: nn.Module, norm: Callable[[nn.Module], object]) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            norm(module)
    return model.eval()


@pytest.fixture(params=["timm", "hf"])
def network(request: pytest.FixtureRequest, tiny_vit: Build) -> Any:
    return tiny_vit() if request.param == "timm" else hugging_face()


def test_adapters_are_merged_and_it_is_said(network: Any, images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "attention_transfer")
    plain = maps(network, images)
    targets = ["qkv"] if hasattr(network, "blocks") else ["q_proj", "v_proj"]
    source = adapted(network, targets)
    for wrapped in (source, source.get_base_model()):
        student = student_from(wrapped, num_classes=4)
        for ours, theirs in zip(maps(student, images), maps(wrapped, images), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        assert not any("lora" in name for name, _ in student.named_parameters())
    assert (maps(student, images)[0] - plain[0]).abs().max() > 1e-3  # the adapter does something
    assert "adapters of" in caplog.text
    assert any("lora" in name for name, _ in source.named_parameters())  # the source stays as it was
    assert not any("lora" in name for name, _ in student_like(source, num_classes=4).named_parameters())


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrised_weights_become_plain(norm: Callable[[nn.Module], object], network: Any, images: Tensor) -> None:
    source = normed(network, norm)
    before = maps(source, images)
    student = student_from(source, num_classes=4)
    for ours, theirs, still in zip(maps(student, images), before, maps(source, images), strict=True):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(still, theirs)
    assert not any("parametrizations" in name for name, _ in student.named_parameters())


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore")
def test_weights_that_a_hook_computes_are_refused(norm: Callable[[nn.Module], object], network: Any) -> None:
    with pytest.raises(UserError, match=r"by a hook, which can't be copied; call torch\.nn\.utils\.remove_"):
        student_from(normed(network, norm), num_classes=4)


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_refused(network: Any) -> None:
    source = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    with pytest.raises(UserError, match="quantised"):
        student_from(source, num_classes=4)


def test_a_layer_that_does_more_than_its_weights_say_is_refused(images: Tensor) -> None:
    source = hugging_face()
    source.layers[0].attention.q_proj.register_forward_hook(lambda _, __, output: 2 * output)
    with pytest.raises(UserError, match="attends otherwise than it does"):
        student_from(source, num_classes=4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_students_of_half_precision_networks_train_in_float32(dtype: torch.dtype, network: Any, images: Tensor) -> None:
    source = network.to(dtype)
    copied, fresh = student_from(source, num_classes=4), student_like(source, num_classes=4)
    assert {p.dtype for model in (copied, fresh) for p in model.parameters()} == {torch.float32}
    assert {p.dtype for p in source.parameters()} == {dtype}
    taken = take_part(fresh, source, ["qkv"])
    weights = dict(copied.named_parameters())
    assert taken
    assert all(torch.equal(dict(fresh.named_parameters())[name], weights[name]) for name in taken)


class Mine(nn.Module):
    """Someone's own module around a ViT."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.backbone = vit
        self.own = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Any:
        return self.own(self.backbone(images))


def test_a_vit_is_found_in_what_is_around_it(vit: nn.Module, images: Tensor) -> None:
    for model, part in {
        nn.DataParallel(vit): "",
        nn.Sequential(nn.Identity(), vit): "1",
        nn.Sequential(Mine(vit)): "0.backbone",
    }.items():
        assert unwrapped(model) is vit
        assert part_of(model) == part or isinstance(model, nn.DataParallel)
        assert describe(model) == describe(vit)
        for ours, theirs in zip(maps(model, images), maps(vit, images), strict=True):
            assert torch.equal(ours, theirs)


def test_a_module_that_changes_its_images_is_refused(tiny_vit: Build, images: Tensor) -> None:
    scaled = nn.Sequential(nn.InstanceNorm2d(1), tiny_vit(2))
    with pytest.raises(UserError, match="Sequential changes the images before its 1 gets them"):
        AttentionTransfer(tiny_vit(1), scaled, [Distill()])
    wrapped = nn.Sequential(nn.Identity(), tiny_vit(2))
    plain = AttentionTransfer(tiny_vit(1), tiny_vit(2), [Distill()])(images)
    assert torch.equal(AttentionTransfer(tiny_vit(1), wrapped, [Distill()])(images).logits, plain.logits)


def test_several_vits_in_one_module_are_named(tiny_vit: Build) -> None:
    pair = nn.ModuleDict({"teacher": tiny_vit(1), "student": tiny_vit(2)})
    with pytest.raises(UserError, match="holds several vision transformers, teacher, student; pass one of them"):
        describe(pair)


def test_weights_beside_a_vit_are_not_lost_in_silence(vit: nn.Module, tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"2 weights of Mine are not of the VisionTransformer in it \(own\.weight"):
        save_vit(Mine(vit), tmp_path / "model")
    assert not (tmp_path / "model").exists()
