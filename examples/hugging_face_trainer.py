"""Attention Distillation inside the Trainer of Hugging Face transformers (which needs `pip install accelerate`).

python examples/hugging_face_trainer.py                    a few steps on random images, to see that it runs
python examples/hugging_face_trainer.py --pretrained       the same with DINOv2's weights (needs the network)
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModel, Dinov2Config, Dinov2Model, Trainer, TrainingArguments

import attention_transfer as at


class TransferTrainer(Trainer):
    """A Trainer whose model is an `AttentionTransfer`; items have `pixel_values` and `labels`, as transformers' have.

    Give `TrainingArguments` remove_unused_columns=False and label_names=["labels"]: the Trainer would look for both in
    the model's signature.
    """

    loss_is_scaled_for_ga = False  # a mean over the batch, which the Trainer divides where it accumulates gradients

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *_: Any, **__: Any) -> Any:
        """The task's loss and the rules', weighted."""
        output = model(inputs["pixel_values"])
        loss = output.total(F.cross_entropy(output.logits, inputs["labels"]))
        return (loss, {"logits": output.logits}) if return_outputs else loss


def train(transfer: at.AttentionTransfer, dataset: Any, folder: str, **settings: Any) -> TransferTrainer:
    """Train the student; returns the Trainer, whose `state.log_history` has the losses."""
    arguments = TrainingArguments(folder, remove_unused_columns=False, label_names=["labels"], **settings)
    trainer = TransferTrainer(transfer, arguments, train_dataset=dataset, eval_dataset=dataset)
    trainer.train()
    return trainer


def main(pretrained: bool) -> None:
    """Train on noise, and evaluate."""
    small = Dinov2Config(hidden_size=96, num_hidden_layers=3, num_attention_heads=3, image_size=56)
    teacher = AutoModel.from_pretrained("facebook/dinov2-small") if pretrained else Dinov2Model(small)
    student = at.student_like(teacher, num_classes=10)  # a Dinov2ForImageClassification, random weights
    transfer = at.AttentionTransfer(teacher, student, [at.Distill()])
    size = at.describe(student).image_size
    dataset = [{"pixel_values": torch.randn(3, *size), "labels": label} for label in range(8)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = train(transfer, dataset, folder, max_steps=3, logging_steps=1, save_strategy="no")
        print(trainer.evaluate())


if __name__ == "__main__":
    torch.manual_seed(0)
    main("--pretrained" in sys.argv)
