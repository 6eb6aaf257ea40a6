"""Services forked from a process that has imported them already.

The suite starts hundreds of services, and most of what a start costs is imports. So of each service
and backend one process of this module, an origin, imports it, and forks whenever one is asked for;
from there on it does what ``python -m nexus.gateway`` does after its imports: the same ``main``, a
process with signals, environment and streams of its own. ``NEXUS_TEST_FRESH=1`` starts each by
itself, and what is tested about the start itself (``tests/up``, ``tests/packaging``, commands)
always does.

Services of one origin hash strings alike, which those of a user do not. Where several must agree,
give one of them a ``PYTHONHASHSEED`` of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Service", "start_service"]

ROOT = Path(__file__).resolve().parents[2]
#: Bytes of a request: arguments and environment.
_REQUEST = 1 << 20
#: Variables that imports depend on begin so; of each set of their values there is an origin.
_IMPORTS_DEPEND = (
    *("NEXUS_NO_EXTENSIONS", "NEXUS_REQUIRE_EXTENSIONS", "OTEL_PYTHON", "PYTHON"),
    *("SSL_", "OPENSSL_", "LD_", "MALLOC_", "GLIBC_", "LC_", "LANG", "TZ"),
)


def start_service(
    module: str,
    arguments: Sequence[str],
    env: Mapping[str, str],
    stdout: int | None = None,
    stderr: int | None = None,
) -> Service:
    """``python -m MODULE ARGUMENTS``."""
    if os.environ.get("NEXUS_TEST_FRESH"):
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(command, env=env, stdout=stdout, stderr=stderr)
    streams = (1 if stdout is None else stdout, 2 if stderr is None else stderr)
    return Forked(_origin(module, env), arguments, env, streams)


class Forked:
    """A service of an origin, with what tests use of :class:`subprocess.Popen`."""

    def __init__(
        self,
        origin: _Origin,
        arguments: Sequence[str],
        env: Mapping[str, str],
        streams: tuple[int, int],
    ) -> None:
        self.returncode: int | None = None
        self._origin = origin
        self.pid = origin.fork(arguments, env, streams)
        # Its own number until it is waited for, so nobody else's is signalled.
        try:
            self._descriptor = os.pidfd_open(self.pid)
        except OSError:
            os.kill(self.pid, signal.SIGKILL)
            raise

    def poll(self) -> int | None:
        """Its exit code (minus the signal's number), or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; raises :class:`subprocess.TimeoutExpired`."""
        if self.returncode is not None:
            return self.returncode
        poller = select.poll()  # select() refuses descriptors above 1023
        poller.register(self._descriptor, select.POLLIN)
        if not poller.poll(None if timeout is None else max(0.0, timeout) * 1000):
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        self.returncode = self._origin.status(self.pid)
        os.close(self._descriptor)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing happens where it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._descriptor, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


#: What is started, either way.
Service = Forked | subprocess.Popen[bytes]


class _Origin:
    """The process that has imported a service; ends with this one."""

    def __init__(self, module: str, env: Mapping[str, str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST)
        self._name = f"the process that forks {module}"
        self.usable = True
        path = os.pathsep.join([str(ROOT / "tests"), env.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, module, str(theirs.fileno())],
            cwd=ROOT,
            env={**env, "PYTHONPATH": path.rstrip(os.pathsep)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._one_at_a_time = threading.Lock()
        atexit.register(self._end)

    def fork(
        self, arguments: Sequence[str], env: Mapping[str, str], streams: tuple[int, int]
    ) -> int:
        """Process id of a new one."""
        request = {"arguments": list(arguments), "environ": dict(env), "directory": str(Path.cwd())}
        return self._ask(request, streams)

    def status(self, pid: int) -> int:
        """Exit code of one that has ended."""
        return os.waitstatus_to_exitcode(self._ask({"ended": pid}))

    def _ask(self, request: Mapping[str, Any], descriptors: Sequence[int] = ()) -> int:
        with self._one_at_a_time:
            if not self.usable:
                raise RuntimeError("the process that this service was forked from has ended")
            # Whatever interrupts it leaves an answer that the next request must not take.
            self.usable = False
            try:
                socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)
                answer = self._control.recv(64)
            except OSError as error:
                raise RuntimeError(f"{self._name}: {error}") from error
            if not answer:
                raise RuntimeError(f"{self._name} ended: what it wrote says why")
            self.usable = True
        return int(answer)

    def _end(self) -> None:
        self._control.close()
        self._process.wait()


_origins: dict[Hashable, _Origin] = {}
_asking = threading.Lock()


def _origin(module: str, env: Mapping[str, str]) -> _Origin:
    depends = sorted((name, env[name]) for name in env if name.startswith(_IMPORTS_DEPEND))
    key = (module, tuple(depends))
    with _asking:
        if key not in _origins or not _origins[key].usable:
            _origins[key] = _Origin(module, env)
        return _origins[key]


def _next(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """In the process that imports: None at its end; in one that is to serve: what was asked for."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _REQUEST, 2)
        if not message:
            return None
        request = json.loads(message)
        if "ended" in request:
            _, status = os.waitpid(request["ended"], 0)
            control.send(str(status).encode())
            continue
        pid = os.fork()
        if pid == 0:
            return request, descriptors
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(str(pid).encode())


def _serve(module: str, descriptor: int) -> None:
    importlib.import_module(f"{module}.app")
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as control:
        asked = _next(control)
    if asked is None:
        return
    request, descriptors = asked
    signal.signal(signal.SIGINT, interrupted)
    for number, stream in enumerate(descriptors, 1):
        os.dup2(stream, number)
    for stream in descriptors:
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["directory"])
    sys.argv = [module, *request["arguments"]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
