"""Lines to a file, a pipe or a terminal, never waiting for it.

The event loop appends a line to a bounded buffer; a thread of this writer's own does the blocking
``write``. When the reader of a pipe stalls, the buffer fills, and what does not fit is dropped and
counted: a service must not stop because nobody reads its log.

Workers of one service often share one pipe. POSIX keeps a write to a pipe in one piece up to
``PIPE_BUF`` bytes, so the thread writes whole lines in chunks of at most that; on files (opened for
appending) and terminals, in larger ones. Lines may come in blocks of several, of at most that too.

A thread that is woken for every few lines takes turns with the event loop's all the time, which
costs more than the writing. A writer of many lines is given a time in which it gathers them.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

__all__ = ["LineWriter"]

#: Bytes waiting for the output: some ten thousand lines, a second of a busy access log.
BUFFER_BYTES: Final = 4 * 1024 * 1024

#: Bytes of one write to a file or a terminal.
_CHUNK_BYTES: Final = 65_536

#: Bytes for which no more are waited for.
_MANY_BYTES: Final = 262_144


class _Counts(Protocol):
    def inc(self, n: float = 1.0) -> None: ...


class LineWriter:
    """A non-blocking, bounded writer of lines. Safe to use from several threads.

    ``path`` is a file (created, appended to; reopened by :meth:`reopen`) and ``fd`` an open
    descriptor that stays the caller's; give one of them. The thread starts with the first line and
    is a daemon: :meth:`close` or :meth:`flush` is what makes sure of the last lines.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        fd: int | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        gather_seconds: float = 0.0,
    ) -> None:
        """``gather_seconds``: how long the first line may wait for others.

        Raises ``OSError`` when ``path`` cannot be opened.
        """
        if (path is None) == (fd is None):
            raise ValueError("give either a path or a descriptor")
        self._path: Final = path
        self._fd = fd if fd is not None else _open(str(path))
        #: Bytes of the largest block of lines that is written in one piece.
        self.block_bytes: Final = _chunk_limit(self._fd)
        self._limit: Final = buffer_bytes
        self._gather_seconds: Final = gather_seconds
        #: Lines lost so far, by reason.
        self.dropped: Final[dict[str, int]] = {"buffer_full": 0, "output_error": 0, "closed": 0}
        self._counters: dict[str, _Counts] = {}
        self._reset()
        # A fork copies the buffer but not the thread; the lines are the parent's to write.
        itself = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(itself))

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._writing = False
        self._gathering = False
        self._hurry = False
        self._closed = False
        self._reopen = False
        self._thread: threading.Thread | None = None

    def count_into(self, counters: dict[str, _Counts]) -> None:
        """Also count drops into ``counters``: reason → counter."""
        self._counters = counters

    def write(self, lines: Sequence[bytes]) -> None:
        """Take ``lines``, each with its newline, or blocks of them of at most ``block_bytes``."""
        with self._lock:
            for line in lines:
                if self._closed:
                    self._drop("closed", line.count(b"\n"))
                elif self._size + len(line) > self._limit:
                    self._drop("buffer_full", line.count(b"\n"))
                else:
                    self._lines.append(line)
                    self._size += len(line)
            if self._thread is None:
                if self._lines:
                    self._start()
            elif self._gathering:
                if self._size >= _MANY_BYTES:
                    self._wake.notify()
            elif not self._writing:
                self._wake.notify()

    def reopen(self) -> None:
        """Open the path anew, before the next line: after a log rotation. No effect on an fd.

        The writer's thread does it, at once, so that a file which was deleted is let go of although
        nothing more is written.
        """
        with self._lock:
            if self._path is None or self._closed:
                return
            self._reopen = True
            if self._thread is None:
                self._start()
            else:
                self._wake.notify()

    def flush(self, seconds: float = 1.0) -> bool:
        """Wait until everything is written, for at most ``seconds``; whether it was."""
        deadline = time.monotonic() + seconds
        with self._lock:
            self._hurry = True
            if self._gathering:
                self._wake.notify()
            while self._lines or self._writing or self._reopen:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._idle.wait(left)
        return True

    def close(self, seconds: float = 1.0) -> None:
        """Flush and stop; lines that come later, or could not be written in time, are dropped."""
        flushed = self.flush(seconds)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._lines:
                self._drop("closed", sum(line.count(b"\n") for line in self._lines))
                self._lines.clear()
                self._size = 0
            self._wake.notify()
            thread = self._thread
        if flushed and thread is not None:
            thread.join(seconds)
        if self._path is not None and (thread is None or not thread.is_alive()):
            os.close(self._fd)

    def _drop(self, reason: str, lines: int) -> None:
        self.dropped[reason] += lines
        counter = self._counters.get(reason)
        if counter is not None:
            counter.inc(lines)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="nexus-log", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        limit = self.block_bytes
        gathered = False
        while True:
            with self._lock:
                while not self._lines and not self._reopen:
                    self._writing = self._hurry = gathered = False
                    self._idle.notify_all()
                    if self._closed:
                        return
                    self._wake.wait()
                if self._gather_seconds and not gathered:
                    gathered = True
                    self._gather()
                self._writing = True
                reopen, self._reopen = self._reopen, False
                chunk = self._take(limit) if self._lines else b""
            if reopen and self._path is not None:
                self._open_anew(self._path)
            try:
                _write_all(self._fd, chunk)
            except OSError:
                with self._lock:
                    self._drop("output_error", chunk.count(b"\n"))

    def _gather(self) -> None:
        """Wait for more lines, unless there are many or somebody waits for these."""
        if self._hurry or self._reopen or self._size >= _MANY_BYTES:
            return
        self._gathering = True
        self._wake.wait(self._gather_seconds)
        self._gathering = False

    def _take(self, limit: int) -> bytes:
        """The next whole lines, together at most ``limit`` bytes unless the first is longer."""
        first = self._lines.popleft()
        size = len(first)
        parts = [first]
        while self._lines and size + len(self._lines[0]) <= limit:
            parts.append(self._lines.popleft())
            size += len(parts[-1])
        self._size -= size
        return b"".join(parts)

    def _open_anew(self, path: str) -> None:
        try:
            fresh = _open(path)
        except OSError:
            return  # the old file still takes lines; better there than nowhere
        os.close(self._fd)
        self._fd = fresh


def _forget(writer: weakref.ref[LineWriter]) -> None:
    alive = writer()
    if alive is not None:
        alive._reset()  # noqa: SLF001  (a module-level hook, so that it holds no strong reference)


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)


def _chunk_limit(fd: int) -> int:
    try:
        return select.PIPE_BUF if stat.S_ISFIFO(os.fstat(fd).st_mode) else _CHUNK_BYTES
    except OSError:
        return _CHUNK_BYTES


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            # Somebody made the shared description non-blocking (a terminal, Node.js on a pipe).
            ready = select.poll()
            ready.register(fd, select.POLLOUT)
            ready.poll(1000)
