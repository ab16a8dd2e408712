from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_transfer.hooks import Scope, hook_forward, in_backward


def adds(amount: float, log: list[float] | None = None) -> Callable[..., Any]:
    def wrapper(forward: Callable[..., Tensor], x: Tensor) -> Tensor:
        if log is not None:
            log.append(amount)
        return forward(x) + amount

    return wrapper


@pytest.fixture
def double() -> nn.Module:
    """Multiplies by two."""
    linear = nn.Linear(1, 1, bias=False)
    nn.init.constant_(linear.weight, 2.0)
    return linear


ONE = torch.ones(1)


def test_a_wrapper_stands_around_the_forward_until_it_is_removed(double: nn.Module) -> None:
    handle = hook_forward(double, adds(10))
    assert double(ONE).item() == 12
    handle.remove()
    assert double(ONE).item() == 2
    assert "forward" not in double.__dict__


def test_the_latest_wrapper_is_the_outermost(double: nn.Module) -> None:
    order: list[float] = []
    hook_forward(double, adds(10, order))
    hook_forward(double, adds(100, order))
    assert double(ONE).item() == 112
    assert order == [100, 10]


@pytest.mark.parametrize("first", [0, 1])
def test_wrappers_come_off_in_any_order(double: nn.Module, first: int) -> None:
    handles = [hook_forward(double, adds(10)), hook_forward(double, adds(100))]
    handles[first].remove()
    assert double(ONE).item() == (102, 12)[first]
    handles[1 - first].remove()
    assert "forward" not in double.__dict__


def test_removing_twice_takes_off_nothing_else(double: nn.Module) -> None:
    handle = hook_forward(double, adds(10))
    handle.remove()
    hook_forward(double, adds(100))
    handle.remove()
    assert double(ONE).item() == 102


def test_a_forward_that_another_library_put_there_is_used_and_restored(double: nn.Module) -> None:
    def theirs(x: Tensor) -> Tensor:
        return x * 7

    double.forward = theirs
    handle = hook_forward(double, adds(10))
    assert double(ONE).item() == 17
    handle.remove()
    assert double.__dict__["forward"] is theirs
    assert double(ONE).item() == 7


def test_a_deep_copy_has_no_wrapper_and_its_own_weights(double: nn.Module) -> None:
    calls: list[float] = []
    handle = hook_forward(double, adds(10, calls))
    twin: Any = copy.deepcopy(double)
    nn.init.constant_(twin.weight, 5.0)
    assert twin(ONE).item() == 5
    assert calls == []
    assert double(ONE).item() == 12
    handle.remove()
    assert twin(ONE).item() == 5


def test_a_deep_copy_can_be_hooked_without_touching_the_original(double: nn.Module) -> None:
    hook_forward(double, adds(10))
    twin = copy.deepcopy(double)
    hook_forward(twin, adds(100))
    assert (double(ONE).item(), twin(ONE).item()) == (12, 102)


def test_backward_is_told_from_forward() -> None:
    seen: list[bool] = []
    x = torch.ones(1, requires_grad=True)
    y = x * 2
    y.register_hook(lambda gradient: seen.append(in_backward()))
    assert not in_backward()
    y.backward()
    assert seen == [True]
    assert not in_backward()


def test_another_thread_that_looks_while_a_forward_begins_sees_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    scope: Scope[str] = Scope()
    seen: list[str | None] = []
    ident = threading.get_ident

    def look_from_elsewhere() -> int:  # at the moment when the scope asks which thread this is
        with monkeypatch.context() as patch:
            patch.setattr(threading, "get_ident", ident)
            with ThreadPoolExecutor(1) as pool:
                seen.append(pool.submit(lambda: scope.record).result())
        return ident()

    monkeypatch.setattr(threading, "get_ident", look_from_elsewhere)
    with scope.run("mine"):
        monkeypatch.setattr(threading, "get_ident", ident)
        assert scope.record == "mine"
    assert seen == [None]
