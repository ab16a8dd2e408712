"""Folders in the layout of Hugging Face transformers, as `save_pretrained` and `save_vit` write them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.vit import describe, labels_of, load_vit, save_vit, student_from, student_like

transformers: Any = pytest.importorskip("transformers")

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SIZE |= {"image_size": 32, "patch_size": 8}
TEXT = {**SIZE, "vocab_size": 8}
NAMES = ["cat", "dog", "owl"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
RELATIVE: dict[str, Any] = {"use_relative_position_bias": True}
SHARED: dict[str, Any] = {"use_shared_relative_position_bias": True}
HALF = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
OPENAI = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)


def spread(model: nn.Module) -> Any:
    """The model with weights so far apart that a wrong one would be seen."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.1))
    return model.eval()


def made(model: str, config: str | None = None, **settings: Any) -> Any:
    """A tiny model of transformers by the names of its class and its configuration's."""
    kind = getattr(transformers, config or model.removesuffix("Model") + "Config")
    return spread(getattr(transformers, model)(kind(**SIZE, **settings)))


def with_text(name: str, kind: str, **settings: Any) -> Any:
    """A model with a text tower too, or a classifier that is configured as one."""
    config = getattr(transformers, f"{name}Config")(text_config=TEXT, vision_config=SIZE, **settings)
    return spread(getattr(transformers, f"{name}{kind}")(config))


@dataclass(frozen=True)
class Family:
    """How a model is built, what it is loaded as, and the usual normalisation of its family."""

    build: Callable[[], Any]
    backbone: str
    classifier: str
    normalisation: Any
    prefix: tuple[str, ...] = ("class",)


CLASSIFIERS = {
    "ViT": Family(
        partial(made, "ViTForImageClassification", "ViTConfig", **LABELS),
        "ViTModel",
        "ViTForImageClassification",
        HALF,
    ),
    "DeiT": Family(
        partial(made, "DeiTForImageClassification", "DeiTConfig", **LABELS),
        "DeiTModel",
        "DeiTForImageClassification",
        IMAGENET,
        ("class", "distillation"),
    ),
    "DINOv2": Family(
        partial(made, "Dinov2ForImageClassification", "Dinov2Config", **LABELS),
        "Dinov2Model",
        "Dinov2ForImageClassification",
        IMAGENET,
    ),
    "BEiT": Family(
        partial(made, "BeitForImageClassification", "BeitConfig", **LABELS, **RELATIVE),
        "BeitModel",
        "BeitForImageClassification",
        HALF,
    ),
    "BEiT, shared": Family(
        partial(made, "BeitForImageClassification", "BeitConfig", **LABELS, **SHARED),
        "BeitModel",
        "BeitForImageClassification",
        HALF,
    ),
    "CLIP": Family(
        partial(with_text, "CLIP", "ForImageClassification", **LABELS),
        "CLIPVisionModel",
        "CLIPForImageClassification",
        OPENAI,
    ),
    "SigLIP": Family(
        partial(with_text, "Siglip", "ForImageClassification", **LABELS),
        "SiglipVisionModel",
        "SiglipForImageClassification",
        HALF,
        (),
    ),
}
BACKBONES = {
    "ViT": Family(partial(made, "ViTModel"), "ViTModel", "ViTForImageClassification", HALF),
    "DINOv2": Family(partial(made, "Dinov2Model"), "Dinov2Model", "Dinov2ForImageClassification", IMAGENET),
    "DINOv2, registers": Family(
        partial(made, "Dinov2WithRegistersModel"),
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersForImageClassification",
        IMAGENET,
        ("class", *("register",) * 4),
    ),
    "DINOv3": Family(
        partial(made, "DINOv3ViTModel", num_register_tokens=4),
        "DINOv3ViTModel",
        "BackboneClassifier",
        IMAGENET,
        ("class", *("register",) * 4),
    ),
    "BEiT": Family(partial(made, "BeitModel", **RELATIVE), "BeitModel", "BeitForImageClassification", HALF),
    "CLIP, vision tower": Family(
        partial(made, "CLIPVisionModel"), "CLIPVisionModel", "CLIPForImageClassification", OPENAI
    ),
    "SigLIP, vision tower": Family(
        partial(made, "SiglipVisionModel"), "SiglipVisionModel", "SiglipForImageClassification", HALF, ()
    ),
    "CLIP": Family(partial(with_text, "CLIP", "Model"), "CLIPVisionModel", "CLIPForImageClassification", OPENAI),
    "SigLIP": Family(
        partial(with_text, "Siglip", "Model"), "SiglipVisionModel", "SiglipForImageClassification", HALF, ()
    ),
    "MAE": Family(partial(made, "ViTMAEForPreTraining", "ViTMAEConfig", mask_ratio=0.0, decoder_num_hidden_layers=1),
                  "ViTModel", "ViTForImageClassification", IMAGENET),
    "MSN": Family(partial(made, "ViTMSNModel"), "ViTMSNModel", "ViTMSNForImageClassification", IMAGENET),
    "I-JEPA": Family(partial(made, "IJepaModel"), "IJepaModel", "IJepaForImageClassification", IMAGENET, ()),
}  # fmt: skip
TOWERS = ("CLIP, vision tower", "SigLIP, vision tower")


def cases(families: dict[str, Family]) -> pytest.MarkDecorator:
    """The families as parameters."""
    return pytest.mark.parametrize("family", [pytest.param(family, id=name) for name, family in families.items()])


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model as `save_pretrained` does, with the normalisation of a preprocessor if there is one."""

    def write(model: Any, **processor: Any) -> Path:
        model.save_pretrained(tmp_path / "source")
        if processor:
            (tmp_path / "source" / "preprocessor_config.json").write_text(json.dumps(processor))
        return tmp_path / "source"

    return write


def pixels(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(7))


def logits(model: Any, images: Tensor) -> Tensor:
    """What the head says, of a classifier of transformers or of this library."""
    with torch.no_grad():
        output = model(images)
    found: Tensor = output if isinstance(output, Tensor) else output.logits
    return found


def tower(model: Any) -> Any:
    """The vision tower of a model with or without a classifier, a decoder or a text tower around it."""
    own = getattr(model, "vision_model", None) or getattr(model, "backbone", None)
    return own or (model if type(model).__name__.endswith("Model") else model.base_model)


def hidden(model: Any, images: Tensor) -> Tensor:
    """Tokens after the last block; those of ViT-MAE in order, and all of them."""
    inner = tower(model)
    settings = {"noise": torch.arange(16.0)[None].expand(2, -1)} if "MAE" in type(inner).__name__ else {}
    with torch.no_grad():
        found: Tensor = inner(images, **settings).last_hidden_state
    return found


@cases(CLASSIFIERS)
@pytest.mark.parametrize("form", ["hf/{}", "{}"])
def test_a_classifier_comes_with_its_head_and_class_names(
    form: str, family: Family, folder: Callable[..., Path]
) -> None:
    source = family.build()
    loaded = load_vit(form.format(folder(source)))
    assert type(loaded).__name__ == family.classifier
    assert torch.equal(logits(loaded, pixels()), logits(source, pixels()))
    assert labels_of(loaded) == NAMES
    assert not loaded.training
    spec = describe(loaded)
    assert (spec.library, spec.classes, spec.depth, spec.width) == ("hf", 3, 2, 32)
    assert (spec.image_size, spec.grid, spec.tokens.prefix) == ((32, 32), (4, 4), family.prefix)


@cases(BACKBONES)
@pytest.mark.parametrize("form", ["hf/{}", "{}"])
def test_a_backbone_comes_without_a_head(form: str, family: Family, folder: Callable[..., Path]) -> None:
    source = family.build()
    loaded = load_vit(form.format(folder(source)))
    assert type(loaded).__name__ == family.backbone
    assert torch.equal(hidden(loaded, pixels()), hidden(source, pixels()))
    assert labels_of(loaded) is None
    spec = describe(loaded)
    assert (spec.classes, spec.grid, spec.tokens.prefix) == (0, (4, 4), family.prefix)


@cases(CLASSIFIERS)
def test_a_head_may_be_left_out_or_replaced(family: Family, folder: Callable[..., Path]) -> None:
    source = family.build()
    path = str(folder(source))
    bare, wide = load_vit(path, num_classes=0), load_vit(path, num_classes=7)
    assert (type(bare).__name__, type(wide).__name__) == (family.backbone, family.classifier)
    assert (describe(bare).classes, describe(wide).classes) == (0, 7)
    assert logits(wide, pixels()).shape == (2, 7)
    for loaded in (bare, wide):
        assert torch.equal(hidden(loaded, pixels()), hidden(source, pixels()))
    assert labels_of(wide) is None
    assert torch.equal(logits(load_vit(path, num_classes=3), pixels()), logits(source, pixels()))


def test_a_backbone_has_no_class_names(folder: Callable[..., Path]) -> None:
    assert labels_of(load_vit(str(folder(CLASSIFIERS["ViT"].build())), num_classes=0)) is None


@cases(BACKBONES)
def test_a_backbone_gets_a_head(family: Family, folder: Callable[..., Path]) -> None:
    source = family.build()
    loaded = load_vit(str(folder(source)), num_classes=3)
    assert type(loaded).__name__ == family.classifier
    assert torch.equal(hidden(loaded, pixels()), hidden(source, pixels()))
    assert logits(loaded, pixels()).shape == (2, 3)
    assert describe(loaded).classes == 3


def test_a_distilled_deit_keeps_its_two_heads(folder: Callable[..., Path]) -> None:
    source = made("DeiTForImageClassificationWithTeacher", "DeiTConfig", **LABELS)
    assert torch.equal(logits(load_vit(str(folder(source))), pixels()), logits(source, pixels()))


@pytest.mark.parametrize("form", ["hf/{}", "{}"])
def test_without_pretrained_only_the_shape_is_taken(form: str, folder: Callable[..., Path]) -> None:
    source = CLASSIFIERS["ViT"].build()
    path = folder(source)
    (path / "model.safetensors").unlink()
    loaded = load_vit(form.format(path), pretrained=False)
    assert logits(loaded, pixels()).shape == (2, 3)
    assert not torch.allclose(hidden(loaded, pixels()), hidden(source, pixels()))
    assert {key: value.shape for key, value in loaded.state_dict().items()} == {
        key: value.shape for key, value in source.state_dict().items()
    }


def test_half_precision_is_read_in_single_precision(folder: Callable[..., Path]) -> None:
    source = CLASSIFIERS["ViT"].build().half()
    loaded: Any = load_vit(str(folder(source)))
    assert loaded.classifier.weight.dtype == torch.float32
    assert torch.equal(logits(loaded, pixels()), logits(source.float(), pixels()))


def test_older_folders_with_a_pytorch_file_load_too(folder: Callable[..., Path]) -> None:
    source = CLASSIFIERS["ViT"].build()
    path = folder(source)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    for spec in (f"hf/{path}", str(path)):
        assert torch.equal(logits(load_vit(spec), pixels()), logits(source, pixels()))


def test_weights_in_several_files_load_too(tmp_path: Path) -> None:
    source = CLASSIFIERS["ViT"].build()
    source.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert torch.equal(logits(load_vit(f"hf/{tmp_path}"), pixels()), logits(source, pixels()))
    assert torch.equal(logits(load_vit(str(tmp_path)), pixels()), logits(source, pixels()))


# Normalisation.


@cases({f"{name}, backbone": family for name, family in BACKBONES.items()} | CLASSIFIERS)
def test_normalisation_is_that_of_the_preprocessor_or_of_the_family(
    family: Family, folder: Callable[..., Path]
) -> None:
    source = family.build()
    spec = describe(load_vit(str(folder(source))))
    assert (spec.mean, spec.std) == family.normalisation
    path = folder(source, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], size={"height": 32, "width": 32})
    spec = describe(
        load_vit(f"hf/{path}", num_classes=None if source.config.model_type not in ("clip", "siglip") else 3)
    )
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("name", ["CLIP", "SigLIP"])
def test_a_vision_tower_keeps_the_normalisation_of_the_whole(name: str, folder: Callable[..., Path]) -> None:
    path = folder(BACKBONES[name].build(), image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    spec = describe(load_vit(str(path)))
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("name", ["ViT", "DINOv3"])
def test_normalisation_is_saved_and_handed_to_students(name: str, folder: Callable[..., Path], tmp_path: Path) -> None:
    loaded = load_vit(str(folder(BACKBONES[name].build(), image_mean=[0.1] * 3, image_std=[0.4] * 3)))
    save_vit(loaded, tmp_path / "again")
    copies = [
        load_vit(str(tmp_path / "again")),
        student_like(loaded, num_classes=3),
        student_from(loaded, num_classes=3),
    ]
    for model in copies:
        assert (describe(model).mean, describe(model).std) == ((0.1,) * 3, (0.4,) * 3)


# Sizes.

ANY_SIZE = {name: BACKBONES[name] for name in ("DINOv2", "DINOv2, registers", "DINOv3")}
TABLES = {"ViT": CLASSIFIERS["ViT"], "DeiT": CLASSIFIERS["DeiT"], "MAE": BACKBONES["MAE"], "MSN": BACKBONES["MSN"]}
SIZES = pytest.mark.parametrize("size", [64, (32, 48), (48, 16)], ids=str)


@cases(ANY_SIZE)
@SIZES
def test_a_model_for_any_size_computes_what_it_would_itself(
    size: Any, family: Family, folder: Callable[..., Path]
) -> None:
    source = family.build()
    height, width = (size, size) if isinstance(size, int) else size
    loaded = load_vit(str(folder(source)), image_size=size)
    assert (describe(loaded).image_size, describe(loaded).grid) == ((height, width), (height // 8, width // 8))
    assert torch.equal(hidden(loaded, pixels(height, width)), hidden(source, pixels(height, width)))


@cases(TABLES)
@SIZES
def test_position_embeddings_are_resampled_to_another_image_size(
    size: Any, family: Family, folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = family.build()
    height, width = (size, size) if isinstance(size, int) else size
    loaded = load_vit(str(folder(source)), image_size=size)
    spec = describe(loaded)
    assert (spec.image_size, spec.grid) == ((height, width), (height // 8, width // 8))
    old, new = (tower(model).embeddings.position_embeddings for model in (source, loaded))
    torch.testing.assert_close(new, resample_abs_pos_embed(old, list(spec.grid), num_prefix_tokens=len(family.prefix)))
    images = pixels(height, width)
    assert hidden(loaded, images).shape == (2, spec.sequence, 32)
    ours, theirs = tower(loaded).state_dict(), tower(source).state_dict()
    kept = [name for name in theirs if "position_embeddings" not in name]
    assert len(kept) > 30
    assert all(torch.equal(ours[name], theirs[name]) for name in kept)
    if spec.classes:
        assert torch.equal(loaded.state_dict()["classifier.weight"], source.classifier.weight)
    save_vit(loaded, tmp_path / "resized")
    again = load_vit(str(tmp_path / "resized"))
    assert torch.equal(hidden(again, images), hidden(loaded, images))
    assert describe(again).image_size == (height, width)


def test_the_models_own_size_changes_nothing(folder: Callable[..., Path]) -> None:
    for family in (CLASSIFIERS["ViT"], CLASSIFIERS["BEiT"], CLASSIFIERS["CLIP"]):
        source = family.build()
        loaded = load_vit(str(folder(source)), image_size=32)
        assert torch.equal(logits(loaded, pixels()), logits(source, pixels()))


TOWERED = {"CLIP": CLASSIFIERS["CLIP"], "SigLIP": CLASSIFIERS["SigLIP"], **{name: BACKBONES[name] for name in TOWERS}}


@cases(TOWERED)
@pytest.mark.parametrize("form", ["hf/{}", "{}"])
def test_clip_and_siglip_take_another_square_image_size(form: str, family: Family, folder: Callable[..., Path]) -> None:
    source = family.build()
    loaded = load_vit(form.format(folder(source)), image_size=64)
    assert describe(loaded).grid == (8, 8)
    assert hidden(loaded, pixels(64, 64)).shape == (2, 64 + len(family.prefix), 32)


@cases(TOWERED)
@pytest.mark.parametrize("form", ["hf/{}", "{}"])
def test_clip_and_siglip_take_images_that_are_not_square_or_say_that_they_do_not(
    form: str, family: Family, folder: Callable[..., Path]
) -> None:
    source = family.build()
    path = folder(source)
    try:
        loaded = load_vit(form.format(path), image_size=(32, 48))
    except UserError as error:
        assert "square" in str(error)
    else:
        assert hidden(loaded, pixels(32, 48)).shape == (2, 24 + len(family.prefix), 32)


@pytest.mark.parametrize("name", ["BEiT", "BEiT, shared"])
def test_relative_position_tables_are_resampled_to_another_image_size(name: str, folder: Callable[..., Path]) -> None:
    source = CLASSIFIERS[name].build()
    loaded = load_vit(str(folder(source)), image_size=64)
    tables = {key: v for key, v in source.state_dict().items() if key.endswith("relative_position_bias_table")}
    assert tables
    for key, table in tables.items():
        resampled = loaded.state_dict()[key]
        assert torch.equal(resampled[-3:], table[-3:])  # those of the class token
        assert resampled[:-3].std().item() == pytest.approx(table[:-3].std().item(), rel=0.5)


@pytest.mark.parametrize("name", ["BEiT", "ViT"])
def test_a_pooler_is_kept_at_another_image_size(name: str, folder: Callable[..., Path]) -> None:
    source = (CLASSIFIERS if name == "BEiT" else BACKBONES)[name].build()
    loaded = load_vit(str(folder(source)), image_size=64)
    poolers = {key: value for key, value in source.state_dict().items() if "pooler" in key}
    assert poolers
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in poolers.items())


@pytest.mark.parametrize("form", ["hf/{}", "{}"])
@pytest.mark.parametrize("size", [(48, 64), (32, 24)], ids=["larger", "on its side"])
def test_a_grid_that_is_not_square_is_resampled_from_its_own_shape(
    size: tuple[int, int], form: str, folder: Callable[..., Path]
) -> None:
    config = transformers.ViTConfig(**{**SIZE, "image_size": [24, 32]})
    source = spread(transformers.ViTModel(config))
    loaded: Any = load_vit(form.format(folder(source)), image_size=size)
    expected = resample_abs_pos_embed(source.embeddings.position_embeddings, [size[0] // 8, size[1] // 8], [3, 4])
    torch.testing.assert_close(loaded.embeddings.position_embeddings, expected)


def test_a_folder_of_images_that_are_not_square_is_loaded_as_it_is(folder: Callable[..., Path]) -> None:
    source = spread(transformers.ViTModel(transformers.ViTConfig(**{**SIZE, "image_size": [24, 32]})))
    loaded = load_vit(str(folder(source)))
    assert (describe(loaded).image_size, describe(loaded).grid) == ((24, 32), (3, 4))
    assert torch.equal(hidden(loaded, pixels(24, 32)), hidden(source, pixels(24, 32)))


@pytest.mark.parametrize("form", ["hf/{}", "{}"])
def test_another_patch_size_is_refused(form: str, folder: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"^hf/.* does not take another patch size; leave it out$"):
        load_vit(form.format(folder(BACKBONES["ViT"].build())), patch_size=4)


# Saving, and students.

WITH_HEADS = CLASSIFIERS | {name: family for name, family in BACKBONES.items() if name not in CLASSIFIERS}


@cases(WITH_HEADS)
def test_a_saved_classifier_comes_back_here(family: Family, folder: Callable[..., Path], tmp_path: Path) -> None:
    loaded = load_vit(str(folder(family.build())), num_classes=3)
    save_vit(loaded, tmp_path / "saved", labels=["a", "b", "c"])
    again = load_vit(str(tmp_path / "saved"))
    assert torch.equal(logits(again, pixels()), logits(loaded, pixels()))
    assert labels_of(again) == ["a", "b", "c"]
    assert replace(describe(again), name="") == replace(describe(loaded), name="")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


@cases({name: family for name, family in WITH_HEADS.items() if name != "DINOv3"})
def test_a_saved_classifier_comes_back_in_transformers(
    family: Family, folder: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load_vit(str(folder(family.build())), num_classes=3)
    save_vit(loaded, tmp_path / "saved", labels=["a", "b", "c"])
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(logits(again, pixels()), logits(loaded, pixels()))
    assert again.config.id2label == {0: "a", 1: "b", 2: "c"}
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "saved")
    spec = describe(loaded)
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (spec.mean, spec.std)
    assert dict(processor.size) == {"height": 32, "width": 32}


@pytest.fixture
def dinov3(folder: Callable[..., Path], tmp_path: Path) -> tuple[Any, str]:
    """A classifier on DINOv3, for which transformers has none, and the folder that it is saved in."""
    model = load_vit(str(folder(BACKBONES["DINOv3"].build())), num_classes=3)
    save_vit(model, tmp_path / "dinov3", labels=NAMES)
    return model, str(tmp_path / "dinov3")


@pytest.mark.parametrize("form", ["hf/{}", "{}"])
def test_a_saved_dinov3_takes_another_head_and_image_size(form: str, dinov3: tuple[Any, str]) -> None:
    model, path = dinov3
    spec = form.format(path)
    assert torch.equal(logits(load_vit(spec), pixels()), logits(model, pixels()))
    assert labels_of(load_vit(spec)) == NAMES
    for classes, kind in ((0, "DINOv3ViTModel"), (7, "BackboneClassifier")):
        loaded = load_vit(spec, num_classes=classes)
        assert (type(loaded).__name__, describe(loaded).classes) == (kind, classes)
        assert torch.equal(hidden(loaded, pixels()), hidden(model, pixels()))
    wide = load_vit(spec, image_size=(32, 48))
    assert describe(wide).grid == (4, 6)
    assert torch.equal(logits(wide, pixels(32, 48)), logits(model, pixels(32, 48)))


def test_without_pretrained_a_saved_dinov3_has_its_head(dinov3: tuple[Any, str]) -> None:
    fresh = load_vit(dinov3[1], pretrained=False)
    assert logits(fresh, pixels()).shape == (2, 3)
    assert not torch.allclose(hidden(fresh, pixels()), hidden(dinov3[0], pixels()))


def test_a_dinov3_whose_head_was_left_out_is_saved_and_comes_back(dinov3: tuple[Any, str], tmp_path: Path) -> None:
    bare = student_from(dinov3[0], num_classes=0).eval()
    save_vit(bare, tmp_path / "bare")
    assert torch.equal(hidden(load_vit(str(tmp_path / "bare")), pixels()), hidden(bare, pixels()))


@cases(BACKBONES)
def test_a_saved_backbone_comes_back(family: Family, folder: Callable[..., Path], tmp_path: Path) -> None:
    loaded = load_vit(str(folder(family.build())))
    save_vit(loaded, tmp_path / "saved")
    again = load_vit(str(tmp_path / "saved"))
    assert type(again) is type(loaded)
    assert torch.equal(hidden(again, pixels()), hidden(loaded, pixels()))
    assert replace(describe(again), name="") == replace(describe(loaded), name="")


@cases(CLASSIFIERS)
def test_class_names_survive_being_saved_again(family: Family, folder: Callable[..., Path], tmp_path: Path) -> None:
    loaded = load_vit(str(folder(family.build())))
    save_vit(loaded, tmp_path / "saved")
    assert labels_of(load_vit(str(tmp_path / "saved"))) == NAMES


@cases(WITH_HEADS)
def test_a_fresh_student_is_of_its_teachers_kind_and_has_none_of_its_weights(
    family: Family, folder: Callable[..., Path]
) -> None:
    teacher = load_vit(str(folder(family.build())))
    student = student_like(teacher, num_classes=4)
    assert type(student).__name__ == family.classifier
    ours, theirs = describe(student), describe(teacher)
    assert (ours.components, ours.tokens, ours.grid) == (theirs.components, theirs.tokens, theirs.grid)
    assert (ours.classes, ours.mean, ours.std) == (4, theirs.mean, theirs.std)
    assert logits(student.eval(), pixels()).shape == (2, 4)
    assert not torch.allclose(hidden(student, pixels()), hidden(teacher, pixels()))
    assert labels_of(student) is None


@cases(WITH_HEADS)
def test_a_copied_student_keeps_the_backbone_and_gets_a_small_head(family: Family, folder: Callable[..., Path]) -> None:
    teacher = load_vit(str(folder(family.build())))
    student: Any = student_from(teacher, num_classes=40)
    assert type(student).__name__ == family.classifier
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert torch.equal(hidden(student.eval(), pixels()), hidden(teacher, pixels()))
    head = student.head if family.classifier == "BackboneClassifier" else student.classifier
    assert head.weight.std().item() == pytest.approx(2e-5, rel=0.2)
    assert labels_of(student) is None


def test_a_student_has_not_the_class_names_of_a_teacher_with_as_many(folder: Callable[..., Path]) -> None:
    teacher = load_vit(str(folder(CLASSIFIERS["ViT"].build())))
    assert labels_of(student_like(teacher, num_classes=3)) is None
    assert labels_of(student_from(teacher, num_classes=3)) is None


def test_a_standard_student_is_a_plain_vit_of_timm(folder: Callable[..., Path]) -> None:
    teacher = load_vit(str(folder(BACKBONES["DINOv3"].build())), image_size=(32, 48))
    student = student_like(teacher, num_classes=4, components="standard")
    spec = describe(student)
    assert (spec.library, spec.components, spec.grid, spec.classes) == ("timm", frozenset(), (4, 6), 4)
    assert (spec.mean, spec.std) == IMAGENET
    assert student(pixels(32, 48)).shape == (2, 4)


# A weights file for a named model.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ViT", "classifier"),
        ("DINOv2", "classifier"),
        ("BEiT", "classifier"),
        ("DINOv3", "backbone"),
        ("CLIP", "classifier"),
        ("SigLIP", "classifier"),
        ("CLIP", "backbone"),
        ("SigLIP", "backbone"),
        ("CLIP, vision tower", "backbone"),
        ("SigLIP, vision tower", "backbone"),
    ],
)
def test_a_weights_file_of_transformers_gives_a_named_model_its_weights(
    name: str, kind: str, folder: Callable[..., Path], tmp_path: Path
) -> None:
    families = CLASSIFIERS if kind == "classifier" else BACKBONES
    source = families[name].build()
    path = folder(source)
    (path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    loaded = load_vit(f"hf/{path}", pretrained=str(tmp_path / "weights.safetensors"))
    assert torch.equal(hidden(loaded, pixels()), hidden(source, pixels()))
    if kind == "classifier":
        assert torch.equal(logits(loaded, pixels()), logits(source, pixels()))


def test_weights_of_another_library_are_refused(
    tiny_vit: Callable[..., Any], folder: Callable[..., Path], tmp_path: Path
) -> None:
    torch.save({"model": tiny_vit().state_dict()}, tmp_path / "weights.pth")
    path = folder(BACKBONES["ViT"].build())
    with pytest.raises(UserError, match=r"weights\.pth holds another architecture than hf/.* weights are missing"):
        load_vit(f"hf/{path}", pretrained=str(tmp_path / "weights.pth"))


# Refusals: both forms of a name say in one sentence what is wrong.


def refusal(spec: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_vit(spec, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def changed(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(path / "model.safetensors")), path / "model.safetensors", metadata={"format": "pt"})


def lacking(path: Path) -> None:
    changed(path, lambda state: {key: value for key, value in state.items() if "layer.1." not in key})


def narrow(path: Path) -> None:
    changed(path, lambda state: state | {"encoder.layer.0.attention.attention.query.weight": torch.zeros(16, 16)})


def truncated(path: Path) -> None:
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:1000])


def weightless(path: Path) -> None:
    (path / "model.safetensors").unlink()


def scaled(path: Path) -> None:
    changed(path, lambda state: state | {"encoder.layer.0.layer_scale1.lambda1": torch.ones(32)})


def configured(text: str) -> Callable[[Path], object]:
    return lambda path: (path / "config.json").write_text(text)


def processed(text: str) -> Callable[[Path], object]:
    return lambda path: (path / "preprocessor_config.json").write_text(text)


@pytest.mark.parametrize(
    ("form", "damage", "reason"),
    [
        ("hf/{}", lacking, r"lack 16 of the backbone \(layers\.1\..*, …\); they are of another model$"),
        ("{}", lacking, r"lack 16 of the backbone \(layers\.1\..*, …\); they are of another model$"),
        ("hf/{}", narrow, r"lack 1 of the backbone \(.*\); they are of another model$"),
        ("{}", narrow, r"lack 1 of the backbone \(.*\); they are of another model$"),
        ("hf/{}", scaled, "layer_scale1"),
        ("{}", scaled, "layer_scale1"),
        ("hf/{}", truncated, r"model\.safetensors is not a readable"),
        ("{}", truncated, r"model\.safetensors is not a readable checkpoint"),
        ("hf/{}", weightless, r"^there is no weights file .*/model\.safetensors; check the path$"),
        ("{}", weightless, r"^there is no weights file .*/model\.safetensors; check the path$"),
        ("hf/{}", configured("{broken"), r"config\.json is no JSON"),
        ("{}", configured("{broken"), r"config\.json is no JSON"),
        ("hf/{}", configured("{}"), "model_type"),
        ("{}", configured("{}"), "model_type"),
        ("hf/{}", configured('{"model_type": "vt"}'), "'?vt'?"),
        ("{}", configured('{"model_type": "vt"}'), r"cannot be loaded: .*model type `vt`"),
        ("hf/{}", processed("{broken"), r"preprocessor_config\.json"),
        ("{}", processed("{broken"), r"preprocessor_config\.json"),
        ("hf/{}", processed("[]"), r"preprocessor_config\.json"),
        ("{}", processed("[]"), r"preprocessor_config\.json"),
        ("hf/{}", configured('{"model_type": "swin"}'), r"is a swin, which is not supported: a plain vision transf"),
        ("{}", configured('{"model_type": "swin"}'), r"is a swin, which is not supported: a plain vision transf"),
        ("hf/{}", configured('{"model_type": "resnet"}'), r"is a resnet, which is not supported: a plain vision"),
        ("{}", configured('{"model_type": "bert"}'), r"is a bert, which is not supported: a plain vision transf"),
    ],
    ids=lambda value: getattr(value, "__name__", None) if callable(value) else None,
)
def test_a_damaged_folder_is_refused_in_a_sentence(
    form: str, damage: Callable[[Path], object], reason: str, folder: Callable[..., Path]
) -> None:
    path = folder(BACKBONES["ViT"].build())
    damage(path)
    sentence = refusal(form.format(path))
    assert str(path) in sentence
    assert re.search(reason, sentence)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's own switch against the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("name", ["attention-transfer-tests/no-such-model", "/no/such/folder", "a name with spaces"])
def test_a_name_that_can_not_be_had_is_refused_with_what_to_do(name: str, pretrained: bool) -> None:
    sentence = refusal(f"hf/{name}", pretrained=pretrained)
    assert sentence.startswith(f"hf/{name} could not be fetched (")
    assert sentence.endswith(
        "; check the name, connect to the network, or name a folder that save_pretrained wrote (hf/FOLDER)"
    )


@pytest.mark.parametrize(
    "error",
    [
        OSError("You are trying to access a gated repo.\nMake sure to have access to it at https://…"),
        OSError("We couldn't connect to the hub to load the files."),
        ConnectionError("Cannot reach the hub: offline mode is enabled."),
        TimeoutError(),
    ],
    ids=["gated", "no network", "offline", "too slow"],
)
def test_only_the_first_line_of_a_failure_is_quoted(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    first = (str(error).splitlines() or ["TimeoutError"])[0]
    assert f"could not be fetched ({first})" in refusal("hf/google/vit-base-patch16-224")


def test_without_transformers_it_is_told_how_to_be_had(
    folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(BACKBONES["ViT"].build())
    monkeypatch.setitem(sys.modules, "transformers", None)
    for spec in (f"hf/{path}", str(path), "hf/google/vit-base-patch16-224"):
        sentence = refusal(spec)
        assert sentence == "models of Hugging Face need transformers; pip install 'attention-transfer[hf]'"


def test_code_that_a_model_brings_is_not_run_and_not_handed_on(tmp_path: Path) -> None:
    model = made("ViTModel", "ViTConfig")
    model.save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    (tmp_path / "theirs" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    loaded = load_vit(f"hf/{tmp_path / 'theirs'}", num_classes=3)
    save_vit(loaded, tmp_path / "ours")
    load_vit(str(tmp_path / "ours"))
    assert not (tmp_path / "ran").exists()
    assert "auto_map" not in json.loads((tmp_path / "ours" / "config.json").read_text())
    assert not list((tmp_path / "ours").glob("*.py"))
