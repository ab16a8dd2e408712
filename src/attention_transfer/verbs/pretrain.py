"""The verb `pretrain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.training import Pretrain
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.training import Run


@verb(Pretrain, resumes=True, lists=True, extra="train")
def pretrain(config: Pretrain) -> Run:
    """Make a teacher by masked autoencoding (MAE) of the training images; their labels are not looked at.

    A folder of images needs no class folders here.

    Returns:
        The folder and the summary of the run; `validation.loss` is the reconstruction loss on held-out images.

    Raises:
        UserError: the input is wrong; every mistake is listed, and nothing was written.
    """
    from attention_transfer.training.pretrain import pretrain_teacher

    return pretrain_teacher(config)
