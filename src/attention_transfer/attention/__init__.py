"""The mathematics of attention on plain tensors: logits, maps, and the distances between two attentions.

This room knows tensors only; it can be lifted out and used in any code.
"""

from attention_transfer.attention.losses import attention_cross_entropy as attention_cross_entropy
from attention_transfer.attention.losses import attention_kl as attention_kl
from attention_transfer.attention.losses import class_logit_l2 as class_logit_l2
from attention_transfer.attention.losses import logit_l2 as logit_l2
from attention_transfer.attention.maps import attention_logits as attention_logits
from attention_transfer.attention.maps import attention_maps as attention_maps
from attention_transfer.attention.maps import class_logits as class_logits

__all__ = [
    "attention_cross_entropy",
    "attention_kl",
    "attention_logits",
    "attention_maps",
    "class_logit_l2",
    "class_logits",
    "logit_l2",
]
