"""Attention Distillation as a task of timm, beside its own of logits and features: a few steps on noise."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import attention_transfer as at


class AttentionTransferTask(TrainingTask):
    """Any rules but `Copy`, whose student is no model without its teacher; the teacher is in no checkpoint."""

    def __init__(self, transfer: at.AttentionTransfer, criterion: nn.Module, **settings: Any) -> None:
        super().__init__(**settings)
        self.trainable_module: nn.Module = transfer
        self.criterion = criterion

    def prepare_distributed(self, device_ids: list[int] | None = None, **settings: Any) -> AttentionTransferTask:
        """Synchronise the student's gradients."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids, **settings)
        return self

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The student, which is what is validated and saved."""
        wrapped = super().get_eval_model(module, ema)
        return None if wrapped is None else unwrap_model(wrapped).student

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """`loss` and `output`, as of every task, and the parts of the loss."""
        output = self.trainable_module(input)
        task_loss = self.criterion(output.logits, target)
        return {"loss": output.total(task_loss), "output": output.logits, "task_loss": task_loss, **output.losses}


def main() -> None:
    """Train on a batch of noise."""
    torch.manual_seed(0)
    teacher = timm.create_model("vit_small_patch16_224.dino")  # pretrained=True has DINO's weights
    transfer = at.AttentionTransfer(teacher, at.student_like(teacher, num_classes=10), [at.Distill()])
    task, optimizer = AttentionTransferTask(transfer, nn.CrossEntropyLoss()), create_optimizer_v2(transfer, lr=0.01)
    for _ in range(3):
        result = task(torch.randn(2, 3, 224, 224), torch.randint(10, (2,)))
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        print({name: round(result[name].item(), 3) for name in ("loss", "task_loss", "distill")})


if __name__ == "__main__":
    main()
