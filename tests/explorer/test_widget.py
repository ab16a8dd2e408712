"""The messages of a notebook's widget."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

import attention_transfer as at
from attention_transfer.errors import UserError
from attention_transfer.explorer import opening, widget
from attention_transfer.explorer.session import Explorer, Session
from attention_transfer.explorer.widget import ExplorerWidget


class Told:
    """A widget's front end: it sends messages, and keeps what comes back."""

    def __init__(self, explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(widget, "page_script", lambda: "export default {}")
        self.widget = ExplorerWidget(explorer)
        self.replies: list[tuple[Any, Any]] = []
        monkeypatch.setattr(self.widget, "send", lambda content, buffers=None: self.replies.append((content, buffers)))

    def ask(self, message: dict[str, Any], *buffers: bytes) -> tuple[Any, Any]:
        self.widget._handle_custom_msg(message, [memoryview(buffer) for buffer in buffers])
        self.widget._pool.shutdown(wait=True)
        self.widget._pool = ThreadPoolExecutor(1)
        return self.replies.pop()


@pytest.fixture
def told(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(explorer, monkeypatch)


def test_messages_are_answered_as_the_session_answers_them(told: Told, explorer: Explorer) -> None:
    arguments = {"network": "0", "image": "1", "layer": 2, "query": 1}
    content, buffers = told.ask({"id": 7, "name": "rows", "arguments": arguments})
    expected = Session(explorer).answer("rows", arguments)
    assert (content, tuple(buffers)) == ({"id": 7, "meta": expected.meta}, expected.buffers)
    assert told.widget._esm == "export default {}"


def test_mistakes_and_faults_come_back_as_a_sentence(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    content, _ = told.ask({"id": "a", "name": "image", "arguments": {"image": "9"}})
    assert content == {"id": "a", "error": "there is no image '9'; reload the page for those that there are"}
    content, _ = told.ask({"id": 1})
    assert "there is no request" in content["error"]

    def broken(*_: object) -> None:
        raise RuntimeError("why")

    monkeypatch.setattr(Session, "answer", broken)
    content, _ = told.ask({"id": 2, "name": "state", "arguments": {}})
    assert content == {"id": 2, "error": "this is a bug of attention-transfer (RuntimeError: why)"}


def test_uploads_are_buffers(told: Told) -> None:
    file = BytesIO()
    Image.new("RGB", (9, 7)).save(file, format="PNG")
    content, _ = told.ask({"id": 1, "name": "upload", "arguments": {"name": "cat.png"}}, file.getvalue())
    assert (content["meta"]["name"], content["meta"]["width"]) == ("cat.png", 9)
    content, _ = told.ask({"id": 2, "name": "upload", "arguments": {"name": "x"}}, b"no image")
    assert "is not an image" in content["error"]


def test_a_closed_widget_answers_no_more(told: Told) -> None:
    told.widget.close()
    with pytest.raises(RuntimeError):
        told.widget._pool.submit(Future)
    assert told.widget._closed.is_set()


def test_explore_gives_a_widget_in_a_notebook_alone(monkeypatch: pytest.MonkeyPatch, teacher: str) -> None:
    given: Any = {"data": "digits", "limit": 2}
    with pytest.raises(UserError, match="view is notebook, but this runs in none"):
        at.explore([teacher], view="notebook", **given)
    monkeypatch.setattr(opening, "in_notebook", lambda: True)
    monkeypatch.setattr(widget, "page_script", lambda: "export default {}")
    found = at.explore([teacher], **given)
    assert isinstance(found, ExplorerWidget)
    served = []
    monkeypatch.setattr("attention_transfer.explorer.serve.serve", lambda explorer, **where: served.append(where))
    assert at.explore([teacher], view="page", **given) is None
    assert served == [{"host": "127.0.0.1", "port": 8765, "browser": False}]
