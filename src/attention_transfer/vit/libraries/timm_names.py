"""Models that timm has under a name, or the Hugging Face hub in timm's layout."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, cast

import timm
from torch import nn

from attention_transfer.errors import UserError, nearest
from attention_transfer.vit.libraries.base import Sizes
from attention_transfer.vit.reading import unfit


def check_name(name: str, *, pretrained: bool) -> None:
    """Refuse a model, or published weights of it, that timm does not have.

    Raises:
        UserError: it has none of that name (the nearest is named).
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(f'timm/{c}' for c in close)}?" if close else "see timm.list_models()"
        raise UserError(f"timm has no model {name!r}; {hint}")
    tags = [found.partition(".")[2] for found in timm.list_models(f"{architecture}.*", include_tags=True)]
    if tag and tag not in tags:
        there = nearest(tag, tags) if tags else "it has none"
        raise UserError(f"timm has no weights {tag!r} of {architecture}; {there}")
    # None for a name that timm has renamed, which it maps to the new one.
    config = timm.models.get_pretrained_cfg(name if tag else architecture)
    if pretrained and config is not None and not config.has_weights:
        raise UserError(
            f"timm/{name} has no published weights; give a local file with --pretrained FILE, or random weights with "
            "--pretrained false"
        )


def from_hub(name: str, **options: Any) -> nn.Module:
    """A model that lies on the Hugging Face hub in timm's layout.

    Raises:
        UserError: it can't be fetched, or its configuration and weights do not fit.
    """
    try:
        return cast(nn.Module, timm.create_model(name, **options))
    except OSError as error:
        raise UserError(
            f"timm/{name} could not be fetched ({type(error).__name__}); check the name, connect to the network, or "
            "name a folder that it was downloaded to (timm/local-dir:FOLDER)"
        ) from error
    except Exception as error:  # values of a wrong type or size make timm fail in any way
        raise unfit(Path(name), error) from error


def arguments_for(sizes: Sizes) -> dict[str, Any]:
    """What of the sizes is given, as `timm.create_model` calls it."""
    names = {"num_classes": "num_classes", "image_size": "img_size", "patch_size": "patch_size"}
    return {names[key]: value for key, value in sizes.items() if value is not None}


def without_stale_names(model: Any, num_classes: int | None) -> nn.Module:
    """The model, without the names of its classes where it has another number of them."""
    names = model.pretrained_cfg.get("label_names") if hasattr(model, "pretrained_cfg") else None
    if names and num_classes is not None and num_classes != len(names):
        forget_names(model)
    return cast(nn.Module, model)


def forget_names(model: Any) -> None:
    """Class names belong to a head that was replaced."""
    for key in ("label_names", "label_descriptions"):
        model.pretrained_cfg.pop(key, None)
