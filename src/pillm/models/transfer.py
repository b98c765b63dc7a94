"""Bytes from a hub into a file: resumed, retried within bounds, counted.

`huggingface_hub` 2.4 brings the session, the headers and the errors, but not the transfer itself:
its own downloads go to a file with a random name that is deleted on failure, so a run that is
killed starts again at zero; it gives up on a connection that is reset within a file; and it waits
as long as a server's Retry-After says. Files in Xet storage come through the same links.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status, parse_ratelimit_headers

from pillm.core.events import Emit, Log, Metric, Progress

RETRIES = 5
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 8.0
LONGEST_ORDERED_PAUSE = 60.0
"""Seconds. A server that asks for more than this (Retry-After) is taken at its word: we stop and say so."""

_STEP = 64 * 1024
"""Bytes that an attempt must bring to count as one that got somewhere: a server that drips is given up on too."""

_TOLD_EVERY = 0.25
_RATED_EVERY = 1.0

T = TypeVar("T")


class Tally:
    """Counts bytes of several files towards one total and tells of them, with their rate."""

    def __init__(self, label: str, total: int, emit: Emit) -> None:
        self.label, self.total, self.emit = label, total, emit
        self.done = self.received = 0
        self.started = self._told = self._rated = time.monotonic()
        self._received_when_rated = 0

    def already(self, count: int) -> None:
        """`count` bytes lie on disk from an earlier run (negative: they turned out to be useless)."""
        self.done += count
        self.emit(Progress(self.label, self.done, self.total, "B"))

    def add(self, count: int) -> None:
        """`count` bytes came in."""
        self.done += count
        self.received += count
        now = time.monotonic()
        if now - self._told >= _TOLD_EVERY or self.done >= self.total:
            self._told = now
            self.emit(Progress(self.label, self.done, self.total, "B"))
        if now - self._rated >= _RATED_EVERY:
            rate = (self.received - self._received_when_rated) / (now - self._rated)
            self._rated, self._received_when_rated = now, self.received
            self.emit(Metric("download", rate, unit="B/s"))

    def summary(self) -> str:
        """How much came in, in what time, at which rate."""
        seconds = max(time.monotonic() - self.started, 1e-3)
        return f"{self.received / 1e6:,.1f} MB in {seconds:.1f} s ({self.received / 1e6 / seconds:,.1f} MB/s)"


def patiently(
    attempt: Callable[[], T],
    emit: Emit,
    what: str,
    *,
    advanced: Callable[[], int] = lambda: 0,
    connect_retries: int = RETRIES,
) -> T:
    """The result of `attempt`, tried again while its failure may pass: 408, 429, 5xx, cut connections, time-outs.

    `advanced()` is the number of bytes that came in so far: an attempt that brought a good part of them got
    somewhere, so the count of failures starts anew.
    `connect_retries` bounds the tries to reach the host at all. Raises the last failure.
    """
    failures, reached = 0, advanced()
    while True:
        try:
            return attempt()
        except (httpx2.TransportError, HfHubHTTPError) as error:
            position = advanced()
            failures = 1 if position - reached >= _STEP else failures + 1
            reached = position
            most = connect_retries if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout) else RETRIES
            pause = _pause(error, failures)
            if pause is None or failures > most:
                raise
            emit(Log(f"{what}: {_reason(error)}; trying again in {pause:.0f} s ({failures} of {most})", "warning"))
            time.sleep(pause)


def ordered_pause(error: HfHubHTTPError) -> float | None:
    """Seconds that the server asks us to wait (Retry-After, or the rate limit's reset), if it says."""
    headers = error.response.headers
    limit = parse_ratelimit_headers(headers)
    if error.response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = headers.get("Retry-After", "").strip()
    return float(value) if value.isdigit() else None


def append(url: str, partial: Path, size: int, headers: dict[str, str], tally: Tally) -> None:
    """Get what `partial` still lacks of the `size` bytes at `url`. One attempt; what arrives is kept.

    Raises httpx2.TransportError or HfHubHTTPError; OSError if the disk refuses.
    """
    have = partial.stat().st_size if partial.exists() else 0
    if have == size:
        return
    headers = {**headers, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code == 416:
            # The server's file ends before ours: what we have is not its beginning.
            tally.already(-have)
            partial.unlink()
            raise httpx2.RemoteProtocolError("the server does not know this range")
        hf_raise_for_status(response)
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and not resumed:
            tally.already(-have)
            have = 0
        with partial.open("ab" if resumed else "wb") as file:
            for block in response.iter_bytes():
                have += len(block)
                if have > size:
                    break
                file.write(block)
                tally.add(len(block))
    if have != size:
        if have > size:
            tally.already(-partial.stat().st_size)
            partial.unlink()
        raise httpx2.RemoteProtocolError(f"{have} bytes came instead of {size}")


def _pause(error: Exception, failures: int) -> float | None:
    """Seconds to wait before the next try, or None if trying again is no use."""
    pause = min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
    if not isinstance(error, HfHubHTTPError):
        lasting = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, httpx2.ProxyError)
        return None if isinstance(error, lasting) or is_certificate(error) else pause
    status = error.response.status_code
    if status not in (408, 429) and status < 500:
        return None
    ordered = ordered_pause(error)
    if ordered is None:
        return pause
    return max(ordered, FIRST_PAUSE) if ordered <= LONGEST_ORDERED_PAUSE else None


def is_certificate(error: Exception) -> bool:
    """Whether a connection failed because the other side's certificate is not trusted."""
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def _reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return "too many requests" if status == 429 else f"the server has a problem ({status})"
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return "the host cannot be reached"
    return "no answer in time" if isinstance(error, httpx2.TimeoutException) else "the connection was cut"
