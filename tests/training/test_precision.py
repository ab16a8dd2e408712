"""Which precision a machine gets, by what its processor says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from attention_transfer.engine import precision
from attention_transfer.engine.precision import choose_precision

BIG = 20_000_000


@pytest.mark.parametrize(
    ("flags", "expected", "reason"),
    [
        ("fpu avx2 avx512f avx512_bf16", "bf16", "avx512_bf16"),
        ("fpu amx_bf16 avx512_bf16", "bf16", "amx_bf16"),
        ("fpu avx2 avx512f", "fp32", "no instructions for bfloat16"),
        ("", "fp32", "no instructions for bfloat16"),
    ],
)
def test_a_cpu_is_asked_for_its_instructions(
    flags: str, expected: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them every operand is converted, which is some fifteen times slower than float32."""
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n\nprocessor\t: 1\nflags\t\t: other\n")
    monkeypatch.setattr(precision, "_CPU_INFO", info)
    chosen = choose_precision("cpu", BIG)
    assert chosen.precision == expected
    assert reason in chosen.reason


def test_a_system_that_does_not_say_gets_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_CPU_INFO", tmp_path / "missing")
    assert choose_precision("cpu", BIG).precision == "fp32"


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_is_asked_for_its_own_arithmetic(native: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert choose_precision("cuda", BIG).precision == expected


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_small_network_stays_in_float32(device: str) -> None:
    assert choose_precision(device, 200_000) == ("fp32", "the network is small")
