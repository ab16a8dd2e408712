"""What `import attention_transfer` gives, and what it loads."""

from __future__ import annotations

import subprocess
import sys

import attention_transfer


def test_every_public_name_is_there() -> None:
    for name in attention_transfer.__all__:
        assert getattr(attention_transfer, name) is not None
    assert len(set(attention_transfer.__all__)) == len(attention_transfer.__all__)


def test_the_library_loads_torch_and_timm_only() -> None:
    code = """
import sys, torch, timm
before = set(sys.modules)
import attention_transfer as at
model = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=24, depth=2, num_heads=2)
student = at.student_like(model, num_classes=3)
transfer = at.AttentionTransfer(model, student, [at.Distill()])
transfer(torch.randn(2, 3, 8, 8))
heavy = {"lightning", "jsonargparse", "sklearn", "scipy", "matplotlib", "rich", "torchmetrics", "jinja2", "yaml"}
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before} & heavy))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_of_the_library_load_torch_alone() -> None:
    code = """
import sys, torch
from attention_transfer import AttentionTransfer, Copy, Distill, Guide, attention_kl, capture, describe, load_vit
print(sorted({"timm", "torchvision", "transformers", "triton", "torch._dynamo"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(attention_transfer, "no_such_thing")
