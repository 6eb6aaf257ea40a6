"""The fixtures themselves: what later tests stand on."""

from __future__ import annotations

import redis


def test_redis_is_real(redis_server):
    with redis.Redis(host=redis_server.host, port=redis_server.port) as client:
        assert client.ping()
        assert client.info("server")["redis_version"]
