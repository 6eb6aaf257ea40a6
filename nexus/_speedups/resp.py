"""The RESP codec that runs in this process; documented in :mod:`nexus.wire.resp`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus._speedups._resp_py import ReplyDecoder, RequestDecoder, split_inline
    from nexus._speedups._respencode_py import encode_command, encode_reply
else:
    from nexus._speedups._resp_c import ReplyDecoder, RequestDecoder, split_inline
    from nexus._speedups._respencode_c import encode_command, encode_reply

__all__ = ["ReplyDecoder", "RequestDecoder", "encode_command", "encode_reply", "split_inline"]
