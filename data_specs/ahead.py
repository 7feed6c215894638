"""Work ahead: what reads many files or batches does so in threads while earlier ones are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_threads(calls: Iterable[Callable[[], T]], threads: int, ahead: int) -> Generator[T, None, None]:
    """Yield what calls return, in order, each made in a thread at most `ahead` before its use; closed, drop others."""
    waiting = deque[Future[T]]()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for call in calls:
                waiting.append(pool.submit(call))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
