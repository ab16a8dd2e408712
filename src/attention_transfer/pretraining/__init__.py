"""Objectives that make a teacher where there is none.

The room is called `pretraining` and not `pretrain`, because `attention_transfer.pretrain` is the verb.
"""

from attention_transfer.pretraining.mae import MAEOutput as MAEOutput
from attention_transfer.pretraining.mae import MaskedAutoencoder as MaskedAutoencoder
