"""The page in a browser: the session's requests over HTTP, for this machine alone unless it is asked otherwise.

What keeps others out:

- The server listens on the loopback address. On another it needs a token, which is in the address that is printed.
- Only requests to its own name are answered (`Host`), so that a page elsewhere whose name is bound to this machine's
  address (DNS rebinding) gets nothing.
- A request that does anything is a POST with a header of its own and from the page itself (`Origin`), which a form or a
  script of another page can't send.
- A session is a cookie that scripts can't read and other sites don't send; uploads belong to one session.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import secrets
import socket
import threading
from collections import OrderedDict
from collections.abc import Mapping

from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from attention_transfer.errors import UserError
from attention_transfer.explorer.album import UPLOAD_BYTES
from attention_transfer.explorer.answers import Answer
from attention_transfer.explorer.causal import Cancelled
from attention_transfer.explorer.front_end import page_script
from attention_transfer.explorer.session import Explorer, Session

HEADER = "X-Attention-Transfer"
TRIES = 100  # ports after one that is in use

_SESSIONS = 64
_POLL = 0.2  # seconds between looks whether the browser is still there
_ASKED_BYTES = 1 << 16  # of a request that is no upload
_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>attention-transfer explore</title>
<link rel="icon" href="data:,">
</head>
<body>
<main data-explore="live"></main>
<script type="module" src="page.js"></script>
</body>
</html>
"""


class Refused(Exception):
    """Why a request gets no answer, and the status that it gets."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Server:
    """Answers a browser.

    Args:
        explorer: what there is to look at.
        port: on which it listens.
        token: what a browser must know to begin a session; `None` on the loopback address.
    """

    def __init__(self, explorer: Explorer, port: int, token: str | None = None) -> None:
        self._explorer, self._token = explorer, token
        names = ("127.0.0.1", "localhost", "[::1]")
        self._hosts = {f"{name}:{port}" for name in names} | (set(names) if port == 80 else set())
        self._cookie = f"attention_transfer_{port}"  # browsers send one cookie to all ports of a machine
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._running: set[threading.Event] = set()
        self.app = Starlette(
            routes=[
                Route("/", self._page, methods=["GET"]),
                Route("/page.js", self._script, methods=["GET"]),
                Route("/api/{name}", self._api, methods=["POST"]),
            ],
            exception_handlers={Refused: _refused, UserError: _refused, Exception: _failed},
        )

    def cancel(self) -> None:
        """Let long answers end, because nobody waits for them."""
        for event in self._running:
            event.set()

    async def _page(self, request: Request) -> Response:
        self._check_host(request)
        if request.headers.get("sec-fetch-dest", "document") != "document":  # as a picture or a frame of another page
            raise Refused(403, "the page is opened by itself alone")
        known = request.cookies.get(self._cookie) in self._sessions
        if known or self._token is None:
            response: Response = Response(_PAGE, media_type="text/html", headers=_HEADERS)
        elif secrets.compare_digest(request.query_params.get("token", "").encode(), self._token.encode()):
            response = RedirectResponse("./", status_code=303, headers=_HEADERS)  # the token stays in no address
        else:
            raise Refused(403, "open the address that explore printed; it ends in a token")
        if not known:
            response.set_cookie(self._cookie, self._begun(), httponly=True, samesite="strict", path="/")
        return response

    async def _script(self, request: Request) -> Response:
        self._check_host(request)
        return Response(page_script(), media_type="text/javascript", headers=_HEADERS)

    async def _api(self, request: Request) -> Response:
        self._check_host(request)
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
        own = origin in (None, f"{request.url.scheme}://{request.headers['host']}") and site == "same-origin"
        if request.headers.get(HEADER) != "1" or not own:
            raise Refused(403, "only the page itself may ask")
        id = request.cookies.get(self._cookie, "")
        session = self._sessions.get(id)
        if session is None:
            raise Refused(403, "this session has ended; reload the page")
        self._sessions.move_to_end(id)
        name = request.path_params["name"]
        if name == "upload":
            data = await _body(request, UPLOAD_BYTES)
            answer = await to_thread.run_sync(session.upload, request.query_params.get("name", "image"), data)
        else:
            answer = await self._answered(request, session, name, _arguments(await _body(request, _ASKED_BYTES)))
        return Response(answer.framed(), media_type="application/octet-stream", headers=_HEADERS)

    async def _answered(self, request: Request, session: Session, name: str, arguments: Mapping[str, object]) -> Answer:
        """An answer, which is given up once the browser has gone."""
        cancelled = threading.Event()
        self._running.add(cancelled)
        waiting = asyncio.create_task(_gone(request, cancelled))
        try:
            return await to_thread.run_sync(session.answer, name, arguments, cancelled)
        except Cancelled as error:
            raise Refused(499, "nobody waits for this answer") from error
        finally:
            waiting.cancel()
            self._running.discard(cancelled)

    def _check_host(self, request: Request) -> None:
        """Refuse requests to another name than this machine's; where a token is needed, that says more."""
        if self._token is None and request.headers.get("host", "") not in self._hosts:
            raise Refused(403, "this server answers on its own address alone")

    def _begun(self) -> str:
        """A new session; beyond a number of them, the one that was used least recently ends."""
        id = secrets.token_urlsafe(32)
        self._sessions[id] = Session(self._explorer)
        if len(self._sessions) > _SESSIONS:
            self._sessions.popitem(last=False)[1].close()
        return id


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, as seen from itself alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bound(host: str, port: int) -> tuple[socket.socket, int]:
    """A listening socket on a port, or on the next free one.

    Raises:
        UserError: the address is not one of this machine, or no port is free.
    """
    reason: OSError | None = None
    for candidate in range(port, min(port + TRIES, 65_536)):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, candidate, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listening = socket.socket(family, kind, protocol)
        except OSError as error:
            raise UserError(f"{host} is no address that can be listened on ({error.strerror})") from error
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()
        except OSError as error:
            listening.close()
            reason = error
            if error.errno == errno.EADDRINUSE:
                continue
            break
        return listening, int(listening.getsockname()[1])
    raise UserError(f"no port from {port} on {host} can be listened on ({reason}); choose another with --port")


async def _gone(request: Request, cancelled: threading.Event) -> None:
    """Say once the browser has closed the connection."""
    while not await request.is_disconnected():
        await asyncio.sleep(_POLL)
    cancelled.set()


async def _body(request: Request, most: int) -> bytes:
    """The body of a request, of which no more than a number of bytes is read."""
    parts, total = [], 0
    async for part in request.stream():
        parts.append(part)
        total += len(part)
        if total > most:
            raise Refused(413, f"more than {most / 1e6:g} MB were sent; send less")
    return b"".join(parts)


def _arguments(body: bytes) -> dict[str, object]:
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise UserError("the arguments are no JSON") from error
    if not isinstance(found, dict):
        raise UserError("the arguments are no JSON object")
    return found


async def _refused(_request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, Refused) else 400
    return JSONResponse({"error": str(error)}, status_code=status, headers=_HEADERS)


async def _failed(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"this is a bug of attention-transfer ({type(error).__name__})"}, 500, _HEADERS)
