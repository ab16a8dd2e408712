"""Forward passes over images, and what was seen in them: attention calls, and figures of the blocks' outputs.

Shapes: B images of a batch, L blocks, H heads, N tokens, R query rows, M keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from attention_transfer.attention import attention_logits
from attention_transfer.data import Normalise
from attention_transfer.errors import UserError
from attention_transfer.vit import AttentionCall, Indices, ViTSpec, anatomy, capture, describe, select


class ImageSequence(Protocol):
    """Images by index: a list, or the `images` of a `Split`."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> Image.Image:
        """The image at an index."""


@dataclass(frozen=True, eq=False)
class ForwardRecord:
    """What one forward pass showed.

    Attributes:
        images: indices of the images of this batch.
        calls: the attention of the chosen blocks, in order.
        grams: inner products between the images' centred block outputs, flattened over tokens, float64 (L, B, B).
        norms: of the tokens in the blocks' outputs, float32 (L, B, N).
    """

    images: range
    calls: Sequence[AttentionCall]
    grams: Tensor
    norms: Tensor


def input_batches(
    network: nn.Module, spec: ViTSpec, images: ImageSequence, pixels: Callable[[Image.Image], Tensor], batch: int
) -> Iterator[tuple[range, list[Image.Image], Tensor]]:
    """Batches of indices, images, and a network's normalised input on its device.

    Raises:
        UserError: there are no images, or the network is in training mode.
    """
    if not len(images):
        raise UserError("there are no images to run the network on; give at least one")
    if network.training:
        raise UserError("the network is in training mode, in which dropout changes what it does; call .eval() first")
    weights = next(p for p in network.parameters() if p.is_floating_point())
    prepare = Normalise(spec).to(weights.device)
    for start in range(0, len(images), batch):
        places = range(start, min(start + batch, len(images)))
        pictures = [images[i] for i in places]
        inputs = prepare(torch.stack([pixels(picture) for picture in pictures]).to(weights.device))
        yield places, pictures, inputs.to(weights.dtype)


@torch.no_grad()
def forward_records(
    network: nn.Module,
    vit: nn.Module,
    images: ImageSequence,
    *,
    pixels: Callable[[Image.Image], Tensor],
    layers: Indices = None,
    batch: int = 16,
) -> Iterator[ForwardRecord]:
    """Run a network on images, a batch at a time; nothing of a batch is kept after it was yielded.

    Args:
        network: what is run.
        vit: the vision transformer in it that is looked at.
        images: as many as one likes.
        pixels: makes uint8 (channels, height, width) of an image, at the network's size.
        layers: blocks that are looked at.
        batch: images a forward pass.

    Raises:
        UserError: there are no images, the network is in training mode, or a layer is out of range.
    """
    blocks = anatomy(vit).blocks
    chosen = select(layers, len(blocks), "layers")
    for places, _, inputs in input_batches(network, describe(vit), images, pixels, batch):
        grams: list[Tensor] = []
        norms: list[Tensor] = []
        with capture(vit, layers=chosen) as calls, ExitStack() as stack:
            for layer in chosen:
                handle = blocks[layer].register_forward_hook(partial(_measure_output, grams, norms))
                stack.callback(handle.remove)
            network(inputs)
        yield ForwardRecord(places, calls, torch.stack(grams), torch.stack(norms))


def log_maps(calls: Sequence[AttentionCall], image: int, rows: Tensor) -> Tensor:
    """Logarithms of some rows of one image's attention maps, (L, H, R, M), float32 or wider.

    Args:
        calls: the attention of L blocks.
        image: index in the batch.
        rows: indices of query tokens, (R,).
    """
    return torch.stack([_log_map(call, image, rows.to(call.q.device)) for call in calls])


def _log_map(call: AttentionCall, image: int, rows: Tensor) -> Tensor:
    wide = torch.promote_types(call.q.dtype, torch.float32)
    k_HMD = call.k[image].to(wide)
    mask = call.mask
    if mask is not None:
        mask = mask.broadcast_to(*call.q.shape[:-1], k_HMD.shape[-2])[image][:, rows]
    logits_HRM = attention_logits(call.q[image][:, rows].to(wide), k_HMD, scale=call.scale, mask=mask)
    return logits_HRM.log_softmax(dim=-1)


def _measure_output(
    grams: list[Tensor], norms: list[Tensor], _block: nn.Module, _inputs: Any, output: Tensor | Sequence[Tensor]
) -> None:
    tokens_BND = (output if isinstance(output, Tensor) else output[0]).float()
    # The debiased HSIC does not change with the features' mean, but a large one costs digits.
    centred_BF = (tokens_BND - tokens_BND.mean(dim=0)).flatten(1)
    grams.append((centred_BF @ centred_BF.T).double())
    norms.append(tokens_BND.norm(dim=-1))
