"""A trained run as one ONNX file; a copied student with the part of its teacher that it attends by."""

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
from attention_transfer.evaluation.network import LoadedRun, Network
from attention_transfer.evaluation.preprocessing import as_data
from attention_transfer.vit import AttentionCall, describe, hook_attention
from attention_transfer.writing import write_whole

FILE = "model.onnx"
# A file of protocol buffers ends at 2 GiB; larger weights go into a file of their own beside it.
_LARGEST = 2**31 - 2**27


def write_onnx(loaded: LoadedRun, folder: Path, batch_size: int | None) -> None:
    """Write `model.onnx` and `preprocessing.json`.

    Args:
        loaded: the run.
        folder: where to; made if it is not there.
        batch_size: images a forward pass takes; `None` for any number.

    Raises:
        UserError: packages are missing, or the network has an operation that ONNX does not.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        package(name)
    tidy = package("onnx_ir.passes.common").ClearMetadataAndDocStringPass()  # paths of this machine, by the hundred
    spec = loaded.spec
    images = torch.zeros(batch_size or 2, spec.channels, *spec.image_size)
    any_number = {"images": {0: torch.export.Dim("batch", min=1)}}
    try:
        with _biases_in_the_open(loaded.network):
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
def _biases_in_the_open(network: Network) -> Iterator[None]:
    """Attention with a position bias as products and a softmax: torch can't trace its fused form for any batch."""

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
    """What onnxruntime gives on the CPU: logits (B, classes) of images (B, channels, height, width).

    Raises:
        UserError: it can't run the model; also when the logits are asked for.
    """
    with _said_in_a_sentence():
        session = package("onnxruntime").InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])

    def logits(images: Tensor) -> Tensor:
        size = batch_size or len(images)
        filled = torch.cat([images, images[:1].expand(-len(images) % size, -1, -1, -1)])
        with _said_in_a_sentence():
            found = [session.run(["logits"], {"images": batch.numpy()})[0] for batch in filled.split(size)]
        return torch.cat([torch.from_numpy(part) for part in found])[: len(images)]

    return logits


def package(name: str) -> Any:
    """A package of the extra `onnx`.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"ONNX needs {name}; pip install 'attention-transfer[onnx]'") from error


@contextmanager
def _said_in_a_sentence() -> Iterator[None]:
    """The errors of onnxruntime, which have no class in common but `Exception`."""
    kinds = package("onnxruntime").capi.onnxruntime_pybind11_state
    errors = (kinds.Fail, kinds.InvalidArgument, kinds.InvalidGraph, kinds.NotImplemented, kinds.RuntimeException)
    try:
        yield
    except errors as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"onnxruntime can't run the model ({reason[:160]}); export it to another format") from error


def _weights(model: Any) -> list[Any]:
    return [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
