"""Transfer the attention of a pre-trained vision transformer: copy it, distil it, or be guided by it.

Everything is loaded when it is first used: the library for a training loop of one's own (`capture`,
`AttentionTransfer`, the rules, the losses) loads torch, and timm when a model is first met; the verbs (`train`,
`compare`, `predict`, `export` and others) the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attention_transfer.attention import (
        attention_cross_entropy,
        attention_js,
        attention_kl,
        attention_logits,
        attention_maps,
        attention_mse,
        choose_impl,
        class_logits,
        distilled_attention,
        frozen_attention,
        logit_l2,
        output_l2,
    )
    from attention_transfer.data import inspect_data
    from attention_transfer.errors import UserError
    from attention_transfer.evaluation import Ensemble, doctor, ensemble, export, load_classifier, load_run, predict
    from attention_transfer.experiments import bench, compare, demo
    from attention_transfer.training import Recipe, Run, presets, pretrain, train
    from attention_transfer.transfer import (
        BSS,
        L2SP,
        PRESETS,
        AttentionRule,
        AttentionTransfer,
        Copy,
        Distill,
        FeatureKD,
        Guide,
        JointLossRule,
        LogitKD,
        LossRule,
        NetworkRule,
        OperandRule,
        Preset,
        Rule,
        Seen,
        TransferOutput,
    )
    from attention_transfer.vit import (
        AttentionCall,
        AttentionProbe,
        Difference,
        Pairing,
        Tokens,
        TransferReport,
        ViTSpec,
        capture,
        check_transfer,
        describe,
        load_vit,
        student_from,
        student_like,
    )

_ROOMS: dict[str, tuple[str, ...]] = {
    "errors": ("UserError",),
    "attention": (
        "attention_cross_entropy",
        "attention_js",
        "attention_kl",
        "attention_logits",
        "attention_maps",
        "attention_mse",
        "choose_impl",
        "class_logits",
        "distilled_attention",
        "frozen_attention",
        "logit_l2",
        "output_l2",
    ),
    "vit": (
        "AttentionCall",
        "AttentionProbe",
        "Difference",
        "Pairing",
        "Tokens",
        "TransferReport",
        "ViTSpec",
        "capture",
        "check_transfer",
        "describe",
        "load_vit",
        "student_from",
        "student_like",
    ),
    "transfer": (
        "AttentionRule",
        "AttentionTransfer",
        "BSS",
        "Copy",
        "Distill",
        "FeatureKD",
        "Guide",
        "JointLossRule",
        "L2SP",
        "LogitKD",
        "LossRule",
        "NetworkRule",
        "OperandRule",
        "PRESETS",
        "Preset",
        "Rule",
        "Seen",
        "TransferOutput",
    ),
    "data": ("inspect_data",),
    "training": (
        "Recipe",
        "Run",
        "presets",
        "pretrain",
        "train",
    ),
    "evaluation": (
        "Ensemble",
        "doctor",
        "ensemble",
        "export",
        "load_classifier",
        "load_run",
        "predict",
    ),
    "experiments": (
        "bench",
        "compare",
        "demo",
    ),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "BSS",
    "L2SP",
    "PRESETS",
    "AttentionCall",
    "AttentionProbe",
    "AttentionRule",
    "AttentionTransfer",
    "Copy",
    "Difference",
    "Distill",
    "Ensemble",
    "FeatureKD",
    "Guide",
    "JointLossRule",
    "LogitKD",
    "LossRule",
    "NetworkRule",
    "OperandRule",
    "Pairing",
    "Preset",
    "Recipe",
    "Rule",
    "Run",
    "Seen",
    "Tokens",
    "TransferOutput",
    "TransferReport",
    "UserError",
    "ViTSpec",
    "attention_cross_entropy",
    "attention_js",
    "attention_kl",
    "attention_logits",
    "attention_maps",
    "attention_mse",
    "bench",
    "capture",
    "check_transfer",
    "choose_impl",
    "class_logits",
    "compare",
    "demo",
    "describe",
    "distilled_attention",
    "doctor",
    "ensemble",
    "export",
    "frozen_attention",
    "inspect_data",
    "load_classifier",
    "load_run",
    "load_vit",
    "logit_l2",
    "output_l2",
    "predict",
    "presets",
    "pretrain",
    "student_from",
    "student_like",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load a name's room when it is first asked for."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    return value
