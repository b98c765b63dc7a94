"""What every client of a model server needs: its address and key checked, bodies bounded, pauses and words read."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import time

import httpx

from pillm.core.errors import UsageError
from pillm.core.events import Emit, Log

LONGEST_WAIT = 300.0
"""Seconds; a server that asks for a longer pause ends the run instead."""

LARGEST_BODY = 2**24
"""Bytes; no answer is as long, so a server that does not come to an end is not read into memory."""


BUSY = {408, 409, 425, 429}
"""Statuses that say "later", besides those from 500 on (RFC 9110; 425: RFC 8470; 429: RFC 6585)."""


class Garbled(Exception):
    """A body that is not what was asked for."""


class Refused(Exception):
    """An HTTP status that is no success; `wait` is how many seconds the server asks to be left alone."""

    def __init__(self, message: str, status: int, wait: float | None) -> None:
        super().__init__(message)
        self.status, self.wait = status, wait


class Patience:
    """When a server may be asked, known to all requests in flight: one that is told to wait makes all wait."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._not_before = 0.0

    async def turn(self) -> None:
        """Wait until the server wants to be asked."""
        while (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    def again(self, error: Exception) -> bool | float:
        """Whether to try again after an error, as stamina asks; a number is how many seconds the server asks for."""
        if not isinstance(error, Refused):
            return isinstance(error, Garbled | TimeoutError | httpx.TransportError)
        # 501: the server never will.
        if error.status not in BUSY and (error.status < 500 or error.status == 501):
            return False
        if error.wait is None:
            return True
        if error.wait > LONGEST_WAIT:
            return False
        self._not_before = max(self._not_before, time.monotonic() + error.wait)
        self._emit(Log(f"the server is busy ({error.status}) and asks for {error.wait:.0f} s", "info"))
        return error.wait


def check_url(url: str) -> str:
    """The base address without a slash at its end. Raises UsageError if it cannot be one, or holds a secret."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"the teacher's address is not a URL ({error})", "write it as http://host:port/v1") from None
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise UsageError(
            f"the teacher's address on {parsed.host} holds a name, a password or a query",
            "a key belongs in an environment variable; name it with --api-key-env",
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{url}: not the address of a server", "write it as http://host:port/v1")
    return url.rstrip("/")


def check_key(key: str, place: str) -> str:
    """The key, trimmed. Raises UsageError (without showing it) if it cannot be sent in a header."""
    key = key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError(f"the key in ${place} has characters that no key has", f"set ${place} again")
    return key


async def body_of(response: httpx.Response) -> bytes:
    """The body of a response that is streamed. Raises Garbled if it is longer than LARGEST_BODY."""
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > LARGEST_BODY:
            raise Garbled(f"a body of more than {LARGEST_BODY >> 20} MiB")
    return bytes(data)


def clean(text: str, key: str) -> str:
    """A server's words without our key, which some servers repeat."""
    return text.replace(key, "***") if key else text


def pause(response: httpx.Response) -> float | None:
    """Seconds that Retry-After asks for: a number, or a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=datetime.UTC)
    return max(0.0, (until - datetime.datetime.now(datetime.UTC)).total_seconds())
