"""Only what is asked for is computed: no attention map where nobody asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VisionTransformer

from attention_transfer.transfer import AttentionTransfer, Copy, Guide
from attention_transfer.vit import AttentionProbe, capture, logits_of

Build = Callable[..., Any]

TOKENS = 197  # 14x14 patches and the class token
MAP = TOKENS * TOKENS  # elements of the map of one head; everything else in these models is smaller


class Kernels(TorchDispatchMode):
    """Writes down what runs, and the elements of the largest tensor that comes out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        sizes = (leaf.untyped_storage().nbytes() // leaf.element_size() for leaf in tree_leaves(output) if is_own(leaf))
        self.largest = max(self.largest, *sizes, 0)
        return output


def is_own(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided


@contextmanager
def formed(*, maps: bool) -> Iterator[None]:
    """Assert whether a tensor as large as the map of a head comes up inside the block."""
    with Kernels() as kernels:
        yield
    assert (kernels.largest >= MAP) is maps


def hugging_face(**_: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 28, "patch_size": 2, "num_attention_heads": 3, "hidden_size": 24, "intermediate_size": 48}
    config = transformers.ViTConfig(num_hidden_layers=2, num_labels=5, **sizes)
    return transformers.ViTForImageClassification(config).eval()


def torchvision_vit(**_: Any) -> Any:
    return VisionTransformer(28, 2, num_layers=2, num_heads=4, hidden_dim=24, mlp_dim=48, num_classes=5).eval()


@pytest.fixture
def make(tiny_vit: Build) -> Build:
    """Builds a ViT of two narrow blocks and 197 tokens, for colour images of 28x28 pixels."""
    builders: dict[str, Build] = {
        "timm": lambda seed: tiny_vit(seed, img_size=28, patch_size=2, in_chans=3, depth=2, mlp_ratio=2),
        "hf": hugging_face,
        "torchvision": torchvision_vit,
    }

    def build(library: str, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        return builders[library](seed=seed)

    return build


LIBRARIES = ["timm", "hf", "torchvision"]
MODES = [("timm", False), ("timm", True), ("hf", False), ("hf", True), ("torchvision", False), ("torchvision", True)]
PICTURE = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("library", "training"), MODES)
def test_no_map_is_formed_until_it_is_asked_for(library: str, training: bool, make: Build) -> None:
    model = make(library).train(training)
    with formed(maps=False), torch.set_grad_enabled(training), capture(model) as calls:
        model(PICTURE)
    assert calls[0].q.shape[-2:] == (TOKENS, calls[0].v.shape[-1])
    with formed(maps=False):
        rows = calls[0].class_logits()
    with formed(maps=False):
        assert calls[1].class_logits(query="mean").shape == rows.shape == (*calls[0].q.shape[:2], TOKENS)
    with formed(maps=True):
        maps = calls[0].maps()
    assert maps.shape[-2:] == (TOKENS, TOKENS)
    with formed(maps=True):
        calls[0].logits()


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_gradient_of_a_class_row_forms_no_map_either(library: str, make: Build) -> None:
    model = make(library).train()
    with formed(maps=False), capture(model) as calls:
        output = logits_of(model(PICTURE))
        (output.sum() + sum(call.class_logits().square().sum() for call in calls)).backward()


@pytest.mark.parametrize(("library", "training"), [mode for mode in MODES if mode[0] != "torchvision"])
def test_capture_runs_no_kernel_of_its_own(library: str, training: bool, make: Build) -> None:
    model = make(library).train(training)
    with torch.set_grad_enabled(training):
        with Kernels() as without:
            model(PICTURE)
        with Kernels() as within, capture(model):
            model(PICTURE)
        with Kernels() as twice, capture(model), capture(model, layers=[0]):
            model(PICTURE)
    assert within.names == twice.names == without.names
    assert sum("_scaled_dot_product_flash_attention_for_cpu" in name for name in within.names) == 2


def test_a_backward_pass_under_capture_runs_no_kernel_of_its_own(make: Build) -> None:
    model = make("timm").train()

    def kernels() -> list[str]:
        model.zero_grad()
        with Kernels() as run:
            model(PICTURE).sum().backward()
        names: list[str] = run.names
        return names

    without = kernels()
    with capture(model):
        assert kernels() == without


def flops(model: Any, *, training: bool, captured: bool) -> int:
    with torch.set_grad_enabled(training), FlopCounterMode(display=False) as counter:
        if captured:
            with capture(model):
                model(PICTURE)
        else:
            model(PICTURE)
    return int(counter.get_total_flops())


def test_torchvisions_operands_are_projected_once_in_training(make: Build) -> None:
    model = make("torchvision").train()
    assert flops(model, training=True, captured=True) == flops(model, training=True, captured=False)


def test_torchvisions_operands_are_projected_a_second_time_in_inference_and_that_is_all(make: Build) -> None:
    model = make("torchvision")
    projections = 2 * 2 * TOKENS * 24 * (3 * 24)  # two blocks; a multiplication and an addition each
    difference = flops(model, training=False, captured=True) - flops(model, training=False, captured=False)
    assert difference == projections


@pytest.mark.parametrize("rule", [Copy(), Guide(), Guide(query="mean")])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_step_of_copy_or_guide_forms_no_map(library: str, rule: Any, make: Build) -> None:
    transfer = AttentionTransfer(make(library, 1), make(library, 2), [rule]).train()
    with formed(maps=False):
        output = transfer(PICTURE)
        output.total(F.cross_entropy(output.logits, torch.tensor([3]))).backward()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_probe_runs_its_model_no_further_than_the_last_attention(library: str, make: Build) -> None:
    model = make(library)
    with formed(maps=False), Kernels() as kernels:
        AttentionProbe(model, [0])(PICTURE)
    assert not any("dot_product" in name or "gelu" in name for name in kernels.names)
