"""The words that settings are chosen from, and one way to refuse others."""

from __future__ import annotations

from types import NoneType
from typing import Any, Literal, get_args, get_origin

from attention_transfer.errors import nearest

Auto = Literal["auto"]
"""A value that is left to what is trained; see `training/defaults.py`."""

AUTO: Auto = "auto"

Device = Literal["auto", "cpu", "cuda", "mps"]
Devices = int | Literal["auto"] | None
Strategy = Literal["ddp", "fsdp"]
LoggerName = Literal["tensorboard", "wandb", "mlflow"]
Precision = Literal["fp32", "bf16", "fp16"]
"""In which numbers a network is run; its weights are float32 in all of them."""

Augment = Literal["auto", "none", "shift", "light", "medium", "heavy"]
TransMix = Literal["off", "student", "teacher"]
"""Whose attention weighs the labels of CutMix."""

Tune = Literal["lr"]
"""What is searched before a training."""

Pool = Literal["token", "avg"]
Part = Literal["all", "embeddings", "blocks", "attention", "qkv", "qk", "mlp", "norms", "pool", "head"]
"""A part of a ViT.

- "all": every parameter.
- "embeddings": what stands before the blocks: patch embedding, position embeddings, class token, registers and other
  tokens, and a norm before the blocks (CLIP).
- "blocks": the residual blocks, whole.
- "attention": the attention modules of the blocks with all that is in them (projections of queries, keys and values and
  of the output, q/k norms, gates), and what only attention reads, wherever it is: relative position biases and learnt
  rotations. The norm before the attention is not part of it.
- "qkv": the projections of queries, keys and values in the blocks, with their biases.
- "qk": those of queries and keys alone; of a fused projection the first two thirds of its rows.
- "mlp": the MLPs of the blocks. The norm before the MLP is not part of it.
- "norms": every normalisation layer, wherever it is.
- "pool": an attention-pool head (SigLIP, PE) or pooler, up to the classifier.
- "head": the classifier, or both of a distilled network's.
"""

Depth = Literal["relative", "last"]
Heads = Literal["same", "mean", "match"]
Registers = Literal["drop", "to class"]

SplitName = Literal["train", "validation", "test"]
MapSource = Literal["attention", "rollout", "relevance"]
"""Which maps: a block's class token row (or else the patches' mean query) a head, or one map of all blocks."""

FrozenProbe = Literal["knn", "linear"]
Format = Literal["timm", "hf", "onnx"]
Probabilities = Literal["top", "all"]
Mean = Literal["probabilities", "logits"]
Weighting = Literal["equal", "validation"]


def wrong_choices(settings: object, **kinds: Any) -> list[str]:
    """Settings that have values which they may not have, a sentence each that names the nearest valid one.

    Args:
        settings: what has them, e.g. a rule; its class is named.
        kinds: by the name of a setting, its type: a `Literal`, or one `| None`.
    """
    found = []
    for name, kind in kinds.items():
        value, valid = getattr(settings, name), words_of(kind)
        if value not in valid:
            words = [str(word) for word in valid if word is not None]
            found.append(f"{type(settings).__name__}.{name} is {value!r}; {nearest(str(value), words)}")
    return found


def words_of(kind: Any) -> list[Any]:
    """The values of a `Literal`, or of all in a union; `None` where that may be left out."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [None] if kind is NoneType else [value for part in get_args(kind) for value in words_of(part)]
