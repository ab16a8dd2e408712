"""What a forward pass of a network costs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attention_transfer.vit import ViTSpec

_REPEATS = 3


@dataclass(frozen=True)
class ForwardCost:
    """What it takes to run a network on images.

    Attributes:
        flops: floating-point operations of the products for one image; a multiplication with its addition is two.
        images_per_second: of forward passes alone, without reading images; the median of three batches.
        device: where that was measured.
    """

    flops: int
    images_per_second: float
    device: str


def forward_cost(network: nn.Module, spec: ViTSpec, *, batch: int = 8) -> ForwardCost:
    """Count and time forward passes on noise.

    Args:
        network: in eval mode, on its device.
        spec: of what it takes.
        batch: images a forward pass, for the time.
    """
    weights = next(p for p in network.parameters() if p.is_floating_point())
    shape = (batch, spec.channels, *spec.image_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weights)
    # With gradients and this kernel, attention is the products that it consists of; fused ones are not counted.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(noise[:1])
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + _REPEATS):
            begun = time.perf_counter()
            network(noise)
            if weights.is_cuda:
                torch.cuda.synchronize(weights.device)
            seconds.append(time.perf_counter() - begun)
    return ForwardCost(int(counter.get_total_flops()), batch / median(seconds[1:]), weights.device.type)
