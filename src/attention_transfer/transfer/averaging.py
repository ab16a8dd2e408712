"""Maps averaged before they are transferred: an ablation that shows what of attention matters (Li et al. 2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from attention_transfer.attention import AttentionCall

Average = Literal["images", "queries", "heads"]
_DIMENSION: dict[Average, int] = {"images": 0, "heads": 1, "queries": 2}


def averaged(call: AttentionCall, over: Average | None) -> AttentionCall:
    """The call with its maps averaged over a batch's images, its heads or its query rows; as it is for `None`.

    The maps are formed, as a bias of queries and keys that are 0: this is for ablations and not for speed.
    """
    if over is None:
        return call
    maps_BHNM: Tensor = call.as_logits().logits().softmax(dim=-1)
    mixed = maps_BHNM.mean(dim=_DIMENSION[over], keepdim=True).expand_as(maps_BHNM)
    zeros_q, zeros_k = call.q.new_zeros(1).expand_as(call.q), call.k.new_zeros(1).expand_as(call.k)
    return replace(call, q=zeros_q, k=zeros_k, mask=mixed.log(), scale=1.0)
