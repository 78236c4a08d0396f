"""Jobs of many people, computed one after another in the order in which they asked."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple


class Waiting(NamedTuple):
    """The event of a job that is not computed yet: so many are before it."""

    ahead: int


class Job:
    """Something to compute in parts; its events are read where it was asked for."""

    def __init__(self, work: Callable[[], Iterator[Any]], loop: asyncio.AbstractEventLoop):
        self._work, self._loop = work, loop
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._cancelled = threading.Event()

    @property
    def is_behind(self) -> bool:
        """Whether there are events that have not been read."""
        return not self._events.empty()

    def cancel(self) -> None:
        """Stop before the next part; the events end."""
        self._cancelled.set()
        self._events.put_nowait(_END)

    def tell(self, event: Any) -> None:
        """Pass on an event from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Any]:
        """The events, in their order.

        Raises:
            Exception: what the work raises.
        """
        while not self._cancelled.is_set():
            event = await self._events.get()
            if event is _END or self._cancelled.is_set():
                return
            if isinstance(event, Exception):
                raise event
            yield event

    def run(self) -> None:
        """Compute the parts, in the thread of the turns."""
        if self._cancelled.is_set():
            return
        try:
            for event in self._work():
                self.tell(event)
                if self._cancelled.is_set():
                    return
        except Exception as error:
            self.tell(error)
        else:
            self.tell(_END)


class Turns:
    """A thread that computes one job at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "explaining")
        self._lock = threading.Lock()
        self._line: list[Job] = []

    def ask(self, work: Callable[[], Iterator[Any]]) -> Job:
        """Put a job at the end of the line. Call this in an event loop.

        Args:
            work: a generator function. What it yields becomes an event of the job.

        Returns:
            The job, whose first events may be of type `Waiting`.
        """
        job = Job(work, asyncio.get_running_loop())
        with self._lock:
            self._line.append(job)
        self._say_places()
        self._thread.submit(self._take, job)
        return job

    def leave(self, job: Job) -> None:
        """Cancel a job, and let the others move up."""
        job.cancel()
        with self._lock:
            if job in self._line[1:]:
                self._line.remove(job)
        self._say_places()

    def stop(self) -> None:
        """Cancel all jobs, so that the process can end after the part that is being computed."""
        with self._lock:
            for job in self._line:
                job.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self, job: Job) -> None:
        try:
            job.run()
        finally:
            with self._lock:
                if job in self._line:
                    self._line.remove(job)
            self._say_places()

    def _say_places(self) -> None:
        with self._lock:
            for ahead, job in enumerate(self._line):
                if ahead:
                    job.tell(Waiting(ahead))


_END = object()
