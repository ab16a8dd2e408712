"""A browser, and a server of the explorer's protocol without networks: numbers that a test can compute again."""

from __future__ import annotations

import io
import json
import shutil
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

PAGE = b"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>explore</title><link rel="icon" href="data:,"></head>
<body><main data-explore="live"></main><script type="module" src="page.js"></script></body></html>"""
POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' blob: data:; base-uri 'none'"

Reply = tuple[dict[str, Any], list[bytes]]


def network(name: str, *, prefix: list[str], classes: list[str] | None, epochs: list[int] | None) -> dict[str, Any]:
    return {
        "id": name,
        "name": f"{name} network",
        "layers": 4,
        "heads": 3,
        "prefix": prefix,
        "query": 0 if "class" in prefix else "mean",
        "classes": classes,
        "epochs": epochs,
    }


def image(name: str, size: tuple[int, int], label: str | None) -> dict[str, Any]:
    return {"id": name, "name": f"{name}.png", "width": size[0], "height": size[1], "label": label}


class Pretended:
    """The answers. Grids differ: `a` sees the whole of an image, `b` a square in its middle, `c` has no class token."""

    def __init__(self) -> None:
        self.networks = {
            "a": network("a", prefix=["class", "register 1"], classes=["cat", "dog"], epochs=None),
            "b": network("b", prefix=["class"], classes=["cat", "dog"], epochs=[0, 5, 10]),
            "c": network("c", prefix=[], classes=None, epochs=None),
        }
        self.images = {
            name: image(name, size, label)
            for name, size, label in [("x", (120, 80), "cat"), ("y", (80, 80), "dog"), ("z", (60, 90), None)]
        }
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def state(self) -> Reply:
        networks, images = [*self.networks.values()], [*self.images.values()]
        return {"networks": networks, "images": images, "upload": True, "causal": True, "version": "0"}, []

    def image(self, image: str, side: int | None = None) -> Reply:
        known = self.images[image]
        size = (known["width"], known["height"])
        y, x = np.mgrid[: size[1], : size[0]]
        pixels = np.stack([x * 255 // size[0], y * 255 // size[1], 128 + 0 * x], axis=-1).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return {"type": "image/png", "width": size[0], "height": size[1]}, [file.getvalue()]

    def place(self, network: str, image: str) -> Reply:
        width, height = self.images[image]["width"], self.images[image]["height"]
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        square = [left, top, left + side, top + side]
        rows, columns, box = {"a": (4, 6, [0, 0, width, height]), "b": (5, 5, square)}.get(
            network, (4, 6, [0, 0, width, height])
        )
        prediction = None if network == "c" else [["cat", 0.75], ["dog", 0.25]]
        prefix = len(self.networks[network]["prefix"])
        return {
            "rows": rows,
            "columns": columns,
            "box": box,
            "prefix": prefix,
            "prediction": prediction,
            "loss": None,
        }, []

    def values(
        self, network: str, image: str, layer: int | str, query: int | str, epoch: int | None = None
    ) -> NDArray[np.float32]:
        """Rows of attention, (heads, tokens)."""
        place, _ = self.place(network, image)
        tokens = place["prefix"] + place["rows"] * place["columns"]
        if isinstance(query, int):
            assert 0 <= query < tokens
        seed = zlib.crc32(json.dumps([network, image, layer, query, epoch]).encode())
        values = np.random.default_rng(seed).exponential(size=(1 if layer == "rollout" else 3, tokens)) ** 2
        rows: NDArray[np.float32] = (values / values.sum(axis=-1, keepdims=True)).astype(np.float32)
        return rows

    def rows(self, **asked: Any) -> Reply:
        values = self.values(**asked)
        return {"heads": len(values), "tokens": values.shape[1]}, [values.tobytes()]

    def mass(self, network: str, image: str, layer: int, epoch: int | None = None) -> Reply:
        first = len(self.networks[network]["prefix"])
        return {"heads": 3, "sinks": [[first + 7, 0.3]], "prefix": [0.1] * first}, []

    def causal(self, student: str, teacher: str, image: str, layer: int | str, head: int | None) -> Reply:
        if "c" in {student, teacher}:
            raise ValueError("c network has other heads than the student.")
        moved = 0.05 if head is not None else 0.1 if layer != "all" else 0.2
        return {
            "before": [["cat", 0.75], ["dog", 0.25]],
            "after": [["dog", 0.25 + moved], ["cat", 0.75 - moved]],
            "change": {"prediction": moved, "layers": [0.0, moved / 4, moved / 2, moved]},
        }, []

    def heads(self, student: str, teacher: str, image: str) -> Reply:
        table = [{"layer": layer, "head": head, "change": layer + head / 10} for layer in range(4) for head in range(3)]
        return {"heads": table[::-1]}, []

    def box(self, network: str, images: list[str], layer: int | None, box: list[float]) -> Reply:
        return {"heads": [{"layer": 2, "head": 1, "share": 0.5}, {"layer": 0, "head": 0, "share": 0.125}]}, []

    def drift(self, a: str, b: str) -> Reply:
        found = [("z", 0.5, [None, None]), ("y", 0.25, [False, True]), ("x", 0.125, [True, True])]
        return {"images": [{"image": i, "drift": d, "right": r} for i, d, r in found], "of": 3}, []

    def epochs(self, network: str) -> Reply:
        if self.networks[network]["epochs"] is None:
            return {"epochs": None, "accuracy": None, "drift": None, "kept": None}, []
        return {"epochs": [0, 5, 10], "accuracy": [0.2, 0.6, 0.8], "drift": [0.0, 0.1, 0.3]}, []

    def upload(self, name: str, data: bytes) -> Reply:
        try:
            size = Image.open(io.BytesIO(data)).size
        except OSError as error:
            raise ValueError(f"{name} is no image that can be read.") from error
        new = image(f"up{len(self.images)}", size, None)
        self.images[new["id"]] = {**new, "name": name}
        return self.images[new["id"]], []

    def answer(self, name: str, arguments: Mapping[str, Any]) -> Reply:
        self.asked.append((name, dict(arguments)))
        reply: Reply = getattr(self, name)(**arguments)
        return reply


@contextmanager
def serving(pretended: Pretended) -> Iterator[str]:
    """The page and its answers on a free port; the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/page.js":
                self._send(
                    200, "text/javascript", files("attention_transfer.explorer").joinpath("page.js").read_bytes()
                )
            else:
                self._send(200, "text/html", PAGE)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["X-Attention-Transfer"] == "1"
            name, _, text = self.path.removeprefix("/api/").partition("?name=")
            try:
                meta, buffers = pretended.upload(text, body) if text else pretended.answer(name, json.loads(body))
            except ValueError as error:
                self._send(400, "application/json", json.dumps({"error": str(error)}).encode())
                return
            head = json.dumps({**meta, "buffers": [len(b) for b in buffers]}).encode()
            framed = struct.pack("<I", len(head)) + head + b"".join(buffers)
            self._send(200, "application/octet-stream", framed)

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", POLICY)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, once a module."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium here to open the page with")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def pretended() -> Pretended:
    """Answers that a test can compute again."""
    return Pretended()


@pytest.fixture
def address(pretended: Pretended, page: Page) -> Iterator[str]:
    """Where the page is served with these answers."""
    with serving(pretended) as found:
        yield found
        page.goto("about:blank")  # so that nothing is under way when the server goes


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails the test where it logs an error or asks anything of another server."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    opened = context.new_page()
    wrong: list[str] = []
    refusal = "status of 400"  # the browser logs what the server refuses; the page tells it
    opened.on("console", lambda m: wrong.append(m.text) if m.type == "error" and refusal not in m.text else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    own = ("http://127.0.0.1:", "data:", "blob:", "file:")
    opened.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
    opened.set_default_timeout(20_000)
    yield opened
    context.close()
    assert wrong == []
