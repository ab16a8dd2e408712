"""Who gets an answer by HTTP, and what it looks like."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from attention_transfer.errors import UserError
from attention_transfer.explorer.server import Server, bound, is_loopback
from attention_transfer.explorer.session import Explorer, Session

OWN = "http://127.0.0.1:8765"
ASKING = {"X-Attention-Transfer": "1"}


def browser(server: Server, base: str = OWN) -> TestClient:
    return TestClient(server.app, base_url=base, follow_redirects=False)


@pytest.fixture
def server(explorer: Explorer) -> Server:
    return Server(explorer, 8765)


@pytest.fixture
def opened(server: Server) -> Iterator[TestClient]:
    """A browser that has opened the page."""
    with browser(server) as client:
        assert client.get("/").status_code == 200
        client.headers.update(ASKING)
        yield client


def unframed(response: Any) -> tuple[dict[str, Any], list[bytes]]:
    assert (response.status_code, response.headers["content-type"]) == (200, "application/octet-stream")
    length = int.from_bytes(response.content[:4], "little")
    meta, at, buffers = json.loads(response.content[4 : 4 + length]), 4 + length, []
    for size in meta.pop("buffers"):
        buffers.append(response.content[at : at + size])
        at += size
    assert at == len(response.content)
    return meta, buffers


def test_the_page_is_strict_about_what_it_loads(server: Server) -> None:
    response = browser(server).get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' blob: data:;")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert not re.findall(r'(?:src|href)="https?:', response.text)
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert cookie.startswith("attention_transfer_8765=")


def test_requests_are_answered_as_the_session_answers_them(opened: TestClient, explorer: Explorer) -> None:
    arguments = {"network": "1", "image": "2", "layer": 1, "query": 3}
    meta, buffers = unframed(opened.post("/api/rows", json=arguments))
    expected = Session(explorer).answer("rows", arguments)
    assert (meta, tuple(buffers)) == (expected.meta, expected.buffers)
    assert np.frombuffer(buffers[0], "<f4").reshape(meta["heads"], meta["tokens"]).sum(axis=1) == pytest.approx(1)
    assert unframed(opened.post("/api/state"))[0]["upload"] is True


def test_mistakes_are_a_sentence_with_status_400(opened: TestClient) -> None:
    response = opened.post("/api/rows", json={"network": "1", "image": "2", "layer": 9, "query": 3})
    assert (response.status_code, response.json()) == (
        400,
        {"error": "network 1 has no layer 9; choose from 0 to 2"},
    )
    for body in (b"{", b"[]", b'{"a":' * 5000, b"\xff"):
        response = opened.post("/api/rows", content=body)
        assert (response.status_code, "no JSON" in response.json()["error"]) == (400, True)
    assert opened.post("/api/rows", content=b" " * 70_000).status_code == 413
    assert opened.post("/api/..%2fetc").status_code in (400, 404)
    assert opened.get("/api/state").status_code == 405


def test_a_request_without_the_pages_header_is_refused(opened: TestClient) -> None:
    del opened.headers["x-attention-transfer"]
    assert opened.post("/api/state").status_code == 403
    assert opened.post("/api/upload", content=b"x").status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_request_of_another_page_is_refused(opened: TestClient, headers: dict[str, str]) -> None:
    assert opened.post("/api/state", headers=headers).status_code == 403
    own = {"Origin": OWN, "Sec-Fetch-Site": "same-origin"}
    assert opened.post("/api/state", headers=own).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1:1", "127.0.0.1.evil.example:8765", ""]
)
def test_another_name_for_this_machine_is_refused(opened: TestClient, host: str) -> None:
    for method, path in (("GET", "/"), ("GET", "/page.js"), ("POST", "/api/state")):
        assert opened.request(method, path, headers={"Host": host}).status_code == 403
    assert opened.get("/", headers={"Host": "localhost:8765"}).status_code == 200


def test_without_the_page_there_is_no_session(server: Server) -> None:
    response = browser(server).post("/api/state", headers=ASKING)
    assert (response.status_code, response.json()["error"]) == (403, "this session has ended; reload the page")


def test_two_sessions_do_not_see_each_others_uploads(server: Server, opened: TestClient) -> None:
    file = BytesIO()
    Image.new("RGB", (9, 7), "red").save(file, format="PNG")
    meta, _ = unframed(opened.post("/api/upload?name=my%20cat.png", content=file.getvalue()))
    assert (meta["name"], meta["width"], meta["height"]) == ("my cat.png", 9, 7)
    with browser(server) as other:
        other.get("/")
        images = unframed(other.post("/api/state", headers=ASKING))[0]["images"]
        assert [image["id"] for image in images] == ["0", "1", "2"]
        response = other.post("/api/image", json={"image": meta["id"]}, headers=ASKING)
        assert (response.status_code, "there is no image" in response.json()["error"]) == (400, True)
    opened.get("/")  # reloaded
    assert unframed(opened.post("/api/image", json={"image": meta["id"]}))[0]["width"] == 9


def test_an_upload_beyond_the_limit_is_not_read_to_its_end(opened: TestClient) -> None:
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield bytes(1_000_000)

    assert opened.post("/api/upload", content=body()).status_code == 413
    response = opened.post("/api/upload", content=b"no image")
    assert (response.status_code, "is not an image" in response.json()["error"]) == (400, True)


def test_sessions_that_nobody_uses_end_when_there_are_many(server: Server, opened: TestClient) -> None:
    idle = browser(server)
    idle.get("/")
    for _ in range(64):
        assert opened.post("/api/state").status_code == 200
        browser(server).get("/")
    assert opened.post("/api/state").status_code == 200
    assert idle.post("/api/state", headers=ASKING).status_code == 403


@pytest.mark.parametrize("dest", ["image", "iframe", "empty", "script"])
def test_another_page_can_not_begin_sessions(opened: TestClient, dest: str) -> None:
    response = opened.get("/", headers={"Sec-Fetch-Dest": dest})
    assert (response.status_code, "set-cookie" in response.headers) == (403, False)
    assert opened.get("/", headers={"Sec-Fetch-Dest": "document"}).status_code == 200


def test_another_address_needs_the_token(explorer: Explorer) -> None:
    server = Server(explorer, 8765, token="right")
    base = "http://192.0.2.1:8765"
    for address in ("/", "/?token=wrong", "/?token=", "/?token=r%C3%AFght"):
        response = browser(server, base).get(address)
        assert (response.status_code, "set-cookie" in response.headers) == (403, False)
    with browser(server, base) as client:
        response = client.get("/?token=right")
        assert (response.status_code, response.headers["location"]) == (303, "./")
        assert client.get("/").status_code == 200
        assert client.post("/api/state", headers=ASKING).status_code == 200


def test_which_addresses_are_this_machine_alone() -> None:
    assert [host for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost") if not is_loopback(host)] == []
    assert [host for host in ("0.0.0.0", "192.0.2.1", "::", "example.org", "") if is_loopback(host)] == []


def test_a_port_in_use_gives_way_to_the_next() -> None:
    taken, port = bound("127.0.0.1", 8765)
    with taken:
        listening, found = bound("127.0.0.1", port)
        with listening:
            assert found > port
            assert listening.getsockname() == ("127.0.0.1", found)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UserError, match=r"choose another with --port|is no address"):
        bound("192.0.2.1", 8765)


def test_an_error_of_the_service_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Session, "answer", broken)
    client = TestClient(server.app, base_url=OWN, raise_server_exceptions=False)
    client.get("/")
    response = client.post("/api/state", headers=ASKING)
    assert (response.status_code, response.json()) == (
        500,
        {"error": "this is a bug of attention-transfer (RuntimeError)"},
    )


def test_a_long_answer_ends_when_the_browser_goes(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn

    ended = threading.Event()

    def slow(_self: Session, _name: str, _arguments: object, cancelled: threading.Event) -> None:
        if cancelled.wait(20):
            ended.set()
        raise UserError("over")

    listening, port = bound("127.0.0.1", 18_765)
    running = uvicorn.Server(uvicorn.Config(Server(explorer, port).app, log_level="error"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            client.get("/")
            monkeypatch.setattr(Session, "answer", slow)
            with pytest.raises(httpx.ReadTimeout):
                client.post("/api/heads", headers=ASKING, timeout=0.5)
        assert ended.wait(10)
    finally:
        running.should_exit = True
        thread.join(20)
        listening.close()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_the_command_serves_until_ctrl_c(tmp_path: Path, pictures: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["explore", "builtin/vit_characters", str(pictures), "--port", str(port)]
        process = subprocess.Popen(
            [sys.executable, "-m", "attention_transfer", *words], stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        try:
            assert process.stderr is not None
            said = ""
            for line in process.stderr:
                said += line
                if "Ctrl-C" in line:
                    break
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", said)
            assert found, said
            assert f"port {port} is in use; taking {found[1]}" in said
            with httpx.Client(base_url=f"http://127.0.0.1:{found[1]}", timeout=60) as client:
                client.get("/")
                meta, _ = unframed(client.post("/api/place", json={"network": "0", "image": "0"}, headers=ASKING))
                assert (meta["rows"], meta["columns"], len(meta["prediction"])) == (6, 6, 5)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
            assert (process.wait(20), "explore has ended" in rest, "Traceback" in rest) == (0, True, False)
            assert time.monotonic() - began < 15
        finally:
            process.kill()
            process.wait()
