"""Two processes: `DistributedDataParallel` and `fully_shard`, against one process with the joined batch.

This file is also the program of those processes; they run every case once, and the tests compare what they wrote.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from attention_transfer.transfer import AttentionTransfer, Copy, Distill, Guide
from attention_transfer.vit import Pairing, capture
from tests.warm import Python

PROCESSES = 2
TIMEOUT = timedelta(seconds=60)
IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(7))
TARGETS = torch.arange(8) % 5
RULES: dict[str, list[Any]] = {
    "copy": [Copy()],
    "distill": [Distill()],
    "all": [Copy(layers=[0]), Distill(layers=[1]), Guide(layers=[2])],
}
Result = dict[str, Tensor]
Case = Callable[[Tensor, Tensor], Result]


def vit(seed: int, **overrides: Any) -> Any:
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 24, "depth": 3, "num_heads": 3}
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **{**sizes, **overrides})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.1))
    return model.train()


def sharded(model: Any) -> Any:
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


# What both the processes and the tests compute


def seen(model: nn.Module, images: Tensor) -> Result:
    """Logits, and maps of each block."""
    with capture(model) as calls:
        logits = model(images)
    return {"logits": logits.detach(), **{f"maps {call.layer}": call.maps().detach() for call in calls}}


def gradients(transfer: nn.Module, images: Tensor, targets: Tensor, *, steps: int = 1) -> Result:
    """Of the last of several steps on the same batch."""
    for _ in range(steps):
        transfer.zero_grad()
        output = transfer(images)
        output.total(F.cross_entropy(output.logits, targets)).backward()
    return {
        name.replace("module.", ""): whole(parameter.grad)
        for name, parameter in transfer.named_parameters()
        if parameter.grad is not None
    }


def whole(tensor: Any) -> Tensor:
    result: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return result


def transfer_of(student: nn.Module, rules: str, teacher: nn.Module | None = None) -> AttentionTransfer:
    return AttentionTransfer(teacher or vit(1), student, RULES[rules]).train()


# The cases, each with the images of its process


def data_parallel(rules: str, *, checkpointing: bool = False, **options: Any) -> Case:
    def case(images: Tensor, targets: Tensor) -> Result:
        student = vit(2)
        student.set_grad_checkpointing(checkpointing)
        transfer = transfer_of(student, rules)
        return gradients(DistributedDataParallel(transfer, **options), images, targets, steps=2)

    return case


def student_data_parallel(rules: str) -> Case:
    def case(images: Tensor, targets: Tensor) -> Result:
        return gradients(transfer_of(DistributedDataParallel(vit(2)), rules), images, targets)

    return case


def fully_sharded(rules: str, *, root: bool = False, checkpointing: bool = False, teacher: bool = False) -> Case:
    def case(images: Tensor, targets: Tensor) -> Result:
        student = vit(2)
        student.set_grad_checkpointing(checkpointing)
        transfer: Any = transfer_of(sharded(student), rules, sharded(vit(1)) if teacher else None)
        return gradients(fully_shard(transfer) if root else transfer, images, targets, steps=2)

    return case


def matched(wrap: Callable[[nn.Module], nn.Module], shard: Callable[[Any], Any]) -> Case:
    def case(images: Tensor, targets: Tensor) -> Result:
        student = shard(vit(2))
        transfer = AttentionTransfer(vit(1, num_heads=6), student, [Distill()], pairing=Pairing(heads="match")).train()
        found = gradients(wrap(transfer), images, targets)
        assert transfer.head_pairs is not None
        return {**found, "pairs": transfer.head_pairs.pairs}

    return case


def unchanged(module: Any) -> Any:
    return module


CAPTURES: dict[str, Case] = {
    "DDP": lambda images, _: seen(DistributedDataParallel(vit(2)), images),
    "the model in DDP": lambda images, _: seen(DistributedDataParallel(vit(2)).module, images),
    "FSDP2": lambda images, _: seen(sharded(vit(2)), images),
}
STEPS: dict[str, tuple[str, Case]] = {
    **{f"DDP {rules}": (rules, data_parallel(rules)) for rules in RULES},
    **{f"DDP of the student {rules}": (rules, student_data_parallel(rules)) for rules in ("copy", "distill")},
    "DDP copy, unused parameters": ("copy", data_parallel("copy", find_unused_parameters=True)),
    "DDP all, checkpointed": ("all", data_parallel("all", checkpointing=True)),
    "DDP distill, static graph": ("distill", data_parallel("distill", static_graph=True)),
    **{f"FSDP2 {rules}": (rules, fully_sharded(rules)) for rules in RULES},
    "FSDP2 all, transfer too": ("all", fully_sharded("all", root=True)),
    "FSDP2 all, checkpointed": ("all", fully_sharded("all", checkpointing=True)),
    "FSDP2 all, teacher too": ("all", fully_sharded("all", teacher=True)),
}
MATCHES: dict[str, Case] = {
    "DDP": matched(DistributedDataParallel, unchanged),
    "FSDP2": matched(unchanged, sharded),
}


def of_process(tensor: Tensor, rank: int) -> Tensor:
    """The share of a process in the joined batch."""
    return tensor.chunk(PROCESSES)[rank]


def work(rank: int, folder: Path) -> None:
    """Run every case as one process of the group."""
    torch.set_num_threads(1)
    where = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=PROCESSES, timeout=TIMEOUT)
    images, targets = of_process(IMAGES, rank), of_process(TARGETS, rank)
    steps = {name: case for name, (_, case) in STEPS.items()}
    for kind, cases in {"captures": CAPTURES, "steps": steps, "matches": MATCHES}.items():
        results = {name: case(images, targets) for name, case in cases.items()}
        torch.save(results, folder / f"{kind}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


# The tests


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, python: Python) -> dict[str, list[dict[str, Result]]]:
    """What each process found, by kind of case."""
    folder = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    programs = [python.start(__file__, str(rank), str(folder), env=environment) for rank in range(PROCESSES)]
    for program in programs:
        done = program.ended()
        assert done.returncode == 0, done.stderr[-3000:]
    return {
        kind: [torch.load(folder / f"{kind}-{rank}.pt") for rank in range(PROCESSES)]
        for kind in ("captures", "steps", "matches")
    }


@pytest.mark.parametrize("case", CAPTURES)
def test_maps_of_each_process_are_those_of_the_plain_model_on_its_batch(case: str, results: Any) -> None:
    for rank in range(PROCESSES):
        expected = seen(vit(2), of_process(IMAGES, rank))
        actual = results["captures"][rank][case]
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("case", STEPS)
def test_gradients_are_those_of_one_process_with_the_joined_batch(case: str, results: Any) -> None:
    expected = gradients(transfer_of(vit(2), STEPS[case][0]), IMAGES, TARGETS)
    for rank in range(PROCESSES):
        assert_gradients(results["steps"][rank][case], expected)


def assert_gradients(actual: Result, expected: Result) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", MATCHES)
def test_heads_are_matched_as_on_the_joined_batch_in_every_process(case: str, results: Any) -> None:
    expected = matched(unchanged, unchanged)(IMAGES, TARGETS)
    alone = [
        matched(unchanged, unchanged)(of_process(IMAGES, rank), of_process(TARGETS, rank)) for rank in range(PROCESSES)
    ]
    assert any(not torch.equal(found["pairs"], expected["pairs"]) for found in alone)
    for rank in range(PROCESSES):
        assert torch.equal(results["matches"][rank][case]["pairs"], expected["pairs"])
        assert_gradients(results["matches"][rank][case], expected)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
