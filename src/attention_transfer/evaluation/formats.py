"""Write a trained run in the formats of timm, transformers and ONNX, and open it again to check it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from attention_transfer.config.choices import Format
from attention_transfer.errors import UserError
from attention_transfer.evaluation.classifier import LoadedRun
from attention_transfer.evaluation.onnx_format import open_onnx, write_onnx
from attention_transfer.evaluation.preprocessing import Pixels, for_timm, for_transformers
from attention_transfer.vit import logits_of, save_vit, unwrapped
from attention_transfer.writing import write_whole

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow makes grey of colours


@dataclass(frozen=True)
class Reopened:
    """An exported model, opened by its own library.

    Attributes:
        logits: gives logits of images that are normalised for the run.
        pixels: the preprocessing in the folder, if its library has any.
    """

    logits: Callable[[Tensor], Tensor]
    pixels: Pixels | None = None


def format_problems(loaded: LoadedRun, to: Format, batch_size: int | None) -> list[str]:
    """Why a run can't be written in a format, a sentence each."""
    library, copies = loaded.spec.library, loaded.network.transfer.teacher is not None
    problems = []
    if to != "onnx" and batch_size is not None:
        problems.append(f"batch_size is of the onnx format; leave it out for {to}")
    if to != "onnx" and copies:
        problems.append(
            f"the student in {loaded.path} attends by its teacher's queries and keys, and a folder of {to} can't hold "
            "the two; export it to onnx, which holds both as one model, or pass on the run folder itself"
        )
    if to == "timm" and library != "timm":
        other = "hf or onnx" if library == "hf" else "onnx"
        problems.append(f"the student in {loaded.path} is a model of {library}, not of timm; export it to {other}")
    if to == "hf":
        problems += _hugging_face_problems(loaded)
    return problems


def write_format(loaded: LoadedRun, to: Format, folder: Path, batch_size: int | None) -> None:
    """Write a run into a folder, in a format without problems for it."""
    if to == "onnx":
        write_onnx(loaded, folder, batch_size)
    elif loaded.spec.library == "hf":
        save_vit(loaded.network.student, folder, labels=list(loaded.classes))
        _write_json(folder / "preprocessor_config.json", for_transformers(loaded.spec))
    else:
        _write_timm(loaded, folder, in_colour=to == "hf")


def reopened(loaded: LoadedRun, to: Format, folder: Path, batch_size: int | None) -> Reopened:
    """Open an exported folder with the library of its format."""
    if to == "onnx":
        return Reopened(open_onnx(folder, batch_size))
    if to == "timm":
        model = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
        return Reopened(model, create_transform(**resolve_data_config({}, model=model)))
    transformers = _transformers()
    network = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)

    def logits(images: Tensor) -> Tensor:
        return logits_of(network(images.expand(-1, 3, -1, -1) if loaded.spec.channels == 1 else images))

    def pixels(image: Image.Image) -> Tensor:
        found: Tensor = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return found

    return Reopened(logits, pixels)


def _hugging_face_problems(loaded: LoadedRun) -> list[str]:
    spec, student = loaded.spec, unwrapped(loaded.network.student)
    _transformers()
    if spec.library not in ("timm", "hf"):
        return [
            f"the student in {loaded.path} is a model of {spec.library}, not of timm or transformers; export to onnx"
        ]
    if spec.library == "hf" and "ForImageClassification" not in type(student).__name__:
        return [
            f"the student in {loaded.path} is a backbone with a head of this package, which transformers has no "
            "classifier for; export it to onnx"
        ]
    if spec.library == "hf" and spec.channels != 3:
        return [
            f"the student in {loaded.path} takes {spec.channels} channels, and transformers' processors make images of "
            "3; export it to onnx"
        ]
    return []


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise UserError("the hf format needs transformers; pip install 'attention-transfer[hf]'") from error


def _write_timm(loaded: LoadedRun, folder: Path, *, in_colour: bool) -> None:
    """Write the files that timm opens, and transformers through its wrapper of timm's models."""
    save_vit(loaded.network.student, folder, labels=list(loaded.classes))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    arguments = {key: value for key, value in config.get("model_args", {}).items() if key != "num_classes"}
    config |= {"model_args": arguments, "num_classes": len(loaded.classes), "label_names": list(loaded.classes)}
    config["pretrained_cfg"] |= for_timm(loaded.spec)
    for key in ("tag", "license"):  # of published weights, which these are not
        config["pretrained_cfg"].pop(key, None)
    if in_colour and loaded.spec.channels == 1:
        _widen(config, folder / "model.safetensors")
    _write_json(folder / "config.json", config)


def _widen(config: dict[str, Any], weights: Path) -> None:
    """Let a model of grey images take RGB: its patch embedding computes the luma.

    A normalised grey is linear in the colours, so the outputs equal those for the grey image up to its rounding.
    """
    state, first = load_file(weights), config["pretrained_cfg"]["first_conv"]
    kernel = state.get(f"{first}.weight")
    if kernel is None or kernel.dim() != 4:
        raise UserError(
            f"{config['architecture']} takes grey images, and its patch embedding can't be widened to the colours that "
            "transformers' processors make; export it to timm or onnx"
        )
    state[f"{first}.weight"] = (kernel * torch.tensor(_LUMA)[:, None, None]).contiguous()
    save_file(state, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    config["model_args"]["in_chans"] = 3
    settings = config["pretrained_cfg"]
    settings["input_size"] = [3, *settings["input_size"][1:]]
    settings["mean"], settings["std"] = settings["mean"] * 3, settings["std"] * 3


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
