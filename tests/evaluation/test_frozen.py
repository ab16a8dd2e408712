"""Nearest neighbours and linear probes, against plain loops and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torchvision.models import VisionTransformer as TorchvisionViT

from attention_transfer import UserError, describe
from attention_transfer.data import Normalise, eval_pixels
from attention_transfer.evaluation import classification, frozen_features, knn, linear_probe

Build = Callable[..., Any]
Labels = NDArray[np.int64]


def clusters(images: int, seed: int) -> tuple[Tensor, Labels]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 4, images)
    centres = np.random.default_rng(9).normal(size=(4, 10))
    return torch.from_numpy((centres[labels] + draw.normal(size=(images, 10))).astype(np.float32)), labels


@pytest.mark.parametrize("k", [1, 20, 500])
def test_neighbours_vote_as_in_plain_loops(k: int) -> None:
    (train, labels), (test, _) = clusters(60, 0), clusters(15, 1)
    found = knn(train, labels, test, k=k)
    for image, votes in zip(test.double().numpy(), found.numpy(), strict=True):
        cosines = [float(image @ x / np.linalg.norm(image) / np.linalg.norm(x)) for x in train.double().numpy()]
        expected = [0.0] * 4
        for index in sorted(range(60), key=lambda i: -cosines[i])[:k]:
            expected[labels[index]] += math.exp(cosines[index] / 0.07)
        np.testing.assert_allclose(votes, np.array(expected) / sum(expected), atol=1e-4)


def test_a_probe_is_scikit_learns_with_the_penalty_that_validation_likes_best() -> None:
    (train, labels), (validation, truth), (test, test_truth) = clusters(40, 0), clusters(80, 1), clusters(80, 2)
    probe = linear_probe(train, labels, validation, truth, penalties=[10.0, 1e-4, 0.1])
    scaler = StandardScaler().fit(train.numpy())
    fitted = {
        c: LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(train.numpy()), labels) for c in (1e-4, 0.1, 10)
    }
    scores = {c: model.score(scaler.transform(validation.numpy()), truth) for c, model in fitted.items()}
    assert probe.penalty == max(scores, key=lambda c: scores[c])
    assert probe.validation == max(scores.values())
    found = classification(probe.log_probabilities(test), test_truth)
    assert found.top1.value == fitted[probe.penalty].score(scaler.transform(test.numpy()), test_truth)


def test_a_class_without_training_images_is_never_predicted() -> None:
    (train, labels), (validation, truth) = clusters(40, 0), clusters(40, 1)
    kept = labels != 2
    probe = linear_probe(train[kept], labels[kept], validation, truth)
    found = probe.log_probabilities(validation)
    assert found.shape == (40, 4)
    assert 2 not in found.argmax(axis=1)
    assert math.isfinite(classification(found, truth).nll.value)


def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)) for _ in range(5)]


def prepared(model: Any) -> Tensor:
    spec = describe(model)
    inputs: Tensor = Normalise(spec)(torch.stack([eval_pixels(spec)(image) for image in pictures()]))
    return inputs


@pytest.mark.parametrize("options", [{}, {"num_classes": 0}, {"global_pool": "avg", "reg_tokens": 1}])
def test_features_are_what_enters_the_classification_layer(options: dict[str, Any], tiny_vit: Build) -> None:
    model = tiny_vit(**options)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(prepared(model)), pre_logits=True)
    found = frozen_features(model, pictures(), batch=2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_features_of_other_libraries() -> None:
    size: dict[str, int] = {"image_size": 8, "patch_size": 4, "hidden_dim": 16, "mlp_dim": 16}
    model = TorchvisionViT(**size, num_layers=2, num_heads=2).eval()
    with torch.no_grad():
        inputs = prepared(model)
        patches = model.conv_proj(inputs).flatten(2).transpose(1, 2)
        tokens = model.encoder(torch.cat([model.class_token.expand(5, -1, -1), patches], dim=1))
    torch.testing.assert_close(frozen_features(model, pictures()), tokens[:, 0], atol=1e-5, rtol=1e-5)
    transformers = pytest.importorskip("transformers")
    options = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    bare = transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **options)).eval()
    with torch.no_grad():
        expected = bare(prepared(bare)).last_hidden_state[:, 0]
    torch.testing.assert_close(frozen_features(bare, pictures()), expected, atol=1e-5, rtol=1e-5)


def test_mistakes_are_said() -> None:
    (train, labels), (test, truth) = clusters(10, 0), clusters(5, 1)
    with pytest.raises(UserError, match="10 training features and 9 labels"):
        knn(train, labels[:9], test)
    with pytest.raises(UserError, match="k=0"):
        knn(train, labels, test, k=0)
    with pytest.raises(UserError, match="two classes"):
        linear_probe(train, np.zeros(10, dtype=np.int64), test, truth)
    with pytest.raises(UserError, match="penalties is empty"):
        linear_probe(train, labels, test, truth, penalties=[])
