"""`pillm ui --serve`: the UI in a browser of this machine, through textual-serve."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from textual_serve.server import Server

from pillm.core.errors import UsageError

LOOPBACK = "127.0.0.1"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guard(port: int) -> Any:
    """Answer only pages that came from here.

    What the UI can do, its user can do. A page of another site can reach loopback from the user's own browser, with a
    WebSocket or under a name that resolves to it; it cannot choose the headers that say where it came from.
    """
    hosts = {f"{LOOPBACK}:{port}", f"localhost:{port}"}
    origins = {f"http://{host}" for host in hosts}

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if request.headers.get("Host") not in hosts or (origin is not None and origin not in origins):
            raise web.HTTPForbidden(text="only for pages of this server")
        return await handler(request)

    return middleware


class LoopbackServer(Server):
    """textual-serve's server behind the guard."""

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(guard(self.port))
        return app


def serve(command: Sequence[str], port: int) -> None:
    """Serve a command on loopback until Ctrl-C. Raises UsageError if the port is taken."""
    try:
        LoopbackServer(shlex.join(command), host=LOOPBACK, port=port, title="pillm").serve()
    except OSError as error:
        raise UsageError(
            f"port {port} cannot be used ({error.strerror or error})", "choose another with --port"
        ) from error
