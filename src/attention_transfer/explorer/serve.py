"""Run the server until somebody stops it."""

from __future__ import annotations

import logging
import secrets
import socket
import webbrowser

import uvicorn

from attention_transfer.explorer.server import Server, bound, is_loopback
from attention_transfer.explorer.session import Explorer
from attention_transfer.ui import show_line

log = logging.getLogger("attention_transfer")

_GRACE = 2  # seconds that answers have to end


def serve(explorer: Explorer, *, host: str, port: int, browser: bool) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        explorer: what there is to look at.
        host: the address to listen on; any but loopback needs a token, which is printed with the address.
        port: the port, or the first of those that are tried.
        browser: open the page in a browser.

    Raises:
        UserError: nothing can be listened on.
    """
    listening, found = bound(host, port)
    if port and found != port:
        show_line(f"port {port} is in use; taking {found}")
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    named = socket.gethostname() if host in ("0.0.0.0", "::") else host  # which stand for all of its addresses
    shown = f"[{named}]" if ":" in named else named
    address = f"http://{shown}:{found}/" + ("" if token is None else f"?token={token}")
    server = Server(explorer, found, token)
    running = _Running(uvicorn.Config(server.app, log_level="warning", timeout_graceful_shutdown=_GRACE), server)
    show_line(f"explore: {address}  (Ctrl-C ends it)")
    if token is not None:
        show_line("whoever has this address sees the networks and images; it is not encrypted")
    if browser and not webbrowser.open(address):
        show_line("no browser could be opened; open the address yourself")
    try:
        running.run(sockets=[listening])
    except KeyboardInterrupt:  # which uvicorn raises again after it has ended
        log.debug("stopped")
    finally:
        listening.close()
    show_line("explore has ended")


class _Running(uvicorn.Server):
    """Lets long answers end before connections are waited for."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._server.cancel()
        await super().shutdown(sockets)
