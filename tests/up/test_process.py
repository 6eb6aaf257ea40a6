"""Children that come up together and leave nothing behind; small stand-ins for the services."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nexus.demo.process import SHOWN_LINES, ChildError, ChildSpec, NotReady, Stack

# Processes of any kind: no kernel is asked.
pytestmark = pytest.mark.once


def script(name, source, ready=None):
    argv = (sys.executable, "-u", "-c", textwrap.dedent(source))
    return ChildSpec(name, argv, ready=ready) if ready else ChildSpec(name, argv)


def said(text):
    async def ready(child):
        if text not in child.lines:
            raise NotReady(f"it has not said {text!r}")

    return ready


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that its parent (init, not us) has not collected yet runs no more.
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] != "Z"


def gone_within(pid, seconds):
    limit = time.monotonic() + seconds
    while exists(pid):
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


SLEEPER = "import time; print('here'); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('here'); time.sleep(60)"
#: Forks a worker that ignores SIGTERM, in the same process group, and says its pid.
FAMILY = """
    import os, signal, sys, time
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    print("worker", pid)
    print("here")
    time.sleep(60)
"""


@asynccontextmanager
async def stack_of(start_seconds=10.0, stop_seconds=5.0):
    lines = []
    stack = Stack(
        lambda name, line: lines.append((name, line)),
        start_seconds=start_seconds,
        stop_seconds=stop_seconds,
    )
    stack.seen = lines
    try:
        yield stack
    finally:
        stack.kill()
        await stack.stop()


async def test_start_returns_when_all_are_ready_and_stop_is_newest_first():
    async with stack_of() as stack:
        await stack.start([script("one", SLEEPER, said("here"))])
        await stack.start([script("two", SLEEPER, said("here"))])
        assert ("one", "here") in stack.seen
        assert ("two", "here") in stack.seen
        pids = [child.pid for child in stack.children]
        assert all(os.getpgid(pid) == pid for pid in pids)
        order = []
        await stack.stop(lambda child, gently: order.append((child.name, gently)))
        assert order == [("two", True), ("one", True)]
        assert not any(exists(pid) for pid in pids)


async def test_a_child_that_ignores_sigterm_is_killed_after_the_deadline():
    async with stack_of(stop_seconds=0.2) as stack:
        await stack.start([script("deaf", STUBBORN, said("here"))])
        [child] = stack.children
        order = []
        await stack.stop(lambda child, gently: order.append((child.name, gently)))
        assert order == [("deaf", False)]
        assert child.how_it_ended() == "was killed by SIGKILL"
        assert not exists(child.pid)


async def test_what_a_child_started_ends_with_it():
    async with stack_of() as stack:
        await stack.start([script("family", FAMILY, said("here"))])
        worker = int(next(line for _, line in stack.seen if line.startswith("worker")).split()[1])
        assert exists(worker)
        await stack.stop()
        assert gone_within(worker, 5)


async def test_a_child_that_dies_at_the_start_is_named_with_code_and_last_lines():
    source = f"for i in range({SHOWN_LINES + 5}): print('line', i)\nraise SystemExit(7)"
    async with stack_of() as stack:
        with pytest.raises(ChildError) as caught:
            await stack.start([script("good", SLEEPER), script("bad", source, said("never"))])
    text = str(caught.value)
    assert text.startswith("bad exited with code 7; its last lines:\n")
    assert f"line {SHOWN_LINES + 4}" in text
    assert "line 4\n" not in text


async def test_a_child_that_dies_later_ends_the_guarded_work():
    async with stack_of() as stack:
        await stack.start([script("one", SLEEPER, said("here")), script("two", SLEEPER)])
        work = asyncio.ensure_future(stack.guard(asyncio.sleep(30)))
        await asyncio.sleep(0)
        os.kill(stack.children[0].pid, signal.SIGKILL)
        with pytest.raises(ChildError, match="one was killed by SIGKILL"):
            await asyncio.wait_for(work, 5)


async def test_a_silent_death_says_so():
    async with stack_of() as stack:
        with pytest.raises(ChildError, match="mute exited with code 3; it wrote nothing"):
            await stack.start([script("mute", "raise SystemExit(3)", said("never"))])


async def test_a_child_that_never_becomes_healthy_gives_the_last_reason():
    async with stack_of(start_seconds=0.3) as stack:
        with pytest.raises(
            ChildError, match=r"slow was not healthy within 0\.3 s: it has not said 'never'"
        ):
            await stack.start([script("slow", SLEEPER, said("never"))])


async def test_a_program_that_does_not_exist_is_named():
    async with stack_of() as stack:
        with pytest.raises(ChildError, match="ghost cannot be started: /no/such/program: No such"):
            await stack.start([ChildSpec("ghost", ("/no/such/program",))])


async def test_lines_are_whole_whatever_the_chunks():
    source = """
        import sys, time
        out = sys.stdout.buffer
        for part in (b"ab", b"c\\nd", b"\\xff", b"\\n" + b"x" * 70000 + b"\\n", b"rest"):
            out.write(part); out.flush(); time.sleep(0.02)
        raise SystemExit(1)
    """
    async with stack_of() as stack:
        with pytest.raises(ChildError):
            await stack.start([script("chunks", source, said("never"))])
        lines = [line for _, line in stack.seen]
    assert lines[0] == "abc"
    assert lines[1] == "d\ufffd"
    assert "".join(lines[2:-1]) == "x" * 70000
    assert lines[-1] == "rest"


async def test_children_hear_of_our_death():
    """A parent that is killed outright (no handler runs) must not leave children behind."""
    parent = """
        import asyncio, sys
        from nexus.demo.process import ChildSpec, Stack

        async def main():
            stack = Stack(lambda name, line: None, start_seconds=10, stop_seconds=5)
            argv = (sys.executable, "-c", "import time; time.sleep(60)")
            await stack.start([ChildSpec("c", argv)])
            print(stack.children[0].pid, flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(parent), stdout=asyncio.subprocess.PIPE
    )
    try:
        pid = int(await asyncio.wait_for(process.stdout.readline(), 20))
        assert exists(pid)
    finally:
        process.kill()
        await process.wait()
    assert gone_within(pid, 5)
