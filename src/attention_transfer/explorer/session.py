"""What the page may ask: a request is a method, its parameters are the arguments, and its result the answer.

Nothing here knows how requests come: by HTTP (`server.py`), from a notebook (`widget.py`), or all at once into a file
(`page_file.py`). Images and networks are named by ids that were given out here; a path never comes from outside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Literal

import torch
from torch import Tensor

from attention_transfer.config.explore import NETWORKS
from attention_transfer.errors import UserError, nearest, raise_all
from attention_transfer.evaluation.subjects import spread
from attention_transfer.explorer import answers
from attention_transfer.explorer.album import SIDE, Picture, Room, Uploads
from attention_transfer.explorer.answers import Answer, Json
from attention_transfer.explorer.boxes import box_of, coverage
from attention_transfer.explorer.causal import check, divergence, effect, head_effects, pair_problems
from attention_transfer.explorer.network import ExploredNetwork, Look

_TOP = 5  # classes of a prediction
_LOOKED_AT = 100  # images of a drift, unless another number is asked for


@dataclass(frozen=True, eq=False)
class Explorer:
    """What all sessions share.

    Attributes:
        networks: up to four.
        offered: the images that were named at the start.
        room: for uploads; `None` where there are none.
    """

    networks: Sequence[ExploredNetwork]
    offered: Sequence[Picture]
    room: Room | None = field(default_factory=Room)

    def __post_init__(self) -> None:
        if not 1 <= len(self.networks) <= NETWORKS:
            raise UserError(f"{len(self.networks)} networks are named; name 1 to {NETWORKS}")


class Session:
    """One person's requests, with the images that this person uploaded.

    Args:
        explorer: what all sessions share.
    """

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.uploads = None if explorer.room is None else Uploads(explorer.room)

    def answer(self, name: str, arguments: Mapping[str, object], cancelled: threading.Event | None = None) -> Answer:
        """Answer a request.

        Args:
            name: of the request.
            arguments: of the request, as they came.
            cancelled: set once nobody waits for the answer.

        Raises:
            UserError: there is no such request, or it can't be answered.
            Cancelled: it was cancelled.
        """
        pictures = {picture.id: picture for picture in self.explorer.offered}
        pictures |= {} if self.uploads is None else self.uploads.pictures
        asked = _Requests(self.explorer.networks, pictures, self.uploads is not None, cancelled or threading.Event())
        requests: dict[str, Callable[..., Answer]] = {
            "state": asked.state,
            "image": asked.image,
            "place": asked.place,
            "rows": asked.rows,
            "mass": asked.mass,
            "causal": asked.causal,
            "heads": asked.heads,
            "box": asked.box,
            "drift": asked.drift,
            "epochs": asked.epochs,
        }
        if name not in requests:
            raise UserError(f"there is no request {name[:40]!r}; {nearest(name, requests)}")
        return answers.call(requests[name], arguments)

    def upload(self, name: str, data: bytes) -> Answer:
        """Keep an image for this session.

        Raises:
            UserError: it can't be used, or nothing can be uploaded here.
        """
        if self.uploads is None:
            raise UserError("nothing can be uploaded here; name the image as explore is started")
        return Answer(_described(self.uploads.add(name, data)))

    def close(self) -> None:
        """Forget the uploads."""
        if self.uploads is not None:
            self.uploads.clear()


@dataclass(frozen=True, eq=False)
class _Requests:
    networks: Sequence[ExploredNetwork]
    pictures: Mapping[str, Picture]
    uploads: bool
    cancelled: threading.Event

    def state(self) -> Answer:
        """What there is to look at."""
        return Answer(
            {
                "networks": [described(network) for network in self.networks],
                "images": [_described(picture) for picture in self.pictures.values()],
                "upload": self.uploads,
                "causal": len(self.networks) > 1,
                "version": version("attention-transfer"),
            }
        )

    def image(self, image: str, side: int | None = None) -> Answer:
        """An image for the browser, at most so many pixels a side; width and height are the original's."""
        picture = self._picture(image)
        if side is not None and not 1 <= side <= SIDE:
            raise UserError(f"side is {side}; choose a number of pixels from 1 to {SIDE}")
        kind, data = picture.encoded(side or SIDE)
        return Answer({"type": kind, "width": picture.size[0], "height": picture.size[1]}, (data,))

    def place(self, network: str, image: str, epoch: int | None = None) -> Answer:
        """Where the patches lie, and what is predicted."""
        of, picture = self._network(network), self._picture(image)
        look = of.look(picture, epoch)
        rows, columns = look.placement.grid
        label = _class_of(of, picture)
        shares = look.probabilities
        loss = None if label is None or shares is None else float(-shares[label].clamp_min(1e-45).log())
        return Answer(
            {
                "rows": rows,
                "columns": columns,
                "box": list(look.placement.box),
                "prefix": len(look.placement.prefix),
                "prediction": None if shares is None else _best(of, shares),
                "loss": loss,
            }
        )

    def rows(
        self,
        network: str,
        image: str,
        layer: int | Literal["rollout"],
        query: int | Literal["mean"],
        epoch: int | None = None,
    ) -> Answer:
        """What one token attends to, float32 (heads × tokens); rollout is one row, and 0 for what is no patch."""
        of, picture = self._network(network), self._picture(image)
        found = of.rollout(picture, query, epoch) if layer == "rollout" else of.row(picture, layer, query, epoch)
        return _array(found)

    def mass(self, network: str, image: str, layer: int, epoch: int | None = None) -> Answer:
        """What tokens get in a layer, mean over queries, float32 (heads × tokens); of prefix tokens and sinks apart."""
        of, picture = self._network(network), self._picture(image)
        received_HN = of.received(picture, layer, epoch)
        array = _array(received_HN)
        prefix: list[float] = received_HN.mean(dim=0)[: of.spec.prefix_tokens].tolist()
        sinks = [[token, got] for token, got in of.sinks(received_HN)]
        return Answer({**array.meta, "sinks": sinks, "prefix": prefix}, array.buffers)

    def causal(
        self, student: str, teacher: str, image: str, layer: int | Literal["all"], head: int | None = None
    ) -> Answer:
        """What the teacher's attention changes in the place of the student's."""
        of, picture = self._network(student), self._picture(image)
        layers = range(of.spec.depth) if layer == "all" else [layer]
        found = effect(of, self._network(teacher), picture, layers, head)
        return Answer(
            {
                "before": None if found.before is None else _best(of, found.before),
                "after": None if found.after is None else _best(of, found.after),
                "change": {"prediction": found.prediction, "layers": list(found.layers)},
            }
        )

    def heads(self, student: str, teacher: str, image: str) -> Answer:
        """What each head of the teacher changes by itself, the largest change first."""
        found = head_effects(self._network(student), self._network(teacher), self._picture(image), self.cancelled)
        return Answer({"heads": [{"layer": e.layer, "head": e.head, "change": e.change} for e in found]})

    def box(self, network: str, images: list[str], box: list[float], layer: int | None = None) -> Answer:
        """Which heads' class token attends to a rectangle of the first image, and to that part of the others."""
        of, pictures = self._network(network), [self._picture(image) for image in images]
        if not pictures:
            raise UserError("images is empty; name at least one")
        relative = box_of(box, pictures[0].size)
        total_LH = torch.zeros(of.spec.depth, of.spec.heads)
        for look in self._looks(of, pictures):
            patches = look.rows[..., look.placement.patches]
            total_LH += patches @ coverage(look.placement, relative)
        shares_LH = total_LH / len(pictures)
        if layer is not None:
            of.check_layer(layer)
        layers = range(of.spec.depth) if layer is None else [layer]
        found = [(float(shares_LH[n, head]), n, head) for n in layers for head in range(of.spec.heads)]
        return Answer({"heads": [{"layer": n, "head": h, "share": s} for s, n, h in sorted(found, reverse=True)]})

    def drift(self, a: str, b: str, limit: int = _LOOKED_AT) -> Answer:
        """How far two networks' attention is apart on each image, the farthest first, and which of them is right."""
        one, other = self._network(a), self._network(b)
        raise_all([*pair_problems(one, other), *([] if limit >= 1 else [f"limit is {limit}; give at least 1 image"])])
        pictures = list(self.pictures.values())
        chosen = [pictures[int(i)] for i in spread(len(pictures), limit)]
        found: list[tuple[float, Json]] = []
        for picture, seen_a, seen_b in zip(chosen, self._looks(one, chosen), self._looks(other, chosen), strict=True):
            apart = divergence(seen_a.rows[-1], seen_b.rows[-1])
            right = [_right(one, picture, seen_a), _right(other, picture, seen_b)]
            found.append((apart, {"image": picture.id, "drift": apart, "right": right}))
        return Answer({"images": [row for _, row in sorted(found, key=lambda pair: -pair[0])], "of": len(pictures)})

    def epochs(self, network: str) -> Answer:
        """How a run went over its validated epochs, and those whose weights are there."""
        of = self._network(network)
        curves = of.epochs.curves
        return Answer(
            {
                "epochs": [] if curves is None else list(curves.epochs),
                "accuracy": None if curves is None else curves.accuracy,
                "drift": None if curves is None else curves.drift,
                "kept": list(of.epochs.files) or None,
            }
        )

    def _looks(self, network: ExploredNetwork, pictures: Sequence[Picture]) -> Iterator[Look]:
        """What a network makes of many images, one at a time, as long as somebody waits."""
        for picture in pictures:
            check(self.cancelled)
            yield network.look(picture, keep=False)

    def _network(self, id: str) -> ExploredNetwork:
        for network in self.networks:
            if network.id == id:
                return network
        raise UserError(f"there is no network {id[:40]!r}; choose one of: {', '.join(n.id for n in self.networks)}")

    def _picture(self, id: str) -> Picture:
        if id not in self.pictures:
            raise UserError(f"there is no image {id[:40]!r}; reload the page for those that there are")
        return self.pictures[id]


def described(network: ExploredNetwork) -> dict[str, Json]:
    """A network as the page's state has it."""
    spec, subject = network.spec, network.subject
    return {
        "id": network.id,
        "name": network.label,
        "layers": spec.depth,
        "heads": spec.heads,
        "prefix": list(network.prefix),
        "classes": list(subject.classes) if subject.named and subject.classes else None,
        "epochs": list(network.epochs.files) or None,
        "grid": list(spec.grid),
        "query": 0 if network.query == "class" else "mean",
    }


def _described(picture: Picture) -> dict[str, Json]:
    width, height = picture.size
    return {"id": picture.id, "name": picture.name, "width": width, "height": height, "label": picture.label}


def _array(values_HN: Tensor) -> Answer:
    heads, tokens = values_HN.shape
    return Answer({"heads": heads, "tokens": tokens}, (answers.floats(values_HN),))


def _best(network: ExploredNetwork, shares_C: Tensor) -> Json:
    best = shares_C.topk(min(_TOP, len(shares_C)))
    names = network.subject.classes
    return [[names[c], p] for c, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def _class_of(network: ExploredNetwork, picture: Picture) -> int | None:
    """The index of an image's class among those of a network; `None` where that is not known."""
    classes = network.subject.classes
    if picture.label is None or not network.subject.named or picture.label not in classes:
        return None
    return classes.index(picture.label)


def _right(network: ExploredNetwork, picture: Picture, look: Look) -> bool | None:
    label = _class_of(network, picture)
    return None if label is None or look.logits is None else int(look.logits.argmax()) == label
