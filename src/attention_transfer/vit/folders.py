"""A model's folder: `config.json` and weights, both checked before a network is made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attention_transfer.errors import UserError, nearest
from attention_transfer.vit.describe import describe
from attention_transfer.vit.libraries import Library, all_libraries, library_names
from attention_transfer.vit.reading import unfit, weights_in

# No plain ViT has as many of anything, as many blocks, or as many parameters.
_MOST, _BLOCKS, _PARAMETERS = 10**7, 1000, 10**10
_DEPTH = ("depth", "num_layers", "num_hidden_layers")
# Float32 networks may need so many times the bytes of their weights files (8-bit ones, other heads and image sizes).
_TIMES, _BESIDE = 16, 2**30


def open_folder(folder: Path, *, pretrained: bool, **options: Any) -> nn.Module:
    """The model in a folder that a run, `export`, timm or transformers wrote.

    Raises:
        UserError: the folder holds no model, its configuration is damaged, asks for more memory than its weights do,
            or belongs to other weights.
    """
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no model (no config.json); name a finished run or an exported model")
    library = _library(folder / "config.json")

    def made(*, pretrained: bool) -> nn.Module:
        return library.open(folder, pretrained=pretrained, **options)

    try:
        _refuse_too_large(folder, made)
        model = made(pretrained=pretrained)
        describe(model)
    except UserError:
        raise
    except Exception as error:  # values of a wrong type or size make a library fail in any way
        raise unfit(folder, error) from error
    return model


def _library(path: Path) -> Library:
    """The library that wrote a folder's configuration."""
    config = _configuration(path)
    if found := next((library for library in all_libraries() if library.wrote(config)), None):
        return found
    if "library" in config:
        raise UserError(
            f"{path} names the library {config['library']!r}, which is not known; "
            f"{nearest(str(config['library']), library_names())}"
        )
    raise UserError(
        f"{path} describes no model: it has no architecture (of timm), model_type (of transformers) or library; "
        "export or download it again"
    )


def _configuration(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({str(error)[:160]}); export the model again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} describes no model (it holds no names); export the model again")
    for key, value in _numbers(config):
        if abs(value) > (_BLOCKS if key in _DEPTH else _MOST):
            raise UserError(
                f"{path} gives {key} as {value:.3g}, which no vision transformer has; export the model again"
            )
    return config


def _numbers(content: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """All finite numbers of a configuration, with the nearest name above each."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _numbers(value, name)
    elif isinstance(content, list):
        for value in content:
            yield from _numbers(value, key)
    elif isinstance(content, int) or (isinstance(content, float) and math.isfinite(content)):
        yield key, min(content, 10**300) if isinstance(content, int) else content


def _refuse_too_large(folder: Path, made: Callable[..., nn.Module]) -> None:
    """Refuse a configuration that asks for far more memory than the weights beside it, before any is taken."""
    with torch.device("meta"):
        model = made(pretrained=False)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    weights = weights_in(folder)
    known = sum(part.stat().st_size for part in folder.iterdir() if part.is_file()) if weights.is_file() else 0
    if parameters > _PARAMETERS or (known and 4 * parameters > _TIMES * known + _BESIDE):
        raise UserError(
            f"{folder / 'config.json'} describes a network of {parameters:.3g} parameters, which its weights "
            f"({known:.3g} bytes) are not those of; export the model again"
        )
