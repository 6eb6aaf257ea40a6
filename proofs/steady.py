"""Memory stays as it is, however many requests there were: ``python -m proofs.steady``.

wrk asks a gateway that records everything (access log, spans to nowhere, metrics, telemetry, rate
limit) in ten equal spells; after the first, by which caches have filled, resident memory may not
grow any more.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from proofs.gatewayrig import gateway, origin
from proofs.report import RESULTS, Result, save
from proofs.rig import RigError

__all__ = ["prove"]

_GROWTH_KIB: Final = 2048
_SPELLS: Final = 10

#: As clients do: paths that differ, few programs.
_SCRIPT: Final = """
local n = 0
request = function()
  n = n + 1
  return wrk.format("GET", "/api/?id=" .. n)
end
"""


def _ask(port: int, requests: int, directory: Path) -> int:
    """At least so many requests; how many were not answered 200."""
    script = directory / "paths.lua"
    script.write_text(_SCRIPT)
    failed = 0
    while requests > 0:
        command = [
            "wrk",
            "-t1",
            "-c64",
            f"-d{1 if requests < 10_000 else 5}s",
            "-s",
            str(script),
            f"http://127.0.0.1:{port}/",
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        done = re.search(r"(\d+) requests in", run.stdout)
        if done is None or int(done[1]) == 0:
            raise RigError(f"wrk made no request:\n{run.stdout}{run.stderr}")
        requests -= int(done[1])
        for pattern in (r"Non-2xx or 3xx responses: (\d+)", r"read (\d+)", r"timeout (\d+)"):
            found = re.search(pattern, run.stdout)
            failed += int(found[1]) if found else 0
    return failed


def prove(requests: int, spells: int = _SPELLS) -> Result:
    """Run it and judge."""
    on = {"enabled": True}
    recording = {
        "access_log": on | {"path": "/dev/null"},
        "tracing": on | {"otlp_endpoint": "http://127.0.0.1:9"},
        "rate_limit": on | {"capacity": 1_000_000, "refill_per_second": 1_000_000},
        "log": {"level": "error"},
    }
    memory: list[int] = []
    failed = 0
    started = time.monotonic()
    with origin() as a, origin() as b, gateway(a, b, **recording) as running:
        for _ in range(spells):
            failed += _ask(running.port, requests // spells, running.log.parent)
            time.sleep(0.5)
            memory.append(running.memory_kib())
    growth = memory[-1] - memory[0]
    return Result(
        proof="steady",
        passed=growth <= _GROWTH_KIB and failed == 0,
        summary=f"{requests} requests; from a tenth of them to the last, memory grew by "
        f"{growth} KiB (at most {_GROWTH_KIB}); {failed} failed",
        numbers={
            "requests": requests,
            "memory_kib": memory,
            "failed": failed,
            "seconds": round(time.monotonic() - started, 1),
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000_000)
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the record")
    arguments = parser.parse_args()
    return save(prove(arguments.requests), arguments.results)


if __name__ == "__main__":
    sys.exit(main())
