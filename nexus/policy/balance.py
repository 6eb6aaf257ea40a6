"""Balancing algorithms, of the running backend; see ``_balance_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.policy._balance_py import ALGORITHMS, Balancer, Server, make_balancer
else:
    from nexus.policy._balance_c import ALGORITHMS, Balancer, Server, make_balancer

__all__ = ["ALGORITHMS", "Balancer", "Server", "make_balancer"]
