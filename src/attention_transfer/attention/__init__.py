"""The mathematics of attention on plain tensors: logits, maps, and the distances between two attentions.

This room knows tensors only; it can be lifted out and used in any code.
"""

from attention_transfer.attention.dispatch import FUSED_IMPLS as FUSED_IMPLS
from attention_transfer.attention.dispatch import Choice as Choice
from attention_transfer.attention.dispatch import Impl as Impl
from attention_transfer.attention.dispatch import choose as choose
from attention_transfer.attention.dispatch import choose_impl as choose_impl
from attention_transfer.attention.losses import Distance as Distance
from attention_transfer.attention.losses import attention_cross_entropy as attention_cross_entropy
from attention_transfer.attention.losses import attention_js as attention_js
from attention_transfer.attention.losses import attention_kl as attention_kl
from attention_transfer.attention.losses import attention_mse as attention_mse
from attention_transfer.attention.losses import distilled as distilled
from attention_transfer.attention.losses import distilled_attention as distilled_attention
from attention_transfer.attention.losses import frozen_attention as frozen_attention
from attention_transfer.attention.losses import logit_l2 as logit_l2
from attention_transfer.attention.losses import output_l2 as output_l2
from attention_transfer.attention.losses import output_l2_between as output_l2_between
from attention_transfer.attention.maps import attention_logits as attention_logits
from attention_transfer.attention.maps import attention_maps as attention_maps
from attention_transfer.attention.maps import class_logits as class_logits
from attention_transfer.attention.operands import POOL as POOL
from attention_transfer.attention.operands import AttentionCall as AttentionCall
from attention_transfer.attention.operands import Query as Query
from attention_transfer.attention.operands import Tokens as Tokens
