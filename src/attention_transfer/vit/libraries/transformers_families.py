"""What the model types of Hugging Face transformers do not say in their configurations."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import nn

from attention_transfer.attention import Tokens
from attention_transfer.errors import UserError, first_line
from attention_transfer.vit.libraries.base import SUPPORTED
from attention_transfer.vit.libraries.description import missing_part

log = logging.getLogger("attention_transfer")

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
_IMAGENET: Normalisation = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
_HALF: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class _Family:
    prefix: tuple[str, ...] = ("class",)
    normalisation: Normalisation = _IMAGENET  # used where no preprocessor file says it
    any_size: bool = False  # the model itself fits its positions to the image
    components: frozenset[str] = frozenset()


_FAMILIES = {
    "vit": _Family(normalisation=_HALF),
    "deit": _Family(prefix=("class", "distillation"), components=frozenset({"distillation token"})),
    "dinov2": _Family(any_size=True),
    "dinov2_with_registers": _Family(any_size=True),
    "dinov3_vit": _Family(any_size=True, components=frozenset({"RoPE"})),
    "beit": _Family(normalisation=_HALF),
    "data2vec-vision": _Family(normalisation=_HALF),
    "clip_vision_model": _Family(normalisation=(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD), components=frozenset({"pre-norm"})),
    "siglip_vision_model": _Family(prefix=(), normalisation=_HALF),
    "vit_mae": _Family(),
    "vit_msn": _Family(),
    "ijepa": _Family(prefix=()),
    "yolos": _Family(),
}
_TOWERS = {"clip": "CLIP", "siglip": "Siglip"}  # model types whose configuration holds a text tower's too
_TWO_HEADS = "DeiTForImageClassificationWithTeacher"  # its logits are the mean of two classifiers'
_VISION_TOWERS = {f"{name}_vision_model": prefix for name, prefix in _TOWERS.items()}


def vision(config: Any) -> Any:
    """The configuration of the vision tower."""
    return getattr(config, "vision_config", None) or config


def supported(model: nn.Module) -> Any:
    """The vision configuration of a supported model.

    Raises:
        UserError: it is no plain ViT, or holds a text tower.
    """
    config: Any = cast(Any, model).config
    found = vision(config)
    if found.model_type not in _FAMILIES:
        raise UserError(f"{type(model).__name__} has no supported attention: {SUPPORTED}")
    if hasattr(model, "text_model"):
        raise UserError(f"{type(model).__name__} holds a text tower too; pass its vision tower, model.vision_model")
    return found


def blocks(model: nn.Module) -> tuple[nn.Module, ...]:
    """The encoder's blocks; a decoder (ViT-MAE) is passed over."""
    depth = vision(cast(Any, model).config).num_hidden_layers
    return next(
        tuple(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and "decoder" not in name
    )


def tokens(config: Any) -> Tokens:
    """Prefix and suffix tokens."""
    found = vision(config)
    registers = int(getattr(found, "num_register_tokens", 0) or 0)
    prefix = _FAMILIES[found.model_type].prefix + ("register",) * registers
    return Tokens(prefix, suffix=int(getattr(found, "num_detection_tokens", 0) or 0))


def normalisation(config: Any) -> Normalisation:
    """Mean and standard deviation: what the preprocessor file said, or else the family's usual ones."""
    mean, std = getattr(config, "image_mean", None), getattr(config, "image_std", None)
    return (tuple(mean), tuple(std)) if mean and std else _FAMILIES[vision(config).model_type].normalisation


def any_size(config: Any) -> bool:
    """Whether the model itself fits its position embeddings to the image."""
    return _FAMILIES[vision(config).model_type].any_size


def grid(config: Any) -> tuple[int, int]:
    """Patches (rows, columns) that the positions in the weights are for; a model for any size fits them to its own."""
    found = vision(config)
    (height, width), patch = pair(found.image_size), pair(found.patch_size)
    return height // patch[0], width // patch[1]


def resize(config: Any, image_size: tuple[int, int]) -> None:
    """Set the image size.

    Raises:
        UserError: the model takes square images only.
    """
    found = vision(config)
    if found.model_type not in _VISION_TOWERS:
        found.image_size = list(image_size)
    elif image_size[0] == image_size[1]:
        found.image_size = image_size[0]
    else:
        raise UserError(
            f"a {found.model_type} takes square images only, not {image_size[0]}x{image_size[1]}; give one number"
        )
    config.input_size = list(image_size)


def tower_alone(config: Any) -> bool:
    """Whether this is the configuration of a vision tower that was saved without the text tower."""
    return config.model_type in _VISION_TOWERS


def number_classes(config: Any) -> None:
    """Number the classes, as transformers does, in place of their names."""
    config.id2label = {index: f"LABEL_{index}" for index in range(config.num_labels)}
    config.label2id = {label: index for index, label in config.id2label.items()}


def forget_head(config: Any) -> None:
    """Leave nothing of a head that is not to be copied: the names of its classes, and its kind."""
    number_classes(config)
    config.architectures = None


def components(model: nn.Module, config: Any) -> frozenset[str]:
    """Parts beyond the plain ViT."""
    block = blocks(model)[0]
    relative = getattr(config, "use_relative_position_bias", False) or getattr(
        config, "use_shared_relative_position_bias", False
    )
    signs = {
        "LayerScale": not (missing_part(block, "layer_scale1") and getattr(block, "lambda_1", None) is None),
        "registers": "register" in tokens(config).prefix,
        "detection tokens": tokens(config).suffix > 0,
        "relative position bias": bool(relative),
        "gated MLP": bool(getattr(config, "use_gated_mlp", False) or getattr(config, "use_swiglu_ffn", False)),
    }
    present = {name for name, found in signs.items() if found}
    return _FAMILIES[config.model_type].components | present


def network(config: Any, classes: int) -> tuple[Any, Any]:
    """The class that makes a classifier of a configuration, or a backbone where there is none; its configuration."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_MAPPING

    transformers = importlib.import_module("transformers")
    found = vision(config)
    if tower := _VISION_TOWERS.get(found.model_type):
        if not classes:
            _carry_input(config, found)
            number_classes(found)
            return getattr(transformers, f"{tower}VisionModel"), found
        if found is config:
            config = getattr(transformers, f"{tower}Config")(vision_config=config.to_dict())
            _carry_input(found, config)
    if not classes:
        number_classes(config)
    elif classes == config.num_labels and _TWO_HEADS in (config.architectures or ()):
        return getattr(transformers, _TWO_HEADS), config
    else:
        config.num_labels = classes
    kind = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), None) if classes else None
    kind = kind or MODEL_MAPPING[type(config)]
    return (kind[0] if isinstance(kind, tuple) else kind), config


def read_configuration(name: str) -> Any:
    """The configuration of a model on the hub or in a folder, with its input's size and normalisation.

    Raises:
        UserError: transformers is not installed, the name can't be fetched, or the model is no plain ViT.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError("models of Hugging Face need transformers; pip install 'attention-transfer[hf]'") from error
    with fetching(name):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        processor = _preprocessor(name)
    if config.model_type == "vit_mae":  # the pre-training network hides three quarters of the patches, at random
        shared = {key: value for key, value in config.to_dict().items() if key != "model_type"}
        config = transformers.ViTConfig(**shared)
        processor = {"image_mean": _IMAGENET[0], "image_std": _IMAGENET[1]} | processor
    if vision(config).model_type not in _FAMILIES:
        raise UserError(f"hf/{name} is a {config.model_type}, which is not supported: {SUPPORTED}")
    if hasattr(config, "auto_map"):
        log.debug("hf/%s brings code of its own, which is not run: the network is transformers' own", name)
        del config.auto_map  # else transformers would ask for that code when what is saved from here is opened
    for key, value in processor.items():
        setattr(config, key, list(value))
    if not processor:
        log.debug("hf/%s says no normalisation; mean %s and deviation %s are assumed", name, *normalisation(config))
    return config


@contextmanager
def fetching(name: str) -> Iterator[None]:
    """Say in a sentence why a model can't be had."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"hf/{name} could not be fetched ({first_line(error)}); check the name, connect to the network, or name "
            "a folder that save_pretrained wrote (hf/FOLDER)"
        ) from error


def pair(size: Any) -> tuple[int, int]:
    """A size as (height, width)."""
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) else (int(size), int(size))


def _preprocessor(name: str) -> dict[str, Any]:
    """Normalisation from a model's `preprocessor_config.json`, if it has one."""
    cached_file = importlib.import_module("transformers.utils").cached_file
    path = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    if not path:
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {key: content[key] for key in ("image_mean", "image_std") if content.get(key)}
        return {key: [float(value) for value in values] for key, values in found.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} holds no image_mean and image_std ({error}); fix it, or remove it") from error


def _carry_input(source: Any, target: Any) -> None:
    for key in ("image_mean", "image_std", "input_size"):
        if hasattr(source, key):
            setattr(target, key, getattr(source, key))
