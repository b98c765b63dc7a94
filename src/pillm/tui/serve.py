"""`pillm ui --serve`: the UI in a browser of this machine, through textual-serve."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from textual_serve.server import Server

from pillm.core.errors import UsageError

LOOPBACK = "127.0.0.1"
_QUERY = "token"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def new_token() -> str:
    """A secret that nobody else on this machine can guess."""
    return secrets.token_urlsafe(32)


def address(port: int, token: str) -> str:
    """What to open: the token in it lets the browser in."""
    return f"http://{LOOPBACK}:{port}/?{_QUERY}={token}"


def guard(port: int, token: str) -> Any:
    """Answer only who has the token, and only pages that came from here.

    The address with the token leaves a cookie, and leads to the page without it: an address is shown and remembered.
    Other users of this machine reach loopback, too, but they do not know the token.

    What the UI can do, its user can do. A page of another site can reach loopback from the user's own browser, with a
    WebSocket or under a name that resolves to it; it cannot choose the headers that say where it came from.
    """
    hosts = {f"{LOOPBACK}:{port}", f"localhost:{port}"}
    origins = {f"http://{host}" for host in hosts}
    cookie = f"pillm-{port}"  # cookies know no ports

    def fits(given: str | None) -> bool:
        return given is not None and secrets.compare_digest(given.encode("utf-8", "replace"), token.encode())

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if request.headers.get("Host") not in hosts or (origin is not None and origin not in origins):
            raise web.HTTPForbidden(text="only for pages of this server")
        if request.path == "/" and fits(request.query.get(_QUERY)):
            found = web.HTTPFound("/")
            found.set_cookie(cookie, token, httponly=True, samesite="Strict")
            raise found
        if not fits(request.cookies.get(cookie)):
            raise web.HTTPForbidden(text="open the whole address that pillm ui --serve printed")
        return await handler(request)

    return middleware


class LoopbackServer(Server):
    """textual-serve's server behind the guard."""

    def __init__(self, command: str, port: int, token: str) -> None:
        super().__init__(command, host=LOOPBACK, port=port, title="pillm")
        self._token = token

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(guard(self.port, self._token))
        return app


def serve(command: Sequence[str], port: int, token: str) -> None:
    """Serve a command on loopback until Ctrl-C. Raises UsageError if the port is taken."""
    try:
        LoopbackServer(shlex.join(command), port, token).serve()
    except OSError as error:
        raise UsageError(
            f"port {port} cannot be used ({error.strerror or error})", "choose another with --port"
        ) from error
