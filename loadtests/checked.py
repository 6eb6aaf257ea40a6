"""Ties objectives to a locust run: a table at its end, and its exit code."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

from locust import events
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtests.objectives import Objective, misses, report

__all__ = ["check_at_the_end"]

log = logging.getLogger("loadtests")


def measures_of(user: type[Any]) -> tuple[str, ...]:
    """Names of the requests that a kind of user makes."""
    return tuple(user.measures)


def check_at_the_end(objectives: Sequence[Objective]) -> None:
    """Check ``objectives`` when locust quits: exit code 1 where one was missed, else 0.

    A user class that was not asked for on the command line is not held to its objectives.
    """

    @events.init_command_line_parser.add_listener
    def _add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--latency-slack",
            type=float,
            default=1.0,
            help="latency objectives are multiplied by this, for machines slower than a laptop",
        )

    @events.quitting.add_listener
    def _check(environment: Environment, **_: object) -> None:
        if isinstance(environment.runner, WorkerRunner):
            return  # only the master sees all of it
        running = {name for user in environment.user_classes for name in measures_of(user)}
        wanted = [objective for objective in objectives if objective.name in running]
        measured = {name: entry for (name, _), entry in environment.stats.entries.items()}
        assert environment.parsed_options is not None
        slack = environment.parsed_options.latency_slack
        print(f"\n{report(wanted, measured, slack=slack)}")
        missed = misses(wanted, measured, slack=slack)
        for sentence in missed:
            print(f"missed: {sentence}")
        environment.process_exit_code = 1 if missed else 0
