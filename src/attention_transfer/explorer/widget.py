"""The page below a notebook's cell, by the protocol of anywidget: Jupyter, VS Code, Colab and others."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import anywidget

from attention_transfer.errors import UserError
from attention_transfer.explorer.answers import Answer
from attention_transfer.explorer.causal import Cancelled
from attention_transfer.explorer.front_end import page_script
from attention_transfer.explorer.session import Explorer, Session

_THREADS = 4


class ExplorerWidget(anywidget.AnyWidget):
    """Networks and images to look at, below a cell.

    A message is `{id, name, arguments}`, with the bytes of an upload in its buffer; the answer is `{id, meta}` with its
    buffers, or `{id, error}`.

    Args:
        explorer: what there is to look at.
    """

    def __init__(self, explorer: Explorer) -> None:
        self._esm = page_script()
        self._session = Session(explorer)
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="explore")
        super().__init__()
        self.on_msg(self._take)

    def close(self) -> None:
        """End what runs, and forget the uploads."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._session.close()
        super().close()

    def _take(self, _widget: object, message: Mapping[str, object], buffers: Sequence[memoryview]) -> None:
        """Answer in another thread, so that the kernel stays free."""
        self._pool.submit(self._reply, message, [bytes(buffer) for buffer in buffers])

    def _reply(self, message: Mapping[str, object], buffers: Sequence[bytes]) -> None:
        id = message.get("id")
        try:
            answer = self._answer(str(message.get("name")), message.get("arguments"), buffers)
        except Cancelled:
            return
        except UserError as error:
            self.send({"id": id, "error": str(error)})
        except Exception as error:  # noqa: BLE001 - the page says it; a future would keep it to itself
            self.send({"id": id, "error": f"this is a bug of attention-transfer ({type(error).__name__}: {error})"})
        else:
            self.send({"id": id, "meta": answer.meta}, buffers=list(answer.buffers))

    def _answer(self, name: str, arguments: object, buffers: Sequence[bytes]) -> Answer:
        given = arguments if isinstance(arguments, dict) else {}
        if name == "upload":
            return self._session.upload(str(given.get("name", "image")), b"".join(buffers))
        return self._session.answer(name, given, self._closed)
