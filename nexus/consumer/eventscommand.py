"""``nexus events tail|replay|dlq``: look into the topics, and send again what is to be done again.

A replay is written to the topic of the record, with its origin in the headers (see
:mod:`nexus.consumer.replay`): what had its effect does not have it again. Without ``--go`` nothing
is written, only told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from nexus import clock
from nexus.consumer.deadletters import Record
from nexus.consumer.handlers import traceparent_of
from nexus.consumer.replay import replay_headers
from nexus.consumer.settings import ConsumerSettings
from nexus.consumer.state import Origin
from nexus.errors import ConfigError
from nexus.net.kafka import (
    CONNECTION_ERRORS,
    check_settings,
    client_options,
    connect_failure,
    quiet_client_logs,
    stop_quietly,
)
from nexus.net.settings import KafkaSettings
from nexus.settings import load
from nexus.wire.actions import ACTIONS
from nexus.wire.events import TOPICS, dead_letter_topic

__all__ = ["main"]

_DEAD: Final = tuple(dead_letter_topic(topic) for topic in TOPICS)

#: Longest wait for the broker, seconds, before the command gives up.
_START_SECONDS: Final = 15.0
_STOP_SECONDS: Final = 1.0


def main(argv: Sequence[str]) -> int:
    """Exit code 0; 1 where Kafka cannot be reached; 2 for a wrong command line."""
    arguments = _parser().parse_args(argv)
    quiet_client_logs()
    try:
        arguments.kafka = _kafka(arguments)
        code: int = asyncio.run(arguments.run(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        # Its reader has seen enough (``… | head``). What is still buffered must not be written when
        # the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (ConfigError, _WrongWordsError) as error:
        print(f"nexus events: {error}", file=sys.stderr)
        return 2
    except CONNECTION_ERRORS as error:
        why = connect_failure(error)
        where = arguments.kafka.bootstrap_servers
        print(f"nexus events: Kafka at {where} does not answer: {why}", file=sys.stderr)
        return 1
    return code


class _WrongWordsError(Exception):
    """The command line names what is not there; one line."""


def _kafka(arguments: argparse.Namespace) -> KafkaSettings:
    """Where Kafka is and who we are there: as the consumer, from file, environment and flag."""
    flags = {"kafka.bootstrap_servers": arguments.kafka}
    settings = load(ConsumerSettings, service="consumer", file=arguments.config, flags=flags)
    check_settings(settings.kafka)
    return settings.kafka


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nexus events", description="Reads and replays the gateway's events."
    )
    parser.add_argument(
        "--kafka",
        default=os.environ.get("NEXUS_KAFKA"),
        metavar="HOST:PORT",
        help="brokers, comma-separated (default: NEXUS_KAFKA, else those of the consumer)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings of the consumer, whose Kafka it is (also NEXUS_CONSUMER_KAFKA__…)",
    )
    commands = parser.add_subparsers(required=True, metavar="tail|replay|dlq")

    tail = commands.add_parser("tail", help="print events as JSON lines")
    tail.add_argument("topics", nargs="*", metavar="TOPIC", help="default: all, actions too")
    tail.add_argument("--begin", action="store_true", help="from the beginning, not from now on")
    tail.add_argument("--end", action="store_true", help="stop at what is there now")
    _add_filters(tail)
    tail.set_defaults(run=_tail)

    replay = commands.add_parser("replay", help="send a range of a partition again")
    replay.add_argument("topic", choices=TOPICS, metavar="TOPIC", help=", ".join(TOPICS))
    replay.add_argument("--partition", type=_natural, required=True)
    replay.add_argument("--first", type=_natural, required=True, help="first offset")
    replay.add_argument("--last", type=_natural, required=True, help="last offset, included")
    _add_filters(replay)
    _add_go(replay)
    replay.set_defaults(run=_replay)

    dlq = commands.add_parser("dlq", help="print the dead letters, or send them again")
    dlq.add_argument("topics", nargs="*", metavar="TOPIC", help="of the events; default: all")
    dlq.add_argument("--replay", action="store_true", help="send them to their topics again")
    _add_filters(dlq)
    _add_go(dlq)
    dlq.set_defaults(run=_dlq)
    return parser


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trace", type=_trace_id, metavar="ID", help="only events of this trace id"
    )
    parser.add_argument("--correlation", metavar="ID", help="only events of this correlation id")


def _add_go(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--go", action="store_true", help="do it; without it nothing is written")


def _trace_id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
        raise argparse.ArgumentTypeError(f"expected 32 hexadecimal digits, got {text!r}")
    return text.lower()


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected a number from 0, got {text!r}")
    return int(text)


# -- commands --------------------------------------------------------------------------------------


async def _tail(arguments: argparse.Namespace) -> int:
    topics = arguments.topics or [*TOPICS, ACTIONS]
    required = bool(arguments.topics)
    wanted = _filter(arguments)
    async for record in _read(
        arguments.kafka, topics, arguments.begin, arguments.end, required=required
    ):
        if wanted(record):
            print(json.dumps(_shown(record)), flush=True)
    return 0


async def _replay(arguments: argparse.Namespace) -> int:
    if arguments.first > arguments.last:
        raise _WrongWordsError("replay: --first is behind --last")
    wanted = _filter(arguments)
    found: list[tuple[Record, Origin]] = []
    bounds = {TopicPartition(arguments.topic, arguments.partition): arguments.first}
    async for record in _read(arguments.kafka, [arguments.topic], True, True, bounds):
        if record.offset > arguments.last:
            break
        if wanted(record):
            found.append((record, Origin(record.topic, record.partition, record.offset, False)))
    return await _send_again(arguments, found)


async def _dlq(arguments: argparse.Namespace) -> int:
    topics = [dead_letter_topic(topic) for topic in arguments.topics] or list(_DEAD)
    unknown = set(arguments.topics) - set(TOPICS)
    if unknown:
        raise _WrongWordsError(
            f"dlq: no topic of events: {', '.join(sorted(unknown))}; they are {', '.join(TOPICS)}"
        )
    wanted = _filter(arguments)
    found: list[tuple[Record, Origin]] = []
    async for record in _read(arguments.kafka, topics, True, True):
        if not wanted(record):
            continue
        origin = _origin_of_dead(record)
        if not arguments.replay:
            print(json.dumps(_shown(record)), flush=True)
        elif origin is None or record.value is None:
            where = f"{record.topic}/{record.partition}/{record.offset}"
            print(f"nexus events dlq: {where} cannot be replayed, left out", file=sys.stderr)
        else:
            found.append((record, origin))
    return await _send_again(arguments, found) if arguments.replay else 0


async def _send_again(arguments: argparse.Namespace, found: Sequence[tuple[Record, Origin]]) -> int:
    if not arguments.go:
        for record, _ in found:
            print(json.dumps(_shown(record)))
        print(f"dry run: {len(found)} events would be sent again; --go does it", file=sys.stderr)
        return 0
    producer = AIOKafkaProducer(
        **client_options(arguments.kafka, "nexus-events"),
        acks="all",
        enable_idempotence=True,
    )
    await _started(producer)
    try:
        for record, origin in found:
            await producer.send_and_wait(
                origin.topic,
                record.value,
                key=record.key,
                headers=replay_headers(record.headers, origin),
            )
    finally:
        await stop_quietly(producer, _STOP_SECONDS)
    print(f"{len(found)} events sent again")
    return 0


# -- records ---------------------------------------------------------------------------------------


async def _started(client: Any) -> None:
    try:
        async with asyncio.timeout(_START_SECONDS):
            await client.start()
    except BaseException:
        await stop_quietly(client, _STOP_SECONDS)
        raise


async def _read(
    kafka: KafkaSettings,
    topics: Sequence[str],
    begin: bool,
    end: bool,
    bounds: Mapping[TopicPartition, int] | None = None,
    required: bool = False,
) -> AsyncIterator[Record]:
    """Records of ``topics``; of the partitions of ``bounds`` only, from there, where given.

    Raises where a partition of ``bounds`` is not there or, with ``required``, a topic.
    """
    consumer: Any = AIOKafkaConsumer(
        **client_options(kafka, "nexus-events"),
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await _started(consumer)
    try:
        partitions = await _partitions(consumer, topics)
        missing = set(topics) - {tp.topic for tp in partitions}
        if missing and (required or bounds):
            raise _WrongWordsError(f"no such topic there: {', '.join(sorted(missing))}")
        if bounds:
            absent = [tp for tp in bounds if tp not in partitions]
            if absent:
                raise _WrongWordsError(
                    f"{absent[0].topic} has partitions 0 to {len(partitions) - 1}, "
                    f"not {absent[0].partition}"
                )
            partitions = list(bounds)
        if not partitions:
            return
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        starts = dict(bounds) if bounds else await consumer.beginning_offsets(partitions)
        for tp in bounds or ():
            if starts[tp] >= ends[tp]:
                raise _WrongWordsError(f"{tp.topic}/{tp.partition} ends before offset {ends[tp]}")
        for tp in partitions:
            consumer.seek(tp, starts[tp] if begin else ends[tp])
        while not end or [tp for tp in partitions if await consumer.position(tp) < ends[tp]]:
            for tp, records in (await consumer.getmany(timeout_ms=250)).items():
                for record in records:
                    if not end or record.offset < ends[tp]:
                        yield record
    finally:
        # aiokafka's own stop may wait for ever: its fetcher can swallow the first cancellation.
        await stop_quietly(consumer, _STOP_SECONDS)


async def _partitions(consumer: Any, topics: Sequence[str]) -> list[TopicPartition]:
    """All partitions of those of ``topics`` that there are; none is made by asking for it."""
    known = set(topics) & await consumer.topics()
    if not known:
        return []
    consumer.subscribe(topics=sorted(known))
    async with asyncio.timeout(_START_SECONDS):
        # Without a group the client assigns everything to itself once it knows the partitions.
        while not (found := consumer.assignment()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    consumer.unsubscribe()
    return sorted(found)


def _filter(arguments: argparse.Namespace) -> Callable[[Record], bool]:
    trace = (arguments.trace or "").encode()
    correlation = (arguments.correlation or "").encode()

    def wanted(record: Record) -> bool:
        if trace and traceparent_of(record.headers)[3:35] != trace:
            return False
        return not correlation or record.key == correlation

    return wanted


def _origin_of_dead(record: Record) -> Origin | None:
    named = dict(record.headers)
    try:
        return Origin(
            named["nexus_dlq_topic"].decode(),
            int(named["nexus_dlq_partition"]),
            int(named["nexus_dlq_offset"]),
            True,
        )
    except (KeyError, ValueError):
        return None


def _shown(record: Record) -> dict[str, Any]:
    value: Any = None
    if record.value is not None:
        text = record.value.decode("utf-8", "backslashreplace")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
    stamp = getattr(record, "timestamp", None)
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": clock.iso_utc(stamp) if stamp is not None and stamp >= 0 else None,
        "key": None if record.key is None else record.key.decode("utf-8", "backslashreplace"),
        "headers": {n: v.decode("utf-8", "backslashreplace") for n, v in record.headers},
        "value": value,
    }
