"""Forward passes over images, and what was seen in them: attention calls, and figures of the blocks' outputs.

Shapes: B images of a batch, L blocks, H heads, N tokens, R query rows, M keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from attention_transfer.attention import attention_logits
from attention_transfer.data import Normalise, eval_pixels
from attention_transfer.errors import UserError
from attention_transfer.vit import AttentionCall, Indices, ViTSpec, anatomy, capture, describe, select

Rows = int | Literal["all", "class"]
"""Query rows that are looked at: n drawn for each image, the same for every network; all of them; the class token's."""

_TILE = 16  # rows of all blocks' maps that are in memory at once


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
        rows: the query tokens of each image that were looked at, (B, R).
        calls: the attention of the chosen blocks, in order, with these queries alone, and without values.
        grams: inner products between the images' centred block outputs, flattened over tokens, float64 (L, B, B).
        norms: of the tokens in the blocks' outputs, float32 (L, B, N).
    """

    images: range
    rows: Tensor
    calls: Sequence[AttentionCall]
    grams: Tensor
    norms: Tensor

    def tiles(self, place: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows of one image of the batch, some at a time.

        Yields:
            Logarithms of the maps, (L, H, rows, M), float32 or wider, and which rows they are.
        """
        for start in range(0, self.rows.shape[1], _TILE):
            tile = slice(start, start + _TILE)
            yield torch.stack([_log_map(call, place, tile) for call in self.calls]), self.rows[place, tile]


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
    rows: Rows,
    tokens: slice,
    layers: Indices,
    batch: int,
    seed: int,
) -> Iterator[ForwardRecord]:
    """Run a network on images, a batch at a time; of a batch, keys and the queries of some rows are kept.

    Args:
        network: what is run.
        vit: the vision transformer in it that is looked at.
        images: as many as one likes; they are resized and cropped as in evaluation.
        rows: query rows that are looked at.
        tokens: those of which rows are drawn.
        layers: blocks that are looked at.
        batch: images a forward pass.
        seed: of the draw.

    Raises:
        UserError: there are no images or no such rows, the network is in training mode, or a layer is out of range.
    """
    spec = describe(vit)
    if rows == "class" and not spec.class_token:
        raise UserError(f'{spec.name} has no class token; choose rows="all", or a number of rows')
    if isinstance(rows, int) and rows < 1:
        raise UserError(f'rows={rows}: choose 1 or more, "all" or "class"')
    chosen = select(layers, spec.depth, "layers")
    for places, _, inputs in input_batches(network, spec, images, eval_pixels(spec), batch):
        chosen_rows = torch.stack([_rows_of(image, rows, tokens, seed) for image in places])
        yield _observed(network, vit, inputs, places, chosen, chosen_rows)


def _observed(
    network: nn.Module, vit: nn.Module, inputs: Tensor, images: range, layers: Sequence[int], rows_BR: Tensor
) -> ForwardRecord:
    """One forward pass."""
    blocks = anatomy(vit).blocks
    grams: list[Tensor] = []
    norms: list[Tensor] = []
    with capture(vit, layers=layers) as calls, ExitStack() as stack:

        def end_block(_block: nn.Module, _inputs: Any, output: Tensor | Sequence[Tensor]) -> None:
            calls[-1] = _with_rows(calls[-1], rows_BR)
            gram, norm = _measured(output if isinstance(output, Tensor) else output[0])
            grams.append(gram)
            norms.append(norm)

        for layer in layers:
            stack.callback(blocks[layer].register_forward_hook(end_block).remove)
        network(inputs)
    return ForwardRecord(images, rows_BR, calls, torch.stack(grams), torch.stack(norms))


def _rows_of(image: int, rows: Rows, tokens: slice, seed: int) -> Tensor:
    """The query tokens of one image; a draw depends on seed and image alone."""
    if rows == "class":
        return torch.zeros(1, dtype=torch.long)
    total = tokens.stop - tokens.start
    if rows == "all" or rows >= total:
        return torch.arange(tokens.start, tokens.stop)
    generator = torch.Generator().manual_seed(seed + 1_000_003 * image)
    drawn: Tensor = tokens.start + torch.randperm(total, generator=generator)[:rows].sort().values
    return drawn


def _with_rows(call: AttentionCall, rows_BR: Tensor) -> AttentionCall:
    """The call with some queries of each image; nothing else of the block's operands is kept alive by it."""
    index = rows_BR.to(call.q.device)[:, None, :, None]
    mask = call.mask
    if mask is not None:
        mask = mask.broadcast_to(*call.q.shape[:-1], call.k.shape[-2]).take_along_dim(index, dim=2)
    q_BHRD = call.q.take_along_dim(index, dim=2)
    return replace(call, q=q_BHRD, k=call.k.clone(), v=call.v.new_empty(0), mask=mask)


def _log_map(call: AttentionCall, image: int, rows: slice) -> Tensor:
    wide = torch.promote_types(call.q.dtype, torch.float32)
    mask = None if call.mask is None else call.mask[image][:, rows]
    q_HRD, k_HMD = call.q[image][:, rows].to(wide), call.k[image].to(wide)
    log_p_HRM: Tensor = attention_logits(q_HRD, k_HMD, scale=call.scale, mask=mask).log_softmax(dim=-1)
    return log_p_HRM


def _measured(output_BND: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrix and norms of a block's output."""
    wide = output_BND.float()
    # The debiased HSIC does not change with the features' mean, but a large one costs digits.
    centred_BF = (wide - wide.mean(dim=0)).flatten(1)
    return (centred_BF @ centred_BF.T).double(), wide.norm(dim=-1)
