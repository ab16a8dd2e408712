"""A ViT out of an ONNX graph, whose exporter has renamed the matrices: the bias that is added tells which is which."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

DEPTH, WIDTH, PATCHES = 12, 384, 37 * 37
_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def state_dict(model: bytes) -> dict[str, torch.Tensor]:
    """The weights under timm's names, float32; they load strictly into vit_small_patch14_dinov2."""
    graph = onnx.load_model_from_string(model).graph
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    matrices = _matrices(graph, kept)
    named = {name.removeprefix("backbone."): value for name, value in kept.items()}
    named |= {f"{bias.removeprefix('backbone.').removesuffix('.bias')}.weight": w for bias, w in matrices.items()}
    found = {
        "cls_token": named["embeddings.cls_token"],
        "pos_embed": np.concatenate([_folded(kept, 1), _folded(kept, PATCHES)], axis=1),
    }
    for theirs, ours in (("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("layernorm", "norm")):
        found |= {f"{ours}.{end}": named[f"{theirs}.{end}"] for end in ("weight", "bias")}
    for i in range(DEPTH):
        old, new = f"encoder.layer.{i}.", f"blocks.{i}."
        for theirs, ours in _BLOCK.items():
            found |= {f"{new}{ours}.{end}": named[f"{old}{theirs}.{end}"] for end in ("weight", "bias")}
        for end in ("weight", "bias"):
            parts = [named[f"{old}attention.attention.{part}.{end}"] for part in ("query", "key", "value")]
            found[f"{new}attn.qkv.{end}"] = np.concatenate(parts)
        found |= {f"{new}ls{n}.gamma": named[f"{old}layer_scale{n}.lambda1"] for n in (1, 2)}
    return {name: torch.from_numpy(np.array(value, order="C")) for name, value in found.items()}


def _matrices(graph: onnx.GraphProto, kept: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The weight of each linear layer, (out, in), by the name of the bias that follows its product."""
    maker = {output: node for node in graph.node for output in node.output}
    found = {}
    for addition in [node for node in graph.node if node.op_type == "Add"]:
        biases = [name for name in addition.input if name in kept and name.endswith(".bias")]
        products = [maker[name] for name in addition.input if name in maker and maker[name].op_type == "MatMul"]
        for bias, product in zip(biases, products, strict=False):  # additions of other kinds have one or none of them
            found[bias] = next(kept[name].T for name in product.input if name in kept)
    return found


def _folded(kept: dict[str, NDArray[np.float32]], tokens: int) -> NDArray[np.float32]:
    """Position embeddings, which the exporter has folded into constants without a name: (1, tokens, width)."""
    nameless = [value for name, value in kept.items() if name.startswith("onnx::")]
    return next(value for value in nameless if value.shape == (1, tokens, WIDTH))
