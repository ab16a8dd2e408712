"""Rules that bind a student's attention to its teacher's, and the methods that are made of them.

A name's module is imported when the name is first used, so that the names of rules and presets cost no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attention_transfer.transfer.copying import Copy as Copy
    from attention_transfer.transfer.distill import Distill as Distill
    from attention_transfer.transfer.guide import Guide as Guide
    from attention_transfer.transfer.module import AttentionTransfer as AttentionTransfer
    from attention_transfer.transfer.module import TransferOutput as TransferOutput
    from attention_transfer.transfer.outputs import FeatureKD as FeatureKD
    from attention_transfer.transfer.outputs import LogitKD as LogitKD
    from attention_transfer.transfer.presets import PRESETS as PRESETS
    from attention_transfer.transfer.presets import Preset as Preset
    from attention_transfer.transfer.presets import preset as preset
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

_HOMES = {
    "copying": ("Copy",),
    "distill": ("Distill",),
    "guide": ("Guide",),
    "module": ("AttentionTransfer", "TransferOutput"),
    "outputs": ("FeatureKD", "LogitKD"),
    "presets": ("PRESETS", "Preset", "preset"),
    "regularisers": ("BSS", "L2SP"),
    "rule": ("AttentionRule", "CallPair", "JointLossRule", "LossRule", "NetworkRule", "OperandRule", "Rule", "Seen"),
}
__all__ = [name for names in _HOMES.values() for name in names]


def __getattr__(name: str) -> Any:
    """Import a name's module when the name is first asked for."""
    for home, names in _HOMES.items():
        if name in names:
            globals()[name] = value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
