"""Similarity of two networks and the figures of one, against plain loops over timm's own unfused maps."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionViT

from attention_transfer import AttentionTransfer, Copy, UserError, capture, student_like
from attention_transfer.data import Normalise, eval_pixels
from attention_transfer.evaluation import Classifier, attention_profile, similarity
from attention_transfer.evaluation.cka import MinibatchCKA, hsic
from attention_transfer.evaluation.network_similarity import match_heads
from attention_transfer.vit import describe

Build = Callable[..., Any]
Maps = Callable[[nn.Module, Tensor], list[Tensor]]
Array = NDArray[np.float64]


def pictures(count: int, side: int = 16) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (side, side), dtype=np.uint8)) for _ in range(count)]


def inputs(model: nn.Module, images: list[Image.Image]) -> Tensor:
    spec = describe(model)
    prepared: Tensor = Normalise(spec)(torch.stack([eval_pixels(spec)(image) for image in images]))
    return prepared


def maps(unfused: Maps, model: nn.Module, images: list[Image.Image]) -> Array:
    """All maps, (images, layers, heads, rows, keys)."""
    return torch.stack(unfused(model, inputs(model, images)), dim=1).double().numpy()


def kl(p: Array, q: Array) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


def js(p: Array, q: Array) -> float:
    return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2


def mean_over(divergence: Callable[[Array, Array], float], p: Array, q: Array) -> float:
    """Over images and rows of maps (images, rows, keys)."""
    count = p.shape[0] * p.shape[1]
    return sum((divergence(p[i, r], q[i, r]) for i, r in np.ndindex(p.shape[:2])), 0.0) / float(count)


@pytest.mark.parametrize("divergence", [js, kl])
def test_the_four_matchings_are_those_of_plain_loops(
    divergence: Callable[[Array, Array], float], tiny_vit: Build, unfused_maps: Maps
) -> None:
    a, b, images = tiny_vit(), tiny_vit(seed=1, depth=2), pictures(3, 8)
    p, q = maps(unfused_maps, a, images), maps(unfused_maps, b, images)
    found = similarity(a, b, images, rows="all", batch=2)
    matchings = found.js if divergence is js else found.kl
    assert matchings.same is not None
    for x, y in itertools.product(range(3), range(2)):
        pairs = np.array([[mean_over(divergence, p[:, x, g], q[:, y, h]) for h in range(3)] for g in range(3)])
        assert matchings.same[x][y] == pytest.approx(np.mean([pairs[h, h] for h in range(3)]), abs=1e-5)
        assert matchings.best[x][y] == pytest.approx(np.mean([min(row) for row in pairs]), abs=1e-5)
        least = min(sum(pairs[g, order[g]] for g in range(3)) for order in itertools.permutations(range(3)))
        assert matchings.optimal[x][y] == pytest.approx(least / 3, abs=1e-5)
        together = mean_over(divergence, p[:, x].mean(axis=1), q[:, y].mean(axis=1))
        assert matchings.averaged[x][y] == pytest.approx(together, abs=1e-5)
    assert found.by_depth(found.js.best) == (found.js.best[0][0], found.js.best[1][0], found.js.best[2][1])
    assert (found.images, found.rows, found.tokens) == (3, 5, "all")


def test_a_network_is_like_itself_and_the_result_is_json(tiny_vit: Build) -> None:
    found = similarity(tiny_vit(), tiny_vit(), pictures(5), rows=2)
    assert found.cka is not None and found.js.same is not None
    for layer in range(3):
        assert found.js.same[layer][layer] == pytest.approx(0, abs=1e-6)
        assert found.kl.optimal[layer][layer] == pytest.approx(0, abs=1e-6)
        assert found.cka[layer][layer] == pytest.approx(1, abs=1e-6)
    assert found.profile_a == found.profile_b
    assert json.loads(json.dumps(dataclasses.asdict(found)))["rows"] == 2


def test_drawn_rows_and_batches_do_not_depend_on_one_another(tiny_vit: Build) -> None:
    a, b, images = tiny_vit(), tiny_vit(seed=1), pictures(6)
    one, other = (similarity(a, b, images, rows=3, batch=batch) for batch in (2, 6))
    np.testing.assert_allclose(one.js.averaged, other.js.averaged, atol=1e-6)
    assert similarity(a, b, images, rows=3, seed=1).js != one.js
    whole, five = similarity(a, b, images, rows="all"), similarity(a, b, images, rows=5)
    assert whole.js == five.js  # of 5 tokens all are drawn


def test_networks_with_unlike_tokens_are_compared_between_patches(tiny_vit: Build, unfused_maps: Maps) -> None:
    a, b, images = tiny_vit(), tiny_vit(seed=1, reg_tokens=2, num_heads=2), pictures(2, 8)
    p, q = maps(unfused_maps, a, images)[..., 1:, 1:], maps(unfused_maps, b, images)[..., 3:, 3:]
    p, q = (x / x.sum(axis=-1, keepdims=True) for x in (p, q))
    found = similarity(a, b, images, rows="all")
    assert (found.tokens, found.js.same) == ("patches", None)
    pairs = np.array([[mean_over(js, p[:, 0, g], q[:, 0, h]) for h in range(2)] for g in range(3)])
    assert found.js.best[0][0] == pytest.approx(pairs.min(axis=1).mean(), abs=1e-5)
    least = min(pairs[g0, 0] + pairs[g1, 1] for g0, g1 in itertools.permutations(range(3), 2))
    assert found.js.optimal[0][0] == pytest.approx(least / 2, abs=1e-5)


def test_the_class_tokens_row_alone(tiny_vit: Build, unfused_maps: Maps) -> None:
    a, b, images = tiny_vit(), tiny_vit(seed=1), pictures(2, 8)
    p, q = maps(unfused_maps, a, images)[..., :1, :], maps(unfused_maps, b, images)[..., :1, :]
    found = similarity(a, b, images, rows="class")
    assert found.js.averaged[1][2] == pytest.approx(mean_over(js, p[:, 1].mean(1), q[:, 2].mean(1)), abs=1e-5)
    assert found.profile_a[0].distance is None


@given(hnp.arrays(np.float64, (2, 7, 3), elements=st.floats(-2, 2)))
def test_hsic_is_the_estimator_in_loops(features: Array) -> None:
    k, l = (x @ x.T for x in features)
    n = 7
    total = 0.0
    # Song et al. 2012, by its definition: a mean over tuples of distinct indices.
    for i, j in itertools.permutations(range(n), 2):
        total += k[i, j] * l[i, j] / (n * (n - 1))
    for i, j, q in itertools.permutations(range(n), 3):
        total -= 2 * k[i, j] * l[i, q] / (n * (n - 1) * (n - 2))
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * l[q, r] / (n * (n - 1) * (n - 2) * (n - 3))
    assert float(hsic(torch.from_numpy(k), torch.from_numpy(l))) == pytest.approx(total, abs=1e-9)


def test_cka_is_the_ratio_of_sums_over_minibatches(tiny_vit: Build) -> None:
    a, b, images = tiny_vit(), tiny_vit(seed=1), pictures(11)
    found = similarity(a, b, images, rows=1, batch=5)  # the last batch is one image, which counts for nothing
    sums = np.zeros(3)
    for start in (0, 5):
        grams = []
        for model in (a, b):
            outputs: list[Tensor] = []
            hook = model.blocks[1].register_forward_hook(lambda m, i, o, kept=outputs: kept.append(o))
            with torch.no_grad():
                model(inputs(model, images[start : start + 5]))
            hook.remove()
            flat = outputs[0].flatten(1).double()
            grams.append(flat @ flat.T)
        k, l = grams
        sums += np.array([float(hsic(k, l)), float(hsic(k, k)), float(hsic(l, l))])
    assert found.cka is not None
    assert found.cka[1][1] == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), abs=1e-4)
    assert similarity(a, b, images[:3], rows=1).cka is None


def test_debiased_cka_of_independent_features_is_near_zero() -> None:
    cka = MinibatchCKA()
    for _ in range(40):
        a, b = torch.randn(2, 1, 16, 64, dtype=torch.float64)
        cka.add(a @ a.transpose(-2, -1), b @ b.transpose(-2, -1))
    result = cka.result()
    assert result is not None and abs(float(result[0, 0])) < 0.1


def test_figures_of_one_network_are_those_of_plain_loops(tiny_vit: Build, unfused_maps: Maps) -> None:
    model, images = tiny_vit(img_size=24, reg_tokens=1), pictures(2, 24)
    p = maps(unfused_maps, model, images)  # 2 prefix tokens, 6 × 6 patches
    profile = attention_profile(model, images, rows="all", layers=[1], batch=1)[0]
    entropies, counts, distances, prefix = [], [], [], []
    for i, h, r in itertools.product(range(2), range(3), range(38)):
        row = p[i, 1, h, r]
        entropies.append(-sum(x * np.log(x) for x in row))
        patches, held, count = row[2:], 0.0, 0
        for x in sorted(patches, reverse=True):
            if held >= 0.95 * patches.sum():
                break
            held, count = held + x, count + 1
        counts.append(count)
        prefix.append(row[0] + row[1])
        if r >= 2:
            here = divmod(r - 2, 6)
            far = [np.hypot(here[0] - j // 6, here[1] - j % 6) for j in range(36)]
            distances.append(sum(x * d for x, d in zip(patches, far, strict=True)) / patches.sum())
    pairs = [mean_over(js, p[:, 1, g], p[:, 1, h]) for g, h in itertools.combinations(range(3), 2)]
    assert profile.layer == 1
    assert profile.entropy == pytest.approx(np.mean(entropies), abs=1e-5)
    assert profile.patches_95 == pytest.approx(np.mean(counts), abs=0.02)
    assert profile.distance == pytest.approx(np.mean(distances), abs=1e-5)
    assert profile.prefix_mass == pytest.approx(np.mean(prefix), abs=1e-6)
    assert profile.diversity == pytest.approx(np.mean(pairs), abs=1e-5)


def test_a_patch_that_everything_attends_to_is_a_sink(tiny_vit: Build, unfused_maps: Maps) -> None:
    model, images = tiny_vit(img_size=24), pictures(2, 24)
    with torch.no_grad(), capture(model, layers=[0]) as calls:
        model.pos_embed[:, 8] *= 30
        model(inputs(model, images))
        model.blocks[0].attn.qkv.bias[:24] = 3 * calls[0].k[0, :, 8].flatten()  # every query looks for this key
    got = maps(unfused_maps, model, images).mean(axis=(2, 3))[:, :, 1:]  # (images, layers, patches)
    expected = [[(x[x > 10 / 37].sum(), (x > 10 / 37).sum()) for x in image] for image in got]
    for layer, profile in enumerate(attention_profile(model, images, rows="all")):
        masses, counts = zip(*(image[layer] for image in expected), strict=True)
        assert profile.sink_mass == pytest.approx(np.mean(masses), abs=1e-6)
        assert profile.sinks == pytest.approx(np.mean(counts))
    assert max(count for image in expected for _, count in image) == 1


def test_patches_of_high_norm_are_counted(tiny_vit: Build) -> None:
    model, images = tiny_vit(img_size=24), pictures(3, 24)
    with torch.no_grad():
        model.pos_embed[:, 8:11] *= 40
    shares: list[list[float]] = []
    for block in model.blocks:
        outputs: list[Tensor] = []
        hook = block.register_forward_hook(lambda m, i, o, kept=outputs: kept.append(o))
        with torch.no_grad():
            model(inputs(model, images))
        hook.remove()
        norms = np.linalg.norm(outputs[0][:, 1:].numpy(), axis=-1)
        shares.append([float(np.mean([x > 3 * sorted(image)[17] for x in image])) for image in norms])
    found = [profile.high_norm for profile in attention_profile(model, images, rows=1)]
    assert found == pytest.approx([np.mean(image) for image in shares])
    assert found[0] == pytest.approx(3 / 36)


def test_heads_are_matched_where_the_best_is_taken_twice() -> None:
    pairs = np.array([[[[0.1, 0.5]], [[0.2, 0.9]]]])  # both heads are nearest to head 0
    found = match_heads(pairs, np.array([[0.3]]))
    assert found.same is not None
    assert found.best[0] == pytest.approx([0.15])
    assert found.optimal[0] == pytest.approx([0.35])
    assert found.same[0] == pytest.approx([0.5])


def test_networks_of_unlike_libraries_are_compared() -> None:
    transformers = pytest.importorskip("transformers")
    size: dict[str, int] = {"image_size": 8, "patch_size": 4}
    a = TorchvisionViT(**size, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16).eval()
    options = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
    b = transformers.ViTModel(transformers.ViTConfig(**size, **options)).eval()
    found = similarity(a, b, pictures(5), batch=5)
    assert (found.tokens, found.js.same) == ("all", None)
    assert found.cka is not None
    assert np.array(found.js.best).shape == np.array(found.cka).shape == (2, 3)
    assert np.isfinite(np.array(found.cka)).all()


def test_a_copied_student_has_its_teachers_attention(tiny_vit: Build) -> None:
    teacher = tiny_vit()
    student = student_like(teacher, num_classes=3).eval()
    network = Classifier(AttentionTransfer(teacher, student, [Copy()])).eval()
    found = similarity(teacher, network, pictures(2), vit_b=student)
    assert found.js.same is not None
    assert np.diagonal(found.js.same) == pytest.approx([0, 0, 0], abs=1e-6)
    assert np.diagonal(similarity(teacher, student, pictures(2)).js.averaged).min() > 1e-3


def test_half_precision_networks_run_in_their_own(tiny_vit: Build) -> None:
    a, b = tiny_vit(), tiny_vit().bfloat16()
    found = similarity(a, b, pictures(2))
    assert found.js.same is not None
    assert 0 < found.js.same[0][0] < 0.02


def test_mistakes_are_said(tiny_vit: Build) -> None:
    model = tiny_vit()
    with pytest.raises(UserError, match="2×2 and 4×4 patches"):
        similarity(model, tiny_vit(img_size=16), pictures(1))
    with pytest.raises(UserError, match="no images"):
        similarity(model, model, [])
    with pytest.raises(UserError, match="no class token"):
        similarity(model, tiny_vit(class_token=False, global_pool="avg"), pictures(1), rows="class")
    with pytest.raises(UserError, match="rows=0"):
        attention_profile(model, pictures(1), rows=0)
    with pytest.raises(UserError, match="do not exist"):
        attention_profile(model, pictures(1), layers=[7])
    with pytest.raises(UserError, match="training mode"):
        attention_profile(tiny_vit().train(), pictures(1))
