"""A run that is told to end (SIGTERM), as by a cluster's time limit, is no finished one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from attention_transfer.training import Interrupted


class EndsAt(nn.Module):
    """Gives pixels through; the process is told to end at the call of this number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def forward(self, pixels: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return pixels


def test_a_run_that_is_told_to_end_is_interrupted_and_goes_on(tiny: Any, tmp_path: Path) -> None:
    tiny.fit(tiny.objective("distill"), tmp_path / "whole")
    with pytest.raises(Interrupted):
        tiny.fit(tiny.objective("distill"), tmp_path / "cut", prepare=EndsAt(6))
    assert not (tmp_path / "cut" / "figures" / "curve.png").exists()
    tiny.fit(tiny.objective("distill"), tmp_path / "cut")
    assert tiny.history(tmp_path / "cut") == tiny.history(tmp_path / "whole")
