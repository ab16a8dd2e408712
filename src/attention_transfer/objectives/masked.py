"""Masked autoencoding: make a teacher from images without labels (He et al. 2022, arXiv 2111.06377).

Shapes: B batch, L patches, K visible patches, C width, P pixels of a patch.
"""

from __future__ import annotations

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.objectives.base import Objective, ObjectiveOutput
from attention_transfer.objectives.mixing import MixedTargets
from attention_transfer.vit import describe, library_of


class MaskedAutoencoder(Objective):
    """Hides most patches of an image and learns to paint them from the rest.

    Args:
        encoder: a plain ViT whose library can run its blocks on some of the patches, as timm can where positions are
            added before the first block; trained in place, and the teacher afterwards.
        mask_ratio: share of the patches that are hidden, in (0, 1).
        decoder_width: width of the decoder, which is thrown away after pre-training.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder.

    Raises:
        UserError: the encoder is not supported, or the ratio leaves nothing visible or nothing hidden.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        mask_ratio: float = 0.75,
        decoder_width: int = 48,
        decoder_depth: int = 1,
        decoder_heads: int = 4,
    ) -> None:
        super().__init__()
        spec, self.library = describe(encoder), library_of(encoder)
        patches = spec.grid[0] * spec.grid[1]
        self.visible = round(patches * (1 - mask_ratio)) if 0 < mask_ratio < 1 else 0
        if not 0 < self.visible < patches:
            raise UserError(
                f"mask_ratio {mask_ratio} leaves {self.visible} of {patches} patches visible; hide some, not all"
            )
        if not self.library.can_mask(encoder):
            raise UserError(f"{spec.name} can't be pre-trained by MAE here; a plain ViT of timm is needed")
        self.encoder, self.prefix_tokens = encoder, spec.prefix_tokens
        self.patch = (spec.image_size[0] // spec.grid[0], spec.image_size[1] // spec.grid[1])
        self.norm = nn.LayerNorm(spec.width)
        self.embed = nn.Linear(spec.width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.positions = nn.Parameter(torch.zeros(1, patches + spec.prefix_tokens, decoder_width))
        self.decoder = nn.Sequential(*[Block(decoder_width, decoder_heads) for _ in range(decoder_depth)])
        self.predict = nn.Sequential(
            nn.LayerNorm(decoder_width), nn.Linear(decoder_width, self.patch[0] * self.patch[1] * spec.channels)
        )
        trunc_normal_(self.mask_token, std=0.02)
        trunc_normal_(self.positions, std=0.02)

    def forward(self, images: Tensor, targets: Tensor | MixedTargets | None = None) -> ObjectiveOutput:  # noqa: ARG002
        """The reconstruction loss of images (B, channels, height, width); targets are not read.

        The loss is the mean squared error of the hidden patches, each normalised to mean 0 and variance 1. `zero` is
        the error of answering 0, as a network does that has learnt nothing: 1, less the share of uniform patches.
        In training mode the hidden patches are drawn at random, in eval mode they are the same at every call.
        """
        visible_BK = self._visible(len(images), images.device)
        prediction_BLP = self._decode(self._encode(images, visible_BK), visible_BK)
        target_BLP = self._patches(images)
        hidden_BL = torch.ones_like(target_BLP[..., 0]).scatter(1, visible_BK, 0.0)
        error_BL = (prediction_BLP - target_BLP).square().mean(dim=-1)
        zero_BL = target_BLP.square().mean(dim=-1)
        share_BL = hidden_BL / hidden_BL.sum()
        loss = (error_BL * share_BL).sum()
        return ObjectiveOutput(loss, {"reconstruction": loss, "zero": (zero_BL * share_BL).sum()})

    @property
    def vit(self) -> nn.Module:
        """The encoder, which is what is kept."""
        return self.encoder

    def _visible(self, batch: int, device: torch.device) -> Tensor:
        patches = self.positions.shape[1] - self.prefix_tokens
        generator = None if self.training else torch.Generator(device).manual_seed(0)
        return torch.rand(batch, patches, device=device, generator=generator).argsort(dim=1)[:, : self.visible]

    def _encode(self, images: Tensor, visible_BK: Tensor) -> Tensor:
        """Encoder tokens of the class token and the visible patches, (B, prefix + K, C)."""
        prefix_BPC, patches_BLC = self.library.embedded(self.encoder, images)
        x_BKC = patches_BLC.gather(1, visible_BK[..., None].expand(-1, -1, patches_BLC.shape[-1]))
        tokens: Tensor = self.norm(self.library.encoded(self.encoder, torch.cat([prefix_BPC, x_BKC], dim=1)))
        return tokens

    def _decode(self, tokens_BKC: Tensor, visible_BK: Tensor) -> Tensor:
        """Predicted patches, (B, L, P)."""
        x = self.embed(tokens_BKC)
        prefix, seen = x[:, : self.prefix_tokens], x[:, self.prefix_tokens :]
        patches = self.positions.shape[1] - self.prefix_tokens
        canvas = self.mask_token.expand(len(x), patches, -1)
        canvas = canvas.scatter(1, visible_BK[..., None].expand_as(seen), seen.to(canvas.dtype))
        x = self.decoder(torch.cat([prefix, canvas], dim=1) + self.positions)
        prediction: Tensor = self.predict(x[:, self.prefix_tokens :])
        return prediction

    def _patches(self, images: Tensor) -> Tensor:
        """Pixels of each patch, normalised patch by patch, (B, L, P)."""
        patches_BPL = nn.functional.unfold(images, self.patch, stride=self.patch)
        patches_BLP = patches_BPL.transpose(1, 2)
        variance, mean = torch.var_mean(patches_BLP, dim=-1, correction=0, keepdim=True)
        return (patches_BLP - mean) / (variance + 1e-6).sqrt()
