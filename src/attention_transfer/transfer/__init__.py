"""Rules that bind a student's attention to its teacher's, and the methods that are made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.lazy import lazily

if TYPE_CHECKING:
    from attention_transfer.config.presets import PRESETS as PRESETS
    from attention_transfer.config.presets import Preset as Preset
    from attention_transfer.config.presets import preset as preset
    from attention_transfer.transfer.copying import Copy as Copy
    from attention_transfer.transfer.distill import Distill as Distill
    from attention_transfer.transfer.guide import Guide as Guide
    from attention_transfer.transfer.module import AttentionTransfer as AttentionTransfer
    from attention_transfer.transfer.module import TransferOutput as TransferOutput
    from attention_transfer.transfer.outputs import FeatureKD as FeatureKD
    from attention_transfer.transfer.outputs import LogitKD as LogitKD
    from attention_transfer.transfer.regularisers import BSS as BSS
    from attention_transfer.transfer.regularisers import L2SP as L2SP
    from attention_transfer.transfer.rule import AttentionRule as AttentionRule
    from attention_transfer.transfer.rule import CallPair as CallPair
    from attention_transfer.transfer.rule import JointLossRule as JointLossRule
    from attention_transfer.transfer.rule import LossRule as LossRule
    from attention_transfer.transfer.rule import NetworkRule as NetworkRule
    from attention_transfer.transfer.rule import OperandRule as OperandRule
    from attention_transfer.transfer.rule import Rule as Rule
    from attention_transfer.transfer.rule import Seen as Seen
else:
    __all__, __getattr__ = lazily(__name__)  # so that rules can be looked up by name without loading torch
