"""Commands that are killed at random moments, again and again, and end with the numbers of an undisturbed one."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MINUTES = float(os.environ.get("ATTENTION_TRANSFER_MINUTES", "0"))
SEED = int(os.environ.get("ATTENTION_TRANSFER_SEED", "0"))
KILLS = 8  # of one command, before it may end

CASES: dict[str, Callable[[Any], list[str]]] = {
    "train": lambda sandbox: sandbox.train("out", "--recipe.mixup=0.8", "--recipe.ema-decay=0.9"),
    "pretrain": lambda sandbox: sandbox.pretrain("out"),
    "compare": lambda sandbox: sandbox.compare("out"),
    "export": lambda sandbox: [*sandbox.export("run", "out"), "--overwrite"],
}


@pytest.mark.parametrize("case", CASES if MINUTES else ["train", "export"])
def test_killed_again_and_again_a_command_ends_with_the_same_numbers(
    case: str, trained: Any, in_a_process: Any, results_of: Any, tmp_path: Path
) -> None:
    words = CASES[case](trained)
    with trained.copy(tmp_path / "whole").entered():
        began = time.monotonic()
        assert in_a_process(words).code == 0
        took = time.monotonic() - began
    right, rng = results_of(tmp_path / "whole" / "out"), random.Random(f"{case} {SEED}")
    assert right and "left over" not in right.values()
    kills, rounds, found, until = 0, 0, [], time.monotonic() + 60 * MINUTES
    while time.monotonic() < until if MINUTES else rounds < 1:
        rounds += 1
        sandbox = trained.copy(tmp_path / str(rounds))
        with sandbox.entered():
            inputs = sandbox.files("out")
            for _ in range(KILLS if MINUTES else 2):
                outcome = in_a_process(words, kill_after=rng.uniform(0, took))
                kills += outcome.code == -9
                if outcome.code not in (-9, 0):
                    found.append(f"round {rounds}: {outcome}")
                if outcome.code == 0:
                    break
            last = in_a_process(words)
            if last.code != 0 or results_of(sandbox.path / "out") != right:
                found.append(f"round {rounds}, at the end: {last}")
            if sandbox.files("out") != inputs:
                found.append(f"round {rounds}: inputs are changed")
    print(f"{case}: {kills} kills in {rounds} rounds, {len(found)} problems")
    assert not found, "\n\n".join(found[:20])
