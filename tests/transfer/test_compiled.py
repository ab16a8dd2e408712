"""`torch.compile` of a whole `AttentionTransfer`, and of its parts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointError
from torchvision.models import VisionTransformer

from attention_transfer.errors import UserError
from attention_transfer.transfer import AttentionTransfer, Copy, Distill, Guide
from attention_transfer.vit import Pairing

Build = Callable[..., Any]
Reentrant = Callable[[bool], None]

TARGETS = torch.tensor([0, 1, 2, 3])
RULES: dict[str, list[Any]] = {
    "copy": [Copy()],
    "distill": [Distill()],
    "guide": [Guide()],
    "all": [Copy(layers=[0]), Distill(layers=[1]), Guide(layers=[1])],  # of two blocks
}
TORCH_COMPILE = torch.compile


def compiled(module: Any, backend: str = "aot_eager", **options: Any) -> Any:
    """Traced as by the default backend, forward and backward, without making kernels; "eager" traces less."""
    return TORCH_COMPILE(module, backend=backend, **options)


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch._dynamo.reset()


def spread(model: nn.Module) -> Any:
    """Weights so large that a wrong map would not look right."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.1))
    return model


def hugging_face(seed: int, *, depth: int) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 8, "patch_size": 4, "num_attention_heads": 3, "hidden_size": 24, "intermediate_size": 48}
    torch.manual_seed(seed)
    config = transformers.ViTConfig(num_hidden_layers=depth, num_labels=5, num_channels=1, **sizes)
    return spread(transformers.ViTForImageClassification(config))


def torchvision_vit(seed: int, *, depth: int) -> Any:
    torch.manual_seed(seed)
    return spread(VisionTransformer(8, 4, num_layers=depth, num_heads=4, hidden_dim=24, mlp_dim=48, num_classes=5))


@pytest.fixture
def make(tiny_vit: Build) -> Build:
    """Builds a tiny ViT of a library, of one block where nothing else is said."""
    builders: dict[str, Build] = {
        "timm": tiny_vit,
        "hf": hugging_face,
        "torchvision": torchvision_vit,
    }

    def build(library: str, seed: int, **overrides: Any) -> Any:
        return builders[library](seed, **{"depth": 1, **overrides})

    return build


def results(transfer: nn.Module, images: Tensor, *, run: Any = None, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Logits, losses and gradients of a step."""
    transfer.zero_grad()
    torch.manual_seed(3)
    with contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype):
        output = (transfer if run is None else run)(images)
        loss = output.total(F.cross_entropy(output.logits, TARGETS))
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in transfer.parameters()]
    return [output.logits.detach(), *(value.detach() for value in output.losses.values()), *gradients]


@pytest.mark.parametrize(
    ("library", "rules"),
    [("timm", "copy"), ("timm", "distill"), ("timm", "guide"), ("hf", "all"), ("torchvision", "all")],
)
def test_a_transfer_is_one_graph_with_the_results_of_eager(
    library: str, rules: str, make: Build, images: Tensor
) -> None:
    batch = images.repeat(1, 3, 1, 1) if library == "torchvision" else images
    depth = 2 if rules == "all" else 1

    def transfer() -> AttentionTransfer:
        teacher, student = make(library, 1, depth=depth), make(library, 2, depth=depth)
        return AttentionTransfer(teacher, student, RULES[rules]).train()

    eager, other = transfer(), transfer()
    run = compiled(other, fullgraph=True)
    torch.testing.assert_close(results(other, batch, run=run), results(eager, batch))
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(results(other, batch + 1, run=run), results(eager, batch + 1))


def of_two_blocks(make: Build) -> AttentionTransfer:
    return AttentionTransfer(make("timm", 1, depth=2), make("timm", 2, depth=2), RULES["all"])


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # of the teacher, of the student, of the transfer
    "shared drop path, and dropout": (
        {"depth": 2},
        {"depth": 2, "drop_path_rate": 0.5, "attn_drop_rate": 0.3},
        {"share_drop_path": True},
    ),
    "a teacher of another image size in bfloat16": ({"img_size": 16}, {}, {"teacher_dtype": torch.bfloat16}),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_a_transfer_are_in_the_graph(option: str, make: Build, images: Tensor) -> None:
    of_teacher, of_student, options = OPTIONS[option]

    def transfer() -> AttentionTransfer:
        teacher, student = make("timm", 1, **of_teacher), make("timm", 2, **of_student)
        return AttentionTransfer(teacher, student, [Distill(weight=6.0)], **options).train()

    eager, other = transfer(), transfer()
    run = compiled(other, fullgraph=True)
    for batch in (images, images + 1):
        torch.testing.assert_close(results(other, batch, run=run), results(eager, batch))


def test_autocast_around_a_compiled_transfer_is_as_in_eager(make: Build, images: Tensor) -> None:
    eager, other = (AttentionTransfer(make("timm", 1), make("timm", 2), [Distill()]).train() for _ in range(2))
    expected = results(eager, images, dtype=torch.bfloat16)
    actual = results(other, images, run=compiled(other, fullgraph=True), dtype=torch.bfloat16)
    assert expected[0].dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.005)  # the compiled form rounds in other places


def test_heads_that_were_matched_are_in_the_graph(make: Build, images: Tensor) -> None:
    """They are matched in a first step that is not compiled."""
    transfer = AttentionTransfer(
        make("timm", 1, num_heads=6), make("timm", 2), [Distill()], pairing=Pairing(heads="match")
    ).train()
    expected = results(transfer, images)
    torch.testing.assert_close(results(transfer, images, run=compiled(transfer, fullgraph=True)), expected)


def test_a_compiled_transfer_follows_its_mode(make: Build, images: Tensor) -> None:
    transfer = AttentionTransfer(make("timm", 1), make("timm", 2, proj_drop_rate=0.5), [Guide()])
    run = compiled(transfer, "eager", fullgraph=True)
    for training in (True, False, True):
        transfer.train(training)
        torch.testing.assert_close(results(transfer, images, run=run), results(transfer, images))


def test_a_compiled_student_by_itself_is_not_affected(make: Build, images: Tensor) -> None:
    student = make("timm", 2)
    alone = student(images)
    transfer = AttentionTransfer(make("timm", 1), student, [Copy()])
    bound = transfer(images).logits
    by_itself, in_a_step = (compiled(module, "eager", fullgraph=True) for module in (student, transfer))
    for _ in range(2):
        torch.testing.assert_close(by_itself(images), alone)
        torch.testing.assert_close(in_a_step(images).logits, bound)
    transfer.release()
    torch.testing.assert_close(by_itself(images), alone)


def test_a_teacher_that_is_compiled_alone_gives_what_it_gives_in_eager(
    make: Build, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", compiled)

    def transfer(compile_teacher: bool) -> AttentionTransfer:
        teacher, student = make("timm", 1), make("timm", 2)
        return AttentionTransfer(teacher, student, [Distill()], compile_teacher=compile_teacher).train()

    eager, other = transfer(False), transfer(True)
    for batch in (images, images + 1):
        torch.testing.assert_close(results(other, batch), results(eager, batch))


def compile_transfer(transfer: AttentionTransfer) -> Any:
    return compiled(transfer, "eager")


def compile_student(transfer: AttentionTransfer) -> Any:
    transfer.student.compile(backend="eager")
    return transfer


def compile_blocks(transfer: AttentionTransfer) -> Any:
    student: Any = transfer.student
    for block in student.blocks:
        block.compile(backend="eager")
    return transfer


@pytest.mark.parametrize("how", [compile_student, compile_blocks])
def test_parts_of_a_student_can_be_compiled(how: Callable[..., Any], make: Build, images: Tensor) -> None:
    eager, other = (of_two_blocks(make).train() for _ in range(2))
    run = how(other)
    for batch in (images, images + 1):
        torch.testing.assert_close(results(other, batch, run=run), results(eager, batch))


def test_a_student_that_was_compiled_before_can_be_bound_also_with_checkpointing(make: Build, images: Tensor) -> None:
    student = make("timm", 2, depth=2)
    eager = of_two_blocks(make).train()
    student.set_grad_checkpointing(True)
    other = AttentionTransfer(make("timm", 1, depth=2), compiled(student), RULES["all"]).train()
    for batch in (images, images + 1):
        torch.testing.assert_close(results(other, batch), results(eager, batch))


@pytest.mark.parametrize(
    ("how", "rules", "use_reentrant"),
    [
        (compile_transfer, "distill", True),
        (compile_student, "copy", True),
        (compile_blocks, "copy", True),
        (compile_student, "copy", False),
        (compile_student, "distill", True),
        (compile_blocks, "copy", False),
    ],
)
def test_checkpointing_in_compiled_code_has_the_right_gradients_or_is_refused(
    how: Callable[..., Any],
    rules: str,
    use_reentrant: bool,
    make: Build,
    images: Tensor,
    reentrant: Reentrant,
) -> None:
    reentrant(use_reentrant)
    eager = AttentionTransfer(make("timm", 1), make("timm", 2), RULES[rules]).train()
    student = make("timm", 2)
    student.set_grad_checkpointing(True)
    other = AttentionTransfer(make("timm", 1), student, RULES[rules]).train()
    try:
        actual = results(other, images, run=how(other))
    except (UserError, Unsupported, CheckpointError):
        return
    torch.testing.assert_close(actual, results(eager, images))


def test_checkpointing_that_is_turned_on_later_is_noticed(make: Build, images: Tensor) -> None:
    """Whether blocks run again is a constant of a graph, which is then another graph's."""
    eager = AttentionTransfer(make("timm", 1), make("timm", 2), RULES["distill"]).train()
    other = AttentionTransfer(make("timm", 1), make("timm", 2), RULES["distill"]).train()
    asked = []
    walk = other.student.modules

    def modules(remove_duplicate: bool = True) -> Iterator[nn.Module]:
        asked.append(True)
        return walk(remove_duplicate)

    other.student.modules = modules  # type: ignore[method-assign]
    compiled = torch.compile(other, backend="eager")
    expected = results(eager, images)
    torch.testing.assert_close(results(other, images, run=compiled), expected)
    before = len(asked)
    assert before
    other.student.set_grad_checkpointing(True)  # type: ignore[operator]
    with contextlib.suppress(UserError, Unsupported, CheckpointError):
        torch.testing.assert_close(results(other, images, run=compiled), expected)
    assert len(asked) > before
