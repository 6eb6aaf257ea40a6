"""The HTTP/1.1 kernel of the running backend; documented in ``nexus.wire.http1``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus._speedups._http1_py import ChunkedDecoder, RequestHead, ResponseHead, chunk
else:
    from nexus._speedups._http1_c import ChunkedDecoder, RequestHead, ResponseHead, chunk

__all__ = ["ChunkedDecoder", "RequestHead", "ResponseHead", "chunk"]
