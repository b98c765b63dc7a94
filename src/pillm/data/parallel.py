"""A function over blocks of lines on every core, results in order, memory flat.

Workers are fresh processes ("spawn"): the command line draws with threads, and forking a process
that has threads can lock up. Starting them takes about half a second, so small inputs stay here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import TypeVar

from pillm.core.errors import ResourceError
from pillm.data.inputs import Block

T = TypeVar("T")
P = TypeVar("P")
_AHEAD = 2


def mapped(
    blocks: Iterable[Block], work: Callable[[Block, P], T], given: P, workers: int | None = None
) -> Iterator[tuple[Block, T]]:
    """`work(block, given)` for every block, in order; `work` and `given` must be picklable.

    At most two blocks for each worker are under way, so neither blocks nor results pile up.
    Raises ResourceError if a worker is killed, which is mostly for want of memory.
    """
    rest = iter(blocks)
    head = list(islice(rest, 2))
    count = workers or os.cpu_count() or 1
    if len(head) < 2 or count < 2:
        for block in chain(head, rest):
            yield block, work(block, given)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_quiet)
    waiting: deque[tuple[Block, Future[T]]] = deque()
    try:
        for block in chain(head, rest):
            waiting.append((block._replace(data=None), pool.submit(work, block, given)))
            if len(waiting) > count * _AHEAD:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    except BrokenProcessPool as error:
        raise ResourceError(
            "a worker was killed, most likely because the machine has no memory left",
            "close programs, or give --workers=1",
        ) from error
    except KeyboardInterrupt:
        # They do not see Ctrl-C themselves, and a line may keep one busy for long.
        for process in list(pool._processes.values()):  # the pool has no public way before Python 3.14
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _quiet() -> None:
    # Ctrl-C reaches the whole terminal; the parent ends the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
