"""Stage a: is every route of the losses right on this card?

Each route that the library names is held against float64 on the same operands: values and gradients of cross-entropy,
KL divergence and attention with its cross-entropy, for all dtypes, masks, head sizes from 16 to 128 and 1 to 4,097
tokens. Then the log-sum-exps that PyTorch's own kernels return, a training step of copy, distil and GTA against the
CPU, and one small case of each route under compute-sanitizer. An error is ‖actual - exact‖ / ‖exact‖, the largest of
all results of a row; a row is `ok` where it is within its limit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer import AttentionTransfer, Copy, Distill, Guide, Rule, load_vit, student_like
from attention_transfer.attention import AttentionCall, rows
from attention_transfer.errors import UserError
from attention_transfer.experiments.steps import ROUTES
from benchmarks.gpu import card as cards
from benchmarks.gpu.card import Card
from benchmarks.gpu.lse import kernels
from benchmarks.gpu.report import Report, Row, why_not
from benchmarks.gpu.routes import Functions, Size, check, functions, operands
from benchmarks.gpu.stand_in import tiny_vit

LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
CASES = [(SINGLE, "none"), (HALF, "bool"), (BRAIN, "bias")]
MORE_CASES = [(BRAIN, "none"), (HALF, "none"), (HALF, "bias"), (SINGLE, "bias")]  # of one size: kernels take their time
STEP_LIMITS = {"float32": 1e-3, "bfloat16": 0.1}  # of a network's gradients, which its depth makes coarser
USUAL = Size(197, 197)
SIZES = [
    Size(1, 7),
    Size(17, 49, 24, 80, 16),
    Size(130, 259, 80, 64, 40),
    USUAL,
    Size(577, 577, 32, 32, 32),
    Size(256, 1024, 128, 64, 128),
    Size(1370, 1370, 64, 64, 64, 4),
    Size(4097, 4097, 16, 96, 16),
    Size(4097, 4097),
]
SMALL = [Size(1, 7, 16, 16, 16, 1), Size(17, 19, 16, 24, 16, 1)]
LOSSES = {
    "cross_entropy": "attention_cross_entropy",
    "kl": "attention_kl",
    "distilled": "distilled_attention",
    "distilled_mean": "distilled_attention",
}


def run(card: Card, report: Report) -> None:
    """All rows; jobs in processes of their own, where there is a card."""
    rehearsed = card.rehearsed
    sizes = list(reversed(SMALL if rehearsed else SIZES))  # the longest ones first
    parts: list[tuple[Any, Any]] = [(_sanitized, "triton"), *((_sizes, size) for size in sizes)]
    parts += [(_steps, rule) for rule in ("copy", "gta", *(f"distill-{route}" for route in ROUTES))]
    parts += [(_lse, sizes[0]), *((_sanitized, route) for route in ROUTES if route != "triton")]
    for (_, part, what, _), found in card.apart([(_job, *part, rehearsed) for part in parts]):
        name = {"case": f"{part.__name__.strip('_')}: {what}"}
        report.add(*([name | why_not(found)] if isinstance(found, Exception) else found))


def _job(work: Any, what: Any, rehearse: bool) -> list[Row]:
    torch.manual_seed(0)
    torch.set_num_threads(2)  # of many processes
    return list(work(cards.find(rehearse=rehearse), what))


def _sizes(card: Card, size: Size) -> Iterator[Row]:
    """Every route, dtype and mask at one size."""
    for dtype, mask in CASES + (MORE_CASES if size == USUAL else []):
        s, v, t = operands(size, dtype, card.device, mask)
        case = {"case": str(size), "dtype": str(dtype).removeprefix("torch."), "mask": mask}
        exact = results(exact_functions(), s, v, t, torch.float64)
        for route in ROUTES:
            start = time.monotonic()
            row = _compared(route, exact, s, v, t)
            yield {**case, "route": route, **row, "seconds": round(time.monotonic() - start, 1)}
        card.clear()


def _compared(route: str, exact: dict[str, Tensor], s: AttentionCall, v: Tensor, t: AttentionCall) -> Row:
    left_out = {}
    served = functions(route)
    for loss, name in LOSSES.items():
        try:
            check(route, name, s, t, v)
        except UserError as error:
            left_out[loss] = str(error)
    if len(left_out) == len(LOSSES):
        return {"left_out": next(iter(left_out.values()))}
    try:
        actual = results(served, s, v, t, s.q.dtype, without=left_out)
    except Exception as error:
        if cards.is_lost(error):
            raise
        return why_not(error)
    errors = {name: difference(value, exact[name]) for name, value in actual.items()}
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
    limit = LIMITS[s.q.dtype]
    partly = {"without": sorted(left_out)} if left_out else {}
    return {"error": errors[worst], "limit": limit, "worst": worst, "ok": errors[worst] <= limit, **partly}


def exact_functions() -> Functions:
    """The losses by formed maps, as the library's reference has them."""

    def both(s: AttentionCall, v: Tensor, t: AttentionCall) -> tuple[Tensor, Tensor]:
        return rows.softmax(s.wide_logits()) @ v, rows.cross_entropy(s.wide_logits(), t.wide_logits())

    def mean(s: AttentionCall, v: Tensor, t: AttentionCall) -> tuple[Tensor, Tensor]:
        out, ce_BHN = both(s, v, t)
        return out, ce_BHN.mean()

    return Functions(
        lambda s, t: rows.cross_entropy(s.wide_logits(), t.wide_logits()),
        lambda s, t: rows.kl(s.wide_logits(), t.wide_logits()),
        both,
        mean,
    )


def results(
    by: Functions, s: AttentionCall, v: Tensor, t: AttentionCall, dtype: torch.dtype, without: Any = ()
) -> dict[str, Tensor]:
    """Values and gradients of all losses, computed from the operands in a dtype; the incoming gradients are seeded."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in (s.q, s.k, v))
    s, t = replace(s, q=q, k=k), replace(t, q=t.q.to(dtype), k=t.k.to(dtype))
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(q.shape[:3], generator=generator).to(q.device)
    d_out = torch.randn((*q.shape[:3], v.shape[-1]), generator=generator).to(q.device).to(s.q.dtype)
    found: dict[str, Tensor] = {}
    for name, loss in by._asdict().items():
        if name in without:
            continue
        out, nats = loss(s, v, t) if "distilled" in name else (None, loss(s, t))
        total = (nats * g).sum() if nats.dim() else nats * g.numel()
        learning = {"q": q, "k": k}
        if out is not None:
            total = total + (out * d_out).sum()
            learning["v"] = v
            found[f"{name}: output"] = out
        found[name] = nats
        gradients = torch.autograd.grad(total, list(learning.values()))
        found |= {f"{name}: d_{letter}": x for letter, x in zip(learning, gradients, strict=True)}
    return {name: value.detach() for name, value in found.items()}


def difference(actual: Tensor, exact: Tensor) -> float:
    """‖actual - exact‖ / ‖exact‖; what should be 0 is held against 1e-4 an element."""
    exact = exact.double()
    size: float = max(float(exact.norm()), 1e-4 * exact.numel() ** 0.5)
    return float((actual.to(exact.device).double() - exact).norm()) / size


def _lse(card: Card, size: Size) -> Iterator[Row]:
    """What PyTorch's own kernels say of the logits' log-sum-exp, of which the fused routes are made."""
    for dtype, limit in LIMITS.items():
        s, v, _ = operands(size._replace(d_v=size.d_s), dtype, card.device)
        exact = torch.logsumexp(replace(s, q=s.q.double(), k=s.k.double()).wide_logits(), -1).detach()
        for name, kernel in kernels(card.device).items():
            row = {"case": f"log-sum-exp, {size}", "dtype": str(dtype).removeprefix("torch."), "route": name}
            try:
                with torch.no_grad():
                    found = kernel(s.q.detach(), s.k.detach(), v.detach())[..., : size.n]  # some kernels pad the rows
            except Exception as error:  # so a kernel says that it does not serve a dtype
                if cards.is_lost(error):
                    raise
                yield row | {"left_out": cards.sentence(error)}
                continue
            away = difference(found, exact)
            yield row | {"error": away, "limit": limit, "ok": away <= limit}


def _steps(card: Card, name: str) -> Iterator[Row]:
    """A forward and a backward pass of a method: loss and gradients against those of the CPU in float32."""
    route: Any = name.removeprefix("distill-")
    rule: Rule = Copy() if name == "copy" else Guide() if name == "gta" else Distill(impl=route)
    plain: Rule = Distill(impl="reference") if isinstance(rule, Distill) else rule
    teacher = load_vit(tiny_vit() if card.rehearsed else "timm/vit_tiny_patch16_224", pretrained=False)
    student = student_like(teacher, num_classes=10)
    for parameter in (*teacher.parameters(), *student.parameters()):
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)  # else every map is flat
    images = torch.randn(2, *((1, 8, 8) if card.rehearsed else (3, 224, 224)))
    exact = _step(teacher, student, plain, images, "cpu", "float32")
    for dtype, limit in STEP_LIMITS.items():
        row = {"case": f"step of {name}", "dtype": dtype}
        try:
            found = _step(teacher, student, rule, images, card.device, dtype)
        except UserError as error:
            yield row | {"left_out": str(error)}
            continue
        errors = {key: difference(value, exact[key]) for key, value in found.items()}
        worst = max(errors, key=errors.__getitem__)
        yield row | {"error": errors[worst], "limit": limit, "worst": worst, "ok": errors[worst] <= limit}


def _step(
    teacher: nn.Module, student: nn.Module, rule: Rule, images: Tensor, device: str, dtype: str
) -> dict[str, Tensor]:
    student.zero_grad()
    transfer = AttentionTransfer(teacher.to(device), student.to(device), [rule]).train()
    autocast: Any = contextlib.nullcontext() if dtype == "float32" else torch.autocast(device, getattr(torch, dtype))
    with autocast:
        output = transfer(images.to(device))
        loss = output.total(F.cross_entropy(output.logits, torch.arange(len(images), device=device)))
    loss.backward()
    transfer.release()
    gradients = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
    return {
        "logits": output.logits.detach().cpu(),
        "loss": loss.detach().cpu(),
        "gradients": torch.cat(gradients).cpu(),
    }


def _sanitized(card: Card, route: str) -> Iterator[Row]:
    row = {"case": f"memory checker on {route}"}
    try:
        problem = card.sanitized("benchmarks.gpu.right", [route, card.device])
    except UserError as error:
        yield row | {"left_out": str(error)}
        return
    yield row | {"ok": problem is None, **({"failed": problem} if problem else {})}


def main(arguments: list[str]) -> None:
    """One small case of a route, forward and backward, for the memory checker."""
    route, device = arguments
    for mask in ("none", "bias"):
        s, v, t = operands(Size(17, 19, 24, 16, 16, 1), torch.float32, device, mask)
        refused = set()
        for loss, name in LOSSES.items():
            try:
                check(route, name, s, t, v)
            except UserError:
                refused.add(loss)
        results(functions(route), s, v, t, torch.float32, without=refused)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
