from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.objectives import MaskedAutoencoder

Build = Callable[..., Any]
PATCH, PATCHES = 2, 16


class Answer(nn.Module):
    """Stands at the end of the decoder: remembers what arrives there and answers with a fixed prediction."""

    def __init__(self, prediction: Tensor) -> None:
        super().__init__()
        self.prediction = prediction
        self.seen: Tensor = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach()
        return self.prediction


@pytest.fixture
def mae(tiny_vit: Build) -> MaskedAutoencoder:
    """Hides 12 of the 16 patches of 2x2 pixels."""
    return MaskedAutoencoder(tiny_vit(patch_size=PATCH), decoder_width=16, decoder_heads=2).eval()


def normalised_patches(images: Tensor) -> Tensor:
    """Pixels of each patch, row by row, with mean 0 and variance 1: a second way to write the target."""
    array = images.double().numpy()
    rows = []
    for y in range(0, 8, PATCH):
        for x in range(0, 8, PATCH):
            patch = array[:, :, y : y + PATCH, x : x + PATCH].reshape(len(array), -1)
            rows.append((patch - patch.mean(1, keepdims=True)) / patch.std(1, keepdims=True))
    return torch.from_numpy(np.stack(rows, axis=1)).float()


def answering(mae: MaskedAutoencoder, prediction: Tensor) -> Answer:
    answer = Answer(prediction)
    mae.predict = answer  # type: ignore[assignment]
    return answer


def patches_where_errors_cost(mae: MaskedAutoencoder, image: Tensor) -> list[int]:
    costly = []
    for patch in range(PATCHES):
        wrong = normalised_patches(image)
        wrong[:, patch] += 1.0
        answering(mae, wrong)
        loss = mae(image).loss.item()
        assert loss == pytest.approx(1 / 12, rel=1e-3) or loss == pytest.approx(0, abs=1e-5)
        if loss > 1e-3:
            costly.append(patch)
    return costly


def tokens_that_change_with_each_patch(mae: MaskedAutoencoder, image: Tensor) -> dict[int, list[int]]:
    """For each patch whose pixels matter, the tokens at the end of the decoder that depend on them."""
    answer = answering(mae, normalised_patches(image))
    mae(image)
    before, changes = answer.seen, {}
    for patch in range(PATCHES):
        y, x = divmod(patch, 8 // PATCH)
        changed = image.clone()
        changed[:, :, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH] += 1.0
        mae(changed)
        tokens = (answer.seen != before).any(dim=-1)[0].nonzero().flatten().tolist()
        if tokens:
            changes[patch] = tokens
    return changes


def patches_the_encoder_sees(mae: MaskedAutoencoder, image: Tensor) -> list[int]:
    return list(tokens_that_change_with_each_patch(mae, image))


def test_the_loss_counts_the_hidden_patches_and_the_encoder_sees_the_others(
    mae: MaskedAutoencoder, images: Tensor
) -> None:
    hidden, visible = patches_where_errors_cost(mae, images[:1]), patches_the_encoder_sees(mae, images[:1])
    assert (len(hidden), len(visible)) == (12, 4)
    assert sorted(hidden + visible) == list(range(PATCHES))


def test_the_decoder_gets_each_visible_patch_at_its_own_place(mae: MaskedAutoencoder, images: Tensor) -> None:
    encoder: Any = mae.encoder
    encoder.blocks, mae.decoder = nn.Sequential(), nn.Sequential()  # without blocks no token reaches another
    changes = tokens_that_change_with_each_patch(mae, images[:1])
    assert len(changes) == 4
    assert all(tokens == [patch] for patch, tokens in changes.items())


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 4), (0.5, 8), (0.1, 14), (0.94, 1)])
def test_the_ratio_says_how_many_patches_stay_visible(
    ratio: float, visible: int, tiny_vit: Build, images: Tensor
) -> None:
    mae = MaskedAutoencoder(tiny_vit(patch_size=PATCH), mask_ratio=ratio).eval()
    assert len(patches_the_encoder_sees(mae, images[:1])) == visible


def test_a_perfect_prediction_has_no_loss(mae: MaskedAutoencoder, images: Tensor) -> None:
    answering(mae, normalised_patches(images))
    output = mae(images)
    assert output.loss.item() == pytest.approx(0, abs=1e-6)
    assert output.losses == {"reconstruction": output.loss, "zero": output.losses["zero"]}
    assert output.logits is None


@pytest.mark.parametrize(("patch", "channels"), [(2, 1), (4, 1), (4, 3)])
def test_answering_zero_has_a_loss_of_one_unless_patches_are_of_one_colour(
    patch: int, channels: int, tiny_vit: Build
) -> None:
    encoder = tiny_vit(patch_size=patch, in_chans=channels)
    mae = MaskedAutoencoder(encoder, mask_ratio=0.5).eval()
    pixels = patch * patch * channels
    answering(mae, torch.zeros(3, (8 // patch) ** 2, pixels))
    loss = mae(torch.randn(3, channels, 8, 8) * 5 + 3).loss.item()
    assert loss == pytest.approx(1.0, rel=1e-4)
    flat = mae(torch.ones(3, channels, 8, 8))
    assert flat.loss.item() == flat.losses["zero"].item() == 0.0


def test_an_image_of_one_colour_gives_a_finite_loss_and_gradient(mae: MaskedAutoencoder) -> None:
    loss = mae(torch.ones(2, 1, 8, 8)).loss
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(p.grad is None or p.grad.isfinite().all() for p in mae.parameters())


def test_evaluation_hides_the_same_patches_every_time_and_training_does_not(
    mae: MaskedAutoencoder, images: Tensor
) -> None:
    assert mae(images).loss.item() == mae(images).loss.item()
    state = torch.get_rng_state()
    mae(images)
    assert torch.equal(torch.get_rng_state(), state)  # nor does it disturb the random numbers of training
    mae.train()
    assert mae(images).loss.item() != mae(images).loss.item()


def test_training_hides_other_patches_in_each_image(mae: MaskedAutoencoder, images: Tensor) -> None:
    answer = answering(mae, normalised_patches(images))
    same = images[:1].expand(4, -1, -1, -1)
    mae.train()(same)
    assert not torch.allclose(answer.seen[0], answer.seen[1], atol=1e-3)


def test_every_weight_of_encoder_and_decoder_is_trained(mae: MaskedAutoencoder, images: Tensor) -> None:
    mae.train()(images).loss.backward()
    unused = {name for name, p in mae.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    assert unused <= {"encoder.head.weight", "encoder.head.bias"}


def test_the_encoder_is_the_model_itself(tiny_vit: Build) -> None:
    encoder = tiny_vit(patch_size=PATCH)
    assert MaskedAutoencoder(encoder).vit is encoder


@pytest.mark.parametrize("options", [{}, {"no_embed_class": True}, {"class_token": False, "global_pool": "avg"}])
def test_a_full_view_is_encoded_as_the_vit_itself_does(
    options: dict[str, Any], tiny_vit: Build, images: Tensor
) -> None:
    """What is learnt at the visible patches holds for the network that is kept: the same tokens, in another order."""
    encoder = tiny_vit(patch_size=PATCH, **options)
    mae = MaskedAutoencoder(encoder, mask_ratio=0.5).eval()
    seen: list[Tensor] = []
    encoder.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    order = torch.stack([torch.randperm(PATCHES) for _ in images])
    mae._visible = lambda batch, device: order  # type: ignore[method-assign]
    mae(images)
    encoder.forward_features(images)
    prefix = encoder.num_prefix_tokens
    torch.testing.assert_close(seen[0][:, :prefix], seen[1][:, :prefix], atol=1e-4, rtol=1e-4)
    patches = seen[1][:, prefix:].gather(1, order[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(seen[0][:, prefix:], patches, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5, 0.01, 0.99, math.nan])
def test_a_ratio_that_hides_nothing_or_all_is_refused(ratio: float, tiny_vit: Build) -> None:
    with pytest.raises(UserError, match=f"mask_ratio {ratio}"):
        MaskedAutoencoder(tiny_vit(patch_size=PATCH), mask_ratio=ratio)


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224", "vit_base_patch16_clip_224"]
)
def test_a_vit_that_is_not_plain_is_refused_by_name(name: str, tiny_vit: Build) -> None:
    with pytest.raises(UserError, match=f"{name} can't be pre-trained by MAE"):
        MaskedAutoencoder(tiny_vit(name=name))


def test_steps_on_random_images_bring_the_loss_below_that_of_answering_zero(tiny_vit: Build) -> None:
    """In eval mode the same patches are hidden at every step, so that even noise can be learnt by heart."""
    images = torch.randn(16, 1, 8, 8)
    mae = MaskedAutoencoder(tiny_vit(patch_size=PATCH), decoder_width=32).eval()
    optimizer = torch.optim.AdamW(mae.parameters(), lr=3e-3)
    assert mae(images).loss.item() > 0.75  # answering zero
    for _ in range(80):
        optimizer.zero_grad()
        mae(images).loss.backward()
        optimizer.step()
    assert mae(images).loss.item() < 0.6
