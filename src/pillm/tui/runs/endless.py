"""Work that goes on as long as a screen is there, in a thread of its own.

Textual's thread workers share a handful of threads; one that never ends keeps its thread from all others.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable

from textual.message_pump import MessagePump

from pillm.tui.runs.lines import Stop

End = Callable[[], None]


def endless(owner: MessagePump, work: Callable[[Stop], object]) -> End:
    """Do `work` beside `owner` until what is returned is called. A fault in it is one of `owner`, as in a worker."""
    ended = threading.Event()

    def whole() -> None:
        try:
            work(ended.is_set)
        except Exception as error:  # whatever it is, the screen's own thread has to hear of it
            if not ended.is_set():
                owner.call_later(_again, error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(whole,), daemon=True, name=type(owner).__name__).start()
    return ended.set


def _again(error: Exception) -> None:
    raise error
