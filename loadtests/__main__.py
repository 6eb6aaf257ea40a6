"""All load tests, one after the other: ``make load``.

::

    python -m loadtests [SCENARIO…] [locust's options]

Starts the whole system (``nexus up``) on free ports, with this directory's policy, and ends it.
With ``NEXUS_LOAD_GATEWAY`` or ``NEXUS_LOAD_CACHEPROXY`` set, it starts nothing and loads what runs
there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT
from typing import Final

from bench.processes import free_ports

SCENARIOS: Final = ("gateway", "cacheproxy", "stampede")
_HERE: Final = Path(__file__).resolve().parent
_TARGETS: Final = ("NEXUS_LOAD_GATEWAY", "NEXUS_LOAD_CACHEPROXY")
#: Ports of ``nexus up``, by the names of its flags.
_PORTS: Final = (
    "gateway",
    "gateway-admin",
    "upstream-a",
    "upstream-b",
    "consumer-admin",
    "redis",
    "cacheproxy",
    "cacheproxy-admin",
)
#: What ``nexus up`` says when all of it is up, and asked.
_UP: Final = "Ctrl-C stops everything"
#: Seconds until the system is up, and until it has ended.
_PATIENCE: Final = 180.0


class NotUpError(Exception):
    """The system did not start; its log is in the message."""


@contextmanager
def system() -> Iterator[Mapping[str, str]]:
    """``nexus up``; yields the environment for its users. Raises :class:`NotUpError`."""
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    environ = {**os.environ, "NEXUS_CLIENT_SECRET": secrets.token_hex(16)}
    with tempfile.TemporaryDirectory() as name:
        state, log = Path(name, "state"), Path(name, "up.log")
        command = [sys.executable, "-m", "nexus", "up", f"--state-dir={state}"]
        command += [f"--{part}-port={port}" for part, port in ports.items()]
        with log.open("wb") as output:
            up = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                process_group=0,  # a terminal's Ctrl-C is for us, who then stop it in order
            )
        try:
            _wait(up, log)
            shutil.copyfile(_HERE / "policy.yaml", state / "run" / "policy.yaml")
            yield {
                **environ,
                "NEXUS_LOAD_GATEWAY": f"http://127.0.0.1:{ports['gateway']}",
                "NEXUS_LOAD_CACHEPROXY": f"redis://127.0.0.1:{ports['cacheproxy']}",
            }
        finally:
            up.send_signal(SIGINT)
            try:
                up.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                up.kill()
                up.wait()


def _wait(up: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + _PATIENCE
    while _UP not in log.read_text(errors="replace"):
        if up.poll() is not None or time.monotonic() > limit:
            raise NotUpError(log.read_text(errors="replace")[-2000:])
        time.sleep(0.2)


def run(scenarios: Sequence[str], options: Sequence[str], environ: Mapping[str, str]) -> int:
    """Locust, once for each; 1 where an objective was missed."""
    status = 0
    for scenario in scenarios:
        print(f"\nload: {scenario}", flush=True)
        command = [sys.executable, "-m", "locust", "-f", f"loadtests/{scenario}.py"]
        command += ["--config", f"loadtests/{scenario}.conf", *options]
        status |= subprocess.run(command, env=environ, cwd=_HERE.parent, check=False).returncode
    return 1 if status else 0


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, 1 an objective was missed, 2 the system did not start."""
    scenarios = [argument for argument in arguments if argument in SCENARIOS] or SCENARIOS
    options = [argument for argument in arguments if argument not in SCENARIOS]
    if any(os.environ.get(name) for name in _TARGETS):
        return run(scenarios, options, os.environ)
    try:
        with system() as environ:
            return run(scenarios, options, environ)
    except KeyboardInterrupt:
        return 130
    except NotUpError as error:
        print(f"load: nexus up did not start:\n{error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
