"""Attention Distillation in a LightningModule of your own: a few steps on noise."""

from __future__ import annotations

from typing import Any

import lightning as L
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import attention_transfer as at


class Distilled(L.LightningModule):
    """Trains the student; the teacher is neither among the parameters nor in checkpoints."""

    def __init__(self, transfer: at.AttentionTransfer, lr: float) -> None:
        super().__init__()
        self.transfer = transfer
        self.lr = lr

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:  # noqa: ARG002
        """The task's loss and those of the rules."""
        images, labels = batch
        output = self.transfer(images)
        loss: Tensor = output.total(F.cross_entropy(output.logits, labels))
        self.log_dict({"loss": loss.detach(), **{name: value.detach() for name, value in output.losses.items()}})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Only the student has parameters here."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def train(
    teacher: nn.Module,
    student: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    *,
    lr: float = 1e-3,
    **trainer: Any,
) -> L.Trainer:
    """Distil the attention of a teacher into a student."""
    settings = {
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        **trainer,
    }
    made = L.Trainer(**settings)
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    made.fit(Distilled(at.AttentionTransfer(teacher, student, [at.Distill(weight=3.0)]), lr), loader)
    return made


def main() -> None:
    """Train on batches of noise."""
    torch.manual_seed(0)
    teacher = timm.create_model("vit_small_patch16_224.dino")  # pretrained=True has DINO's weights
    batches = [(torch.randn(2, 3, 224, 224), torch.randint(10, (2,))) for _ in range(3)]
    trainer = train(teacher, at.student_like(teacher, num_classes=10), batches, enable_progress_bar=False)
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main()
