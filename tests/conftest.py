"""Tiny models and independent references that several rooms' tests share."""

from __future__ import annotations

import copy
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from timm.layers.config import set_reentrant_ckpt, use_reentrant_ckpt
from torch import Tensor, nn

from attention_transfer.vit import save_vit
from tests.warm import Python

TINY = {
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 3,
    "num_classes": 5,
}


# In the background of a script Ctrl-C is ignored, also by the processes that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Tensors that stand for those of a GPU make torch believe in one. Where the first backward pass of a process comes
# after that, it starts threads for the GPU, and no process that is forked later can have a backward pass.
torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """No test depends on which test ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def tiny_vit() -> Callable[..., Any]:
    """Builds a seeded ViT of 3 blocks, 3 heads and 4 patches; keywords override timm's arguments."""

    def build(seed: int = 0, name: str = "vit_tiny_patch16_224", **overrides: Any) -> Any:
        torch.manual_seed(seed)
        model = timm.create_model(name, **{**TINY, **overrides})
        # timm's small initial weights make every attention map flat, so that a wrong map would look right.
        with torch.no_grad():
            for parameter in model.parameters():
                spread = 0.3 if parameter.dim() > 1 else 0.1
                parameter.add_(torch.randn_like(parameter) * spread)
        return model.eval()

    return build


@pytest.fixture
def images() -> Tensor:
    """Four random grey images of 8x8 pixels."""
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def unfused_maps() -> Callable[[nn.Module, Tensor], list[Tensor]]:
    """Attention maps by timm's own unfused code: its dropout gets the softmax as input."""

    def run(model: nn.Module, images: Tensor) -> list[Tensor]:
        plain: Any = copy.deepcopy(model)
        maps: list[Tensor] = []
        for block in plain.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda module, args, output: maps.append(args[0].detach()))
        with torch.no_grad():
            plain(images)
        return maps

    return run


@pytest.fixture
def tapped() -> Callable[[nn.Module], list[str]]:
    """Names of the modules whose forward is replaced on the instance."""
    return lambda model: [name for name, module in model.named_modules() if "forward" in module.__dict__]


@pytest.fixture
def reentrant() -> Iterator[Callable[[bool], None]]:
    """Chooses timm's kind of gradient checkpointing for one test."""
    before = use_reentrant_ckpt()
    yield set_reentrant_ckpt
    set_reentrant_ckpt(before)


@pytest.fixture
def vit(tiny_vit: Callable[..., Any]) -> nn.Module:
    """One tiny ViT."""
    model: nn.Module = tiny_vit()
    return model


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """Runs a program like `python`, but where torch is loaded already."""
    return Python(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def warm_workers(python: Python, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets processes in which this package works begin where torch is loaded, and not from nothing."""
    get_context = multiprocessing.get_context

    def warm(method: str | None = None) -> Any:
        return python.context if method == "spawn" else get_context(method)

    monkeypatch.setattr(multiprocessing, "get_context", warm)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an exported tiny ViT for digits, as `--teacher` takes it."""
    torch.manual_seed(1)
    sizes = {**TINY, "num_classes": 10, "depth": 2}
    model = timm.create_model("vit_tiny_patch16_224", **sizes, pretrained_cfg_overlay={"mean": (0.5,), "std": (0.5,)})
    folder = tmp_path_factory.mktemp("teacher") / "model"
    save_vit(model, folder)
    return str(folder)
