from __future__ import annotations

import threading

import pytest

from attention_transfer.data.threads import in_threads


def test_results_are_in_the_order_of_the_items() -> None:
    assert in_threads(lambda number: number**2, range(1000), "squares") == [number**2 for number in range(1000)]
    assert in_threads(str, [], "nothing") == []


def test_several_are_worked_on_at_once() -> None:
    """Each waits for the other, which one thread alone could not do."""
    together = threading.Barrier(2, timeout=10)
    in_threads(lambda number: together.wait() if number % 32 == 0 else None, range(64), "waiting")


def test_an_error_ends_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 0:
            raise ValueError("the first is wrong")
        done.append(number)

    with pytest.raises(ValueError, match="the first is wrong"):
        in_threads(work, range(200_000), "numbers")
    assert len(done) < 199_000
