"""Write a trained run as one ONNX file, together with the part of its teacher whose attention it copies."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention_transfer.errors import UserError
from attention_transfer.evaluation.classifier import Classifier, LoadedRun
from attention_transfer.evaluation.preprocessing import as_data
from attention_transfer.vit import AttentionCall, describe, hook_attention
from attention_transfer.writing import write_whole

FILE = "model.onnx"
# A protocol buffer file holds at most 2 GiB; larger weights go into a second file.
_LARGEST = 2**31 - 2**27


def write_onnx(loaded: LoadedRun, folder: Path, batch_size: int | None) -> None:
    """Write `model.onnx` and `preprocessing.json`.

    Args:
        loaded: the run.
        folder: the target, which is made if it is not there.
        batch_size: images a forward pass; `None` for any number.

    Raises:
        UserError: packages are missing, or ONNX lacks an operation of the network.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        package(name)
    tidy = package("onnx_ir.passes.common").ClearMetadataAndDocStringPass()  # paths of this machine, by the hundred
    spec = loaded.spec
    images = torch.zeros(batch_size or 2, spec.channels, *spec.image_size)
    any_number = {"images": {0: torch.export.Dim("batch", min=1)}}
    try:
        with _unfused_biases(loaded.network):
            program = torch.onnx.export(
                loaded.network,
                (images,),
                dynamo=True,
                dynamic_shapes=None if batch_size else any_number,
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or [""])[0]
        raise UserError(
            f"ONNX can't hold {spec.name} ({reason[:160]}); export it to another format, or use the run folder itself"
        ) from error
    assert program is not None
    tidy(program.model)
    content = as_data(spec, loaded.classes)
    content["input"]["shape"][0] = content["output"]["shape"][0] = batch_size or "batch"
    program.model.metadata_props.update({key: json.dumps(value) for key, value in content.items()})
    folder.mkdir(parents=True, exist_ok=True)
    weights = sum(value.nbytes for value in _weights(program.model))
    program.save(str(folder / FILE), external_data=weights > _LARGEST)
    write_whole(folder / "preprocessing.json", json.dumps(content, indent=2) + "\n")


@contextmanager
def _unfused_biases(network: Classifier) -> Iterator[None]:
    """Compute attention with a position bias unfused: torch can't trace its fused form for any batch size."""

    def attended(call: AttentionCall) -> AttentionCall | Tensor:
        return call if call.mask is None else call.maps() @ call.v

    vits = [vit for vit in (network.student, network.transfer.teacher) if vit is not None]
    biased = [vit for vit in vits if "relative position bias" in describe(vit).components]
    handles = [
        handle for vit in biased for handle in hook_attention(vit, dict.fromkeys(range(describe(vit).depth), attended))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def open_onnx(folder: Path, batch_size: int | None) -> Callable[[Tensor], Tensor]:
    """Open a model with onnxruntime on the CPU: a function from images (B, channels, height, width) to logits (B, C).

    Raises:
        UserError: it can't run the model; the function that is returned raises it, too.
    """
    with _onnxruntime_errors():
        session = package("onnxruntime").InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])

    def logits(images: Tensor) -> Tensor:
        size = batch_size or len(images)
        filled = torch.cat([images, images[:1].expand(-len(images) % size, -1, -1, -1)])
        with _onnxruntime_errors():
            found = [session.run(["logits"], {"images": batch.numpy()})[0] for batch in filled.split(size)]
        return torch.cat([torch.from_numpy(part) for part in found])[: len(images)]

    return logits


def package(name: str) -> Any:
    """Import a package of the extra `onnx`.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"ONNX needs {name}; pip install 'attention-transfer[onnx]'") from error


@contextmanager
def _onnxruntime_errors() -> Iterator[None]:
    """Turn errors of onnxruntime, which have no class in common but `Exception`, into a `UserError`."""
    kinds = package("onnxruntime").capi.onnxruntime_pybind11_state
    errors = (kinds.Fail, kinds.InvalidArgument, kinds.InvalidGraph, kinds.NotImplemented, kinds.RuntimeException)
    try:
        yield
    except errors as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"onnxruntime can't run the model ({reason[:160]}); export it to another format") from error


def _weights(model: Any) -> list[Any]:
    return [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
