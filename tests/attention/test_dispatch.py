"""Which implementation serves which tensors, the reason, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attention_transfer.attention import (
    Choice,
    Impl,
    attention_cross_entropy,
    attention_js,
    attention_kl,
    attention_mse,
    choose_impl,
    distilled_attention,
    logit_l2,
)
from attention_transfer.errors import UserError

FUSED = ["attention_cross_entropy", "attention_kl", "distilled_attention"]
UNFUSED = ["attention_js", "attention_mse", "logit_l2"]
LOSSES = [attention_cross_entropy, attention_kl, attention_js, attention_mse, logit_l2]


def of_shape(*shape: int, keys: int | None = None, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Queries and keys that take no memory."""
    b, h, n, d = shape
    return (
        torch.empty(1, device=device).expand(b, h, n, d),
        torch.empty(1, device=device).expand(b, h, n if keys is None else keys, d),
    )


MASK = torch.ones(1, 1, 4, 4, dtype=torch.bool)


@pytest.mark.parametrize("loss", FUSED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [4, 5000])
def test_the_cpus_fused_kernels_take_what_they_can(loss: str, dtype: torch.dtype, tokens: int) -> None:
    q, k = (x.to(dtype) for x in of_shape(1, 2, tokens, 1))
    choice = choose_impl(loss, q, k)
    assert choice.impl == "flash"
    assert "fused kernels" in choice.reason


@pytest.mark.parametrize("loss", UNFUSED)
def test_a_distance_without_a_fused_form_goes_by_its_maps_while_they_are_small(loss: str) -> None:
    choice = choose_impl(loss, *of_shape(2, 3, 197, 8))
    assert choice == Choice("reference", "this distance has no fused form, and the maps are small")
    assert choose_impl(loss, *of_shape(64, 12, 197, 64)) == Choice("chunked", "this distance has no fused form")


@pytest.mark.parametrize("loss", FUSED)
@pytest.mark.parametrize("side", ["mask_s", "mask_t"])
def test_a_mask_on_either_side_rules_out_the_fused_kernels(loss: str, side: str) -> None:
    masks: dict[str, Any] = {side: MASK}
    choice = choose_impl(loss, *of_shape(1, 2, 4, 8), **masks)
    assert choice == Choice("reference", "there is a mask or bias, and the maps are small")
    assert choose_impl(loss, *of_shape(8, 12, 1024, 8), **masks) == Choice("chunked", "there is a mask or bias")


@pytest.mark.parametrize("loss", FUSED)
def test_another_device_has_other_ways(loss: str) -> None:
    small = choose_impl(loss, *of_shape(1, 2, 4, 8, device="meta"))
    assert small.impl == "reference"
    assert "meta" in small.reason
    assert choose_impl(loss, *of_shape(8, 12, 1024, 8, device="meta")).impl == "chunked"


@pytest.mark.parametrize(
    ("shape", "keys", "impl"),
    [
        ((1, 1, 2048, 8), 2048, "reference"),  # 2^22 elements
        ((1, 1, 2049, 8), 2048, "chunked"),
        ((1, 1, 2048, 8), 2049, "chunked"),
        ((2, 2, 1024, 8), 1024, "reference"),
        ((2, 3, 1024, 8), 1024, "chunked"),
        ((0, 3, 4096, 8), 4096, "reference"),
    ],
    ids=str,
)
def test_maps_are_small_up_to_sixteen_mebibytes(shape: tuple[int, int, int, int], keys: int, impl: str) -> None:
    assert choose_impl("attention_js", *of_shape(*shape, keys=keys)).impl == impl


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("loss", FUSED + UNFUSED)
def test_what_is_asked_for_is_taken_with_and_without_masks(loss: str, impl: Impl) -> None:
    every: list[dict[str, Any]] = [{}, {"mask_s": MASK}, {"mask_s": MASK, "mask_t": MASK}]
    for masks in every:
        assert choose_impl(loss, *of_shape(1, 1, 4, 2), **masks, impl=impl) == Choice(impl, "asked for")


@pytest.mark.parametrize("loss", FUSED)
def test_flash_is_taken_where_it_is_asked_for_and_serves(loss: str) -> None:
    assert choose_impl(loss, *of_shape(1, 1, 4, 2), impl="flash") == Choice("flash", "asked for")


REFUSED = [
    *((loss, {}, "cpu", "no fused form") for loss in UNFUSED),
    *((loss, {"mask_s": MASK}, "cpu", "mask or bias") for loss in FUSED),
    *((loss, {"mask_t": MASK}, "cpu", "mask or bias") for loss in FUSED),
    *((loss, {}, "meta", "no log-sum-exp on meta") for loss in FUSED),
]


@pytest.mark.parametrize(("loss", "masks", "device", "why"), REFUSED, ids=lambda value: str(value)[:24])
def test_flash_is_refused_in_one_sentence_that_says_why_and_what_to_choose(
    loss: str, masks: dict[str, Any], device: str, why: str
) -> None:
    with pytest.raises(UserError, match=why) as refusal:
        choose_impl(loss, *of_shape(1, 1, 4, 2, device=device), **masks, impl="flash")
    message = str(refusal.value)
    assert message.startswith(f'impl="flash" can\'t compute {loss} here: ')
    assert message.endswith('; choose impl="chunked"')
    assert "\n" not in message


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_losses_refuse_what_choose_impl_refuses_and_take_what_it_recommends(loss: Any) -> None:
    q, k = torch.randn(1, 1, 4, 2), torch.randn(1, 1, 4, 2)
    with pytest.raises(UserError, match=f"can't compute {loss.__name__} here"):
        loss(q, k, q, k, mask_s=MASK, impl="flash")
    assert loss(q, k, q, k, mask_s=MASK, impl="chunked").shape == (1, 1, 4)


def test_distilled_attention_refuses_flash_with_a_mask() -> None:
    q, k = torch.randn(1, 1, 4, 2), torch.randn(1, 1, 4, 2)
    with pytest.raises(UserError, match="can't compute distilled_attention here: there is a mask or bias"):
        distilled_attention(q, k, k, q, k, mask_t=MASK, impl="flash")


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_auto_gives_the_bits_of_its_choice(loss: Any) -> None:
    q_s, k_s, q_t, k_t = torch.randn(4, 1, 2, 5, 3)
    choice: Any = choose_impl(loss.__name__, q_s, k_s).impl
    assert torch.equal(loss(q_s, k_s, q_t, k_t), loss(q_s, k_s, q_t, k_t, impl=choice))


@pytest.mark.parametrize("word", ["flahs", "", "Flash"])
def test_an_implementation_that_does_not_exist_is_refused(word: Any) -> None:
    q, k = torch.randn(1, 1, 4, 2), torch.randn(1, 1, 4, 2)
    with pytest.raises(UserError):
        attention_cross_entropy(q, k, q, k, impl=word)


@pytest.mark.parametrize("side", ["scale_s", "scale_t"])
def test_a_scale_of_nothing_rules_out_the_fused_kernels(side: str) -> None:
    scales: dict[str, Any] = {side: 0.0}
    choice = choose_impl("attention_kl", *of_shape(1, 2, 4, 8), **scales)
    assert choice == Choice("reference", "a scale is 0, and the maps are small")
