"""A network that is explored: one forward an image, and what was seen in it kept as long as there is room.

Shapes: L blocks, H heads, N tokens, D head dimension, C classes.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from attention_transfer.attention import AttentionCall
from attention_transfer.data import Placement
from attention_transfer.errors import UserError
from attention_transfer.evaluation.epochs import KeptEpochs
from attention_transfer.evaluation.profile import SINK
from attention_transfer.evaluation.subjects import Subject
from attention_transfer.evaluation.views import RowQuery, row_of, seen
from attention_transfer.explorer.album import Picture
from attention_transfer.explorer.cache import Cache
from attention_transfer.vit import hook_attention, logits_of, rollout_of

OPERANDS = 1 << 30
"""Bytes of queries and keys that are kept of each network: 8 images of a ViT-S with 3,601 tokens, all 12 layers."""

_LOOKS = 1 << 27
_QUERIES = 512
_ROWS = 128  # of a map, that are in memory at once

Attend = Callable[[AttentionCall], AttentionCall]
Place = tuple[str, int | None]
"""An image and an epoch."""


@dataclass(frozen=True, eq=False)
class Look:
    """What one forward showed of an image.

    Attributes:
        placement: where the patches lie on it.
        logits: of the classes, float32 (C,); `None` without a classification layer.
        rows: what the class token attends to in each layer (or else the patches' mean query), float32 (L, H, N).
    """

    placement: Placement
    logits: Tensor | None
    rows: Tensor

    @property
    def probabilities(self) -> Tensor | None:
        """Of the classes, (C,)."""
        return None if self.logits is None else self.logits.softmax(dim=-1)


class ExploredNetwork:
    """A network and what was seen in it. Any thread may ask; forwards run one at a time.

    Args:
        id: what the page calls it.
        subject: the network.
        label: its name on the page.
        epochs: checkpoints whose weights can be looked at, too.
    """

    def __init__(self, id: str, subject: Subject, label: str, epochs: KeptEpochs) -> None:
        self.id, self.subject, self.label, self.epochs = id, subject, label, epochs
        self.spec = subject.spec
        self.query: Literal["class", "mean"] = "class" if self.spec.class_token else "mean"
        self.prefix = Placement.of(self.spec, self.spec.image_size[::-1]).prefix
        self._lock = threading.RLock()
        self._at: dict[int, tuple[nn.Module, nn.Module]] = {}
        self._calls: Cache[tuple[Place, int], AttentionCall] = Cache(OPERANDS)
        self._looks: Cache[Place, Look] = Cache(_LOOKS)
        self._found: Cache[tuple[Place, int | str, RowQuery], Tensor] = Cache(_LOOKS)

    def look(self, picture: Picture, epoch: int | None = None, *, keep: bool = True) -> Look:
        """What one forward shows; with `keep`, the operands of all its layers stay for `call`."""
        place = (picture.id, epoch)
        found = self._looks.get(place)
        if found is None:
            with self._lock:
                found = self._looks.get(place) or self._looked(picture, epoch, keep=keep)
        return found

    def call(self, picture: Picture, layer: int, epoch: int | None = None) -> AttentionCall:
        """Queries and keys of a layer, of a batch of one image.

        Raises:
            UserError: there is no such layer or epoch.
        """
        self.check_layer(layer)
        place = (picture.id, epoch)
        found = self._calls.get((place, layer))
        if found is None:
            with self._lock:
                found = self._calls.get((place, layer))
                if found is None:
                    self._looked(picture, epoch, last=layer)
                    found = self._calls.get((place, layer))
        assert found is not None  # kept last, so that nothing has driven it out
        return found

    def check_layer(self, layer: int) -> None:
        """Refuse a layer that there is not.

        Raises:
            UserError: there is none.
        """
        if not 0 <= layer < self.spec.depth:
            raise UserError(f"{self.label} has no layer {layer}; choose from 0 to {self.spec.depth - 1}")

    def row(self, picture: Picture, layer: int, query: RowQuery, epoch: int | None = None) -> Tensor:
        """What a token attends to in a layer, float32 (H, N)."""
        return row_of(self.call(picture, layer, epoch), query)

    def rollout(self, picture: Picture, query: RowQuery, epoch: int | None = None) -> Tensor:
        """What came from each patch through all layers, float32 (1, N), brought to sum to one; 0 for other tokens."""

        def work() -> Tensor:
            calls = [self.call(picture, layer, epoch) for layer in range(self.spec.depth)]
            with torch.no_grad():
                patches_RC = rollout_of(calls, self.spec, query=query)[0].float().cpu()
            row_1N = torch.zeros(1, self.spec.sequence)
            row_1N[0, self.spec.tokens.patches(self.spec.sequence)] = (patches_RC / patches_RC.sum()).flatten()
            return row_1N

        return self._once((picture.id, epoch), "rollout", query, work)

    def received(self, picture: Picture, layer: int, epoch: int | None = None) -> Tensor:
        """What each token gets in a layer, mean over queries (at most 512, at even distances), float32 (H, N)."""

        def work() -> Tensor:
            call = self.call(picture, layer, epoch)
            tokens = call.q.shape[-2]
            queries = torch.linspace(0, tokens - 1, min(tokens, _QUERIES)).round().long()
            total_HN = torch.zeros(call.q.shape[1], call.k.shape[-2])
            for tokens_R in queries.split(_ROWS):
                total_HN += call.rows(tokens_R).wide_logits().softmax(dim=-1)[0].sum(dim=-2).cpu()
            return total_HN / len(queries)

        return self._once((picture.id, epoch), layer, "mean", work)

    def sinks(self, received_HN: Tensor) -> list[tuple[int, float]]:
        """Patches that get more than 10 times their even share, mean over heads, with what they get; most first."""
        got_N, patches = received_HN.mean(dim=0), self.spec.tokens.patches(received_HN.shape[-1])
        best = got_N[patches].sort(descending=True)
        count = int((best.values > SINK / len(got_N)).sum())
        tokens = (best.indices[:count] + patches.start).tolist()
        return list(zip(tokens, best.values[:count].tolist(), strict=True))

    def run(
        self, images: Tensor, attend: Mapping[int, Attend], epoch: int | None = None
    ) -> tuple[Tensor | None, list[Tensor]]:
        """One forward with some layers' attention replaced.

        Args:
            images: normalised, (B, channels, height, width).
            attend: by layer, what makes another call of its call.
            epoch: whose weights; default the network's own.

        Returns:
            Logits, float32 (B, C), or `None` without a classification layer; and by layer the logits of what the class
            token (or the patches' mean query) attended to, float32 (B, H, N). All are on the CPU.
        """
        rows: dict[int, Tensor] = {}

        def see(call: AttentionCall) -> AttentionCall:
            used = attend[call.layer](call) if call.layer in attend else call
            rows[call.layer] = used.query_row(self.query).wide_logits().squeeze(-2).float().cpu()
            return used

        logits = self._forward(images, see, epoch)
        return logits, [rows[layer] for layer in range(self.spec.depth)]

    def _looked(self, picture: Picture, epoch: int | None, *, keep: bool = True, last: int = -1) -> Look:
        """One forward of an image; the operands of the layer `last` are those that stay longest."""
        images, placement = seen(self.spec, picture.open())
        calls: dict[int, AttentionCall] = {}
        rows: dict[int, Tensor] = {}

        def see(call: AttentionCall) -> AttentionCall:
            if keep:  # copies, since views would keep the values alive, too
                calls[call.layer] = replace(call, q=call.q.clone(), k=call.k.clone(), v=call.v.new_empty(0))
            rows[call.layer] = row_of(call, self.query)
            return call

        logits = self._forward(images, see, epoch)
        rows_LHN = torch.stack([rows[layer] for layer in range(self.spec.depth)])
        look = Look(placement, None if logits is None else logits[0], rows_LHN)
        place = (picture.id, epoch)
        self._looks.put(place, look, rows_LHN.nbytes)
        for layer in sorted(calls, key=lambda layer: (layer == last, layer)):
            call = calls[layer]
            mask = 0 if call.mask is None else call.mask.nbytes
            self._calls.put((place, layer), call, call.q.nbytes + call.k.nbytes + mask)
        return look

    @torch.no_grad()
    def _forward(self, images: Tensor, see: Attend, epoch: int | None) -> Tensor | None:
        with self._lock:
            network, vit = self._networks(epoch)
            handles = hook_attention(vit, dict.fromkeys(range(self.spec.depth), see))
            try:
                weights = next(p for p in network.parameters() if p.is_floating_point())
                output = network(images.to(weights.device, weights.dtype))
            finally:
                for handle in handles:
                    handle.remove()
        return logits_of(output).float().cpu() if self.spec.classes else None

    def _networks(self, epoch: int | None) -> tuple[nn.Module, nn.Module]:
        """What is run and the vision transformer in it, with the weights of an epoch."""
        if epoch is None:
            return self.subject.network, self.subject.vit
        if epoch not in self._at:
            # Copied together, so that the one copy stays part of the other.
            network, vit = copy.deepcopy((self.subject.network, self.subject.vit))
            vit.load_state_dict(self.epochs.weights(epoch))
            self._at[epoch] = (network, vit)
        return self._at[epoch]

    def _once(self, place: Place, what: int | str, query: RowQuery, work: Callable[[], Tensor]) -> Tensor:
        found = self._found.get((place, what, query))
        if found is None:
            found = work()
            self._found.put((place, what, query), found, found.nbytes)
        return found
