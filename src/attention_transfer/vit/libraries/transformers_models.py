"""The vision transformers of Hugging Face transformers, an optional dependency that is imported only when used."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any, Unpack, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.layers import trunc_normal_
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.vit.libraries import transformers_families as families
from attention_transfer.vit.libraries import transformers_weights as weights
from attention_transfer.vit.libraries.base import Library, Sizes
from attention_transfer.vit.libraries.description import Anatomy, ViTSpec, deviation, per_channel
from attention_transfer.vit.reading import read_tensors, unfit, weights_in

_CLASSIFIERS = ("classifier.", "cls_classifier.", "distillation_classifier.")
_OWN_HEAD = ("head.weight", "head.bias")  # of BackboneClassifier


class BackboneClassifier(nn.Module):
    """A classifier on a backbone that transformers has no classifier for (DINOv3, YOLOS).

    A linear layer on the class token, or on the mean of the patches where there is none.
    """

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.config: Any = cast(Any, backbone).config
        self.config.linear_head = num_classes  # is saved with the configuration, and says how to load it
        self.head = nn.Linear(families.vision(self.config).hidden_size, num_classes)
        trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Class logits, (B, classes), of images (B, channels, height, width)."""
        tokens_BNC: Tensor = self.backbone(pixel_values).last_hidden_state
        tokens = families.tokens(self.config)
        patches = tokens.patches(tokens_BNC.shape[1])
        gathered_BC = tokens_BNC[:, 0] if tokens.class_token else tokens_BNC[:, patches].mean(dim=1)
        return cast(Tensor, self.head(gathered_BC))


class Transformers(Library):
    """See [`Library`][attention_transfer.vit.libraries.Library]."""

    name = "hf"
    hub_name = "transformers"
    folders = ""  # hf/PATH
    signs = (
        "embeddings.patch_embeddings.projection.weight",
        "embeddings.patch_embeddings.weight",
        "embeddings.patch_embedding.weight",
    )
    not_reentrant = "gradient_checkpointing_kwargs={'use_reentrant': False}"
    heads_beside = (*_CLASSIFIERS, *_OWN_HEAD)

    def owns(self, model: nn.Module) -> bool:
        """Any model of transformers, or one derived from its models."""
        return isinstance(model, BackboneClassifier) or any(
            c.__module__.startswith("transformers.") for c in type(model).__mro__
        )

    def anatomy(self, model: nn.Module) -> Anatomy:
        """The list of `num_hidden_layers` blocks; their attention is `.attention` or `.self_attn`."""
        vision = families.supported(model)
        blocks = families.blocks(model)
        head = next((m for m in model.modules() if type(m).__name__.endswith("AttentionPoolingHead")), None)
        if vision._attn_implementation != "sdpa":
            raise UserError(
                f"{type(model).__name__} uses {vision._attn_implementation!r} attention, which can't be seen; call "
                'model.set_attn_implementation("sdpa"), or load it with attn_implementation="sdpa"'
            )
        return Anatomy(
            model=model,
            blocks=blocks,
            attention=tuple(cast(Any, getattr(b, "attention", None) or cast(Any, b).self_attn) for b in blocks),
            pool=None if head is None else cast(Any, head).attention,
            tokens=families.tokens(vision),
            pool_head=head,  # which has its query and its MLP beside the attention
        )

    def spec(self, model: nn.Module) -> ViTSpec:
        """Read from the model's configuration."""
        config: Any = cast(Any, model).config
        if config.model_type == "vit_mae":
            raise UserError(
                f"{type(model).__name__} hides and shuffles its patches at random, so that no token has a place; save "
                "it by save_pretrained and read it as a ViT: load_vit('hf/FOLDER')"
            )
        vision, anatomy, head = families.vision(config), self.anatomy(model), self.head(model)
        image_size = families.pair(getattr(config, "input_size", None) or vision.image_size)
        patch = families.pair(vision.patch_size)
        mean, std = families.normalisation(config)
        return ViTSpec(
            name=str(getattr(config, "_name_or_path", "") or vision.model_type),
            library=self.name,
            depth=len(anatomy.blocks),
            heads=int(vision.num_attention_heads),
            head_dim=int(vision.hidden_size) // int(vision.num_attention_heads),
            width=int(vision.hidden_size),
            tokens=anatomy.tokens,
            grid=(image_size[0] // patch[0], image_size[1] // patch[1]),
            image_size=image_size,
            channels=int(vision.num_channels),
            mean=per_channel(mean, int(vision.num_channels)),
            std=deviation(std, int(vision.num_channels)),
            classes=0 if head is None else head.out_features,
            pool=anatomy.pool is not None,
            components=families.components(model, vision),
        )

    def build(self, name: str, *, pretrained: bool, **sizes: Unpack[Sizes]) -> nn.Module:
        """A model of the Hugging Face hub, or a folder in its layout."""
        if sizes["patch_size"] is not None:
            raise UserError(f"hf/{name} does not take another patch size; leave it out")
        try:
            config = families.read_configuration(name)
            if pretrained and (file := weights_in(Path(name))).is_file():
                read_tensors(file)  # says in a sentence what transformers would say in a traceback
            wanted, image_size = sizes["num_classes"], sizes["image_size"]
            classes = _own_classes(config) if wanted is None else wanted
            model = _pretrained(name, config, classes, self) if pretrained else _random(config, classes)
            return model if image_size is None else self._resized(model, image_size)
        except UserError:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise unfit(Path(name), error) from error

    def published(self, name: str) -> str | None:
        """What is named on the hub by its owner and its own name, unless that is a folder here."""
        return name if name.count("/") == 1 and not Path(name).exists() else None

    def wrote(self, config: dict[str, Any]) -> bool:
        """Any model of transformers says its type."""
        return "model_type" in config

    def open(self, folder: Path, *, pretrained: bool, **sizes: Unpack[Sizes]) -> nn.Module:
        """A folder that `save_pretrained` or `save_vit` wrote."""
        if pretrained and not (file := weights_in(folder)).is_file():
            raise UserError(f"there is no weights file {file}; check the path")
        return self.build(str(folder), pretrained=pretrained, **sizes)

    def with_head(self, model: nn.Module, num_classes: int) -> nn.Module:
        """A network of the same configuration with another head; the backbone's weights are the model's."""
        student = self.fresh(model, num_classes)
        self._take_backbone(student, model.state_dict())
        return student

    def fresh(self, model: nn.Module, num_classes: int) -> nn.Module:
        """Initialised by transformers: linear layers and tokens truncated normal with standard deviation 0.02."""
        config: Any = copy.deepcopy(cast(Any, model).config)
        families.forget_head(config)
        return _random(config, num_classes)

    def head(self, model: nn.Module) -> nn.Linear | None:
        """`.classifier`, the first of a distilled DeiT's two, or the head of `BackboneClassifier`."""
        own = model.head if isinstance(model, BackboneClassifier) else None
        head = getattr(model, "classifier", None) or getattr(model, "cls_classifier", None) or own
        return head if isinstance(head, nn.Linear) else None

    def head_names(self, model: nn.Module) -> tuple[str, ...]:
        """The classifier and the pooler, where BEiT keeps the norm of its classifier."""
        own = _OWN_HEAD if isinstance(model, BackboneClassifier) else ()
        return (*_CLASSIFIERS, *own, *(f"{prefix}pooler." for prefix in ("", "vit.", "deit.", "beit.", "backbone.")))

    def labels(self, model: nn.Module) -> list[str] | None:
        """`id2label` of the configuration, unless it is only transformers' own numbering."""
        names = cast(Any, model).config.id2label or {}
        found = [str(names[index]) for index in sorted(names)]
        return None if all(re.fullmatch(r"LABEL_\d+", name) for name in found) else found

    def adapted(self, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Names of a file or of a model, with or without the backbone's prefix; positions for the model's grid."""
        state = weights.renamed(weights.fitted(state, model), model)
        needed = {key for key in model.state_dict() if not key.startswith(self.head_names(model))}
        if needed <= state.keys():
            return state
        inner = model.backbone if isinstance(model, BackboneClassifier) else model
        return weights.renamed(weights.translated(state, inner), model)

    def can_recompute(self, model: nn.Module) -> bool:
        """By what the model says of itself."""
        return bool(getattr(model, "supports_gradient_checkpointing", False))

    def recompute(self, model: nn.Module, *, on: bool) -> None:
        """Without re-entrance, which would hide queries and keys from the rules."""
        if on:
            cast(Any, model).activation_checkpointing_enable({"use_reentrant": False})
        else:
            cast(Any, model).activation_checkpointing_disable()

    def save(self, model: nn.Module, folder: Path, labels: list[str] | None) -> None:
        """`save_pretrained`, and a preprocessor file with size and normalisation."""
        config: Any = cast(Any, model).config
        if labels:
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: index for index, label in enumerate(labels)}
        spec = self.spec(model)
        if isinstance(model, BackboneClassifier):
            folder.mkdir(parents=True)
            config.save_pretrained(folder)
            state = {key: value.contiguous() for key, value in model.state_dict().items()}
            save_file(state, folder / "model.safetensors")
        else:
            cast(Any, model).save_pretrained(folder)
        processor = {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": spec.image_size[0], "width": spec.image_size[1]},
            "image_mean": list(spec.mean),
            "image_std": list(spec.std),
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))

    def _resized(self, model: nn.Module, image_size: tuple[int, int]) -> nn.Module:
        """The same network for another image size."""
        if self.spec(model).image_size == image_size:
            return model
        config: Any = copy.deepcopy(cast(Any, model).config)
        if families.any_size(config):
            cast(Any, model).config.input_size = list(image_size)
            return model
        families.resize(config, image_size)
        other: nn.Module = type(model)(config)
        other.load_state_dict(weights.fitted(model.state_dict(), other, families.grid(cast(Any, model).config)))
        return other

    def _take_backbone(self, student: nn.Module, state: dict[str, Tensor]) -> None:
        heads, target = self.head_names(student), student.state_dict()
        backbone = {
            name: value
            for name, value in weights.renamed(state, student).items()
            if name in target and target[name].shape == value.shape and not name.startswith(heads)
        }
        lost = sorted(name for name in target.keys() - backbone.keys() if not name.startswith(heads))
        if lost:
            raise UserError(
                f"{len(lost)} weights of a {type(student).__name__} are not in the model that it is a copy of "
                f"({lost[0]}, …), so they would be random; take adapters and replaced layers off it"
            )
        student.load_state_dict(backbone, strict=False)


def _own_classes(config: Any) -> int:
    """The classes of the head that a configuration was saved with; 0 for a backbone."""
    if linear := getattr(config, "linear_head", 0):
        return int(linear)
    architecture = (getattr(config, "architectures", None) or [""])[0]
    return int(config.num_labels) if "ForImageClassification" in architecture else 0


def _random(config: Any, classes: int) -> nn.Module:
    kind, config = families.network(config, classes)
    model: nn.Module = kind(config)
    if not classes and hasattr(config, "linear_head"):
        config.linear_head = 0
    return BackboneClassifier(model, classes) if classes and not _is_classifier(kind) else model


def _pretrained(name: str, config: Any, classes: int, library: Transformers) -> nn.Module:
    if getattr(config, "linear_head", 0) and Path(name).is_dir():
        model = _random(config, int(config.linear_head))
        with families.fetching(name):
            model.load_state_dict(read_tensors(Path(name) / "model.safetensors"))
        return model if classes == config.linear_head else library.with_head(model, classes)
    if classes and families.tower_alone(config):  # its weights lack the prefix that they have in a classifier
        return library.with_head(_pretrained(name, config, 0, library), classes)
    kind, config = families.network(config, classes)
    with families.fetching(name):
        model, info = kind.from_pretrained(
            name, config=config, ignore_mismatched_sizes=True, output_loading_info=True, dtype=torch.float32
        )
    _refuse(name, info, library.head_names(model))
    return BackboneClassifier(model, classes) if classes and not _is_classifier(kind) else model


def _is_classifier(kind: type) -> bool:
    return "ForImageClassification" in kind.__name__


def _refuse(name: str, info: dict[str, Any], heads: tuple[str, ...]) -> None:
    """Refuse weights that are not those of the backbone, all of them, by what transformers says of their loading."""
    absent = {*info["missing_keys"], *(key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"])}
    lost = sorted(key for key in absent if not key.startswith(heads))
    if lost:
        raise UserError(
            f"the weights of {name} lack {len(lost)} of the backbone ({lost[0]}, …); they are of another model"
        )
    if left := weights.surplus(list(info["unexpected_keys"])):
        raise UserError(
            f"the weights of {name} have {len(left)} of a backbone that its config.json has no place for ({left[0]}, "
            "…); they are of another model"
        )
