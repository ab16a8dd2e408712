"""A library of models of another package, in one file: all that works for models of timm works for its models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SMALL = '''
"""Small vision transformers: a convolution, blocks of attention and an MLP, the mean of all patches, a classifier."""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from attention_transfer import Tokens, UserError, ViTSpec
from attention_transfer.vit.libraries import Anatomy, Initial, Library


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in layers)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm, self.attention, self.mlp = nn.LayerNorm(width), Attention(width, heads), nn.Linear(width, width)

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x).relu()


class SmallViT(nn.Module):
    def __init__(self, width, depth, classes):
        super().__init__()
        self.embed = nn.Conv2d(1, width, 4, 4)
        self.places = nn.Parameter(torch.zeros(1, 4, width))
        self.blocks = nn.ModuleList([Block(width, 2) for _ in range(depth)])
        self.head = nn.Linear(width, classes) if classes else nn.Identity()
        self.again = False

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.again else block(x)
        return self.head(x.mean(dim=1))


class Small(Library):
    name = "small"
    hub_name = "small-vits"
    folders = "at:"
    signs = ("embed.weight",)
    initial = Initial(normal=("places",))

    def owns(self, model):
        return isinstance(model, SmallViT)

    def anatomy(self, model):
        attention = tuple(block.attention for block in model.blocks)
        return Anatomy(model, tuple(model.blocks), attention, None, Tokens(()))

    def spec(self, model):
        width, depth = model.embed.out_channels, len(model.blocks)
        head = self.head(model)
        return ViTSpec(
            name=f"w{width}d{depth}", library="small", depth=depth, heads=2, head_dim=width // 2, width=width,
            tokens=Tokens(()), grid=(2, 2), image_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,),
            classes=0 if head is None else head.out_features, pool=False, components=frozenset(),
        )

    def build(self, name, *, pretrained, num_classes, image_size, patch_size):
        if pretrained or image_size or patch_size:
            raise UserError(f"small/{name} has random weights and one size")
        width, depth = name[1:].split("d")
        return SmallViT(int(width), int(depth), 10 if num_classes is None else num_classes)

    def with_head(self, model, num_classes):
        student = copy.deepcopy(model).cpu()
        width = model.embed.out_channels
        student.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        return student

    def head(self, model):
        return model.head if isinstance(model.head, nn.Linear) else None

    def head_names(self, model):
        return ("head.",)

    def published(self, name):
        return f"small-team/{name}"

    def recognise(self, network, path, **sizes):
        depth = len({name.split(".")[1] for name in network.state if name.startswith("blocks.")})
        if "embed.weight" not in network.state or not depth:
            return None
        return self.build(f"w{len(network.state['embed.weight'])}d{depth}", pretrained=False, **sizes)

    def can_recompute(self, model):
        return True

    def recompute(self, model, *, on):
        model.again = on

    def recomputes(self, model):
        return model.again

    def can_mask(self, model):
        return True

    def embedded(self, model, images):
        patches = model.embed(images).flatten(2).transpose(1, 2) + model.places
        return patches[:, :0], patches

    def encoded(self, model, tokens):
        for block in model.blocks:
            tokens = block(tokens)
        return tokens
'''

SETUP = """
from pathlib import Path
import torch
from attention_transfer import *
from attention_transfer.vit import freeze, load_vit, save_vit, take_part
torch.manual_seed(0)
teacher = load_vit("small/w8d2", pretrained=False)
images = torch.randn(3, 1, 8, 8)
"""


WHOLE = """
import attention_transfer as at
from attention_transfer.config.recipe import Recipe
save_vit(teacher, Path("kept"))
small = Recipe(epochs=1, batch_size=10, workers=0, checkpoint_gradients=True)
blocks = type(teacher.blocks[0])
runs, forward = [], blocks.forward
blocks.forward = lambda self, x: runs.append(torch.is_grad_enabled()) or forward(self, x)
at.train(preset="distill", teacher="small/at:kept", data="digits", shots=1, recipe=small, out="run")
trained = sum(runs)
at.pretrain(model="small/w8d2", data="digits", recipe=Recipe(epochs=1, workers=0), out="pretrained")
print()
print(trained, at.load_run("run").spec.library, describe(load_vit("pretrained")).name)
"""


@pytest.fixture
def run(installed: Callable[..., Any]) -> Any:
    return installed("small", SMALL, libraries="small = small:Small")


def test_its_models_are_made_described_and_captured(run: Any) -> None:
    code = f"""{SETUP}
with capture(teacher) as calls:
    teacher(images)
print(describe(teacher).name, describe(teacher).library, [tuple(call.q.shape) for call in calls])
"""
    assert run(code).strip() == "w8d2 small [(3, 2, 4, 4), (3, 2, 4, 4)]"


def test_every_kind_of_rule_binds_them(run: Any) -> None:
    code = f"""{SETUP}
for rules in ([Copy()], [Distill()], [Guide(query="mean")], [FeatureKD(), LogitKD()]):
    student = student_like(teacher, num_classes=10)
    transfer = AttentionTransfer(teacher, student, rules).train()
    output = transfer(images)
    output.total(output.logits.square().mean()).backward()
    queries, values = student.blocks[0].attention.q_proj.weight.grad, student.blocks[0].attention.v_proj.weight.grad
    print(queries is not None and bool(queries.any()), bool(values.any()))
"""
    assert run(code).splitlines() == ["False True", "True True", "True True", "True True"]


def test_they_are_saved_and_opened_and_their_parts_are_taken(run: Any) -> None:
    code = f"""{SETUP}
save_vit(teacher, Path("kept"), labels=[str(i) for i in range(10)])
again = load_vit("kept")
print(torch.equal(again(images), teacher(images)))
student = student_from(teacher, num_classes=3)
print(student(images).shape[1], len(take_part(student, again, ["qkv"])))
print(len(freeze(student, ["all"], but=["head"]).names))
"""
    assert run(code).split() == ["True", "3", "12", str(2 + 2 * 12)]


def test_they_are_found_in_files_of_weights_with_several_networks(run: Any) -> None:
    code = f"""{SETUP}
other = load_vit("small/w8d2", pretrained=False)
torch.save({{"model": {{f"teacher.{{k}}": v for k, v in teacher.state_dict().items()}}
    | {{f"ema.{{k}}": v for k, v in other.state_dict().items()}}}}, "weights.pth")
for name in ("weights.pth", "weights.pth#teacher"):
    print(torch.equal(load_vit(name)(images), (other if name == "weights.pth" else teacher)(images)))
fresh = student_like(teacher, num_classes=10)
print(0.005 < fresh.places.std().item() < 0.05)
torch.save({{"embed.weight": torch.zeros(8, 1, 4, 4)}}, "part.pth")
try:
    load_vit("part.pth")
except UserError as error:
    print(error)
"""
    assert run(code).splitlines() == [
        "True",
        "True",
        "True",
        "the architecture of part.pth can't be read from its weights; name the architecture and give the file as its "
        "weights: small/<name> --pretrained part.pth",
    ]


def test_they_are_trained_by_the_verbs(run: Any, tmp_path: Path) -> None:
    # One step on one micro-batch: each of the student's two blocks runs forward and again in the backward pass.
    assert run(f"{SETUP}{WHOLE}").splitlines()[-1] == "4 small w8d2"
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "small-vits"


def test_an_unknown_library_is_refused_with_the_nearest(run: Any) -> None:
    code = f"""{SETUP}
from attention_transfer.vit.libraries import find_library, library_names
print(library_names())
try:
    find_library("smal")
except UserError as error:
    print(error)
"""
    assert run(code).splitlines() == [
        "['timm', 'hf', 'torchvision', 'small']",
        "there is no library 'smal'; did you mean 'small'?",
    ]
