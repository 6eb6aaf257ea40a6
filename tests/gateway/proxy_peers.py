"""nginx and HAProxy, configured as near to the gateway as they come, for comparison."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gateway_process import Client
from support.servers import free_port

#: proxy_ignore_client_abort: a test ends its stream by FIN, which must not cancel what it asked.
_NGINX = """\
worker_processes 1; daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log info;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{port};
    location /api/ {{
      proxy_pass http://up/; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_ignore_client_abort on; proxy_next_upstream off;
    }}
    location /health {{ return 200 "ok"; }}
    location / {{ return 404; }}
  }}
}}
"""

_HAPROXY = """\
global
  nbthread 1
defaults
  mode http
  timeout connect 1s
  timeout client 3s
  timeout server 3s
  retries 0
frontend web
  bind 127.0.0.1:{port}
  http-request return status 200 if {{ path /health }}
  http-request return status 404 unless {{ path_beg /api/ }}
  http-request replace-path /api(/.*) \\1
  default_backend up
backend up
  http-reuse safe
  server a 127.0.0.1:{upstream}
"""

NAMES = ("nginx", "haproxy")


def executable(name: str) -> str | None:
    """Where the proxy is, also in the directories that a user's PATH leaves out."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def version(name: str) -> tuple[int, int]:
    """Major and minor."""
    path = executable(name)
    assert path is not None
    done = subprocess.run([path, "-v"], capture_output=True, text=True, check=True)
    found = re.search(r"(\d+)\.(\d+)\.", done.stdout + done.stderr)
    assert found is not None
    return int(found[1]), int(found[2])


@contextlib.contextmanager
def running(name: str, upstream: int) -> Iterator[int]:
    """The proxy in front of a port of 127.0.0.1; gives its own port, ends it by its process id."""
    path = executable(name)
    assert path is not None
    with tempfile.TemporaryDirectory(prefix=f"nexus-{name}-") as text:
        directory, port = Path(text), free_port()
        config = directory / "config"
        template = _NGINX if name == "nginx" else _HAPROXY
        config.write_text(template.format(directory=directory, port=port, upstream=upstream))
        command = [path, "-e", "stderr"] if name == "nginx" else [path]
        flag = "-c" if name == "nginx" else "-f"
        with (directory / "log").open("w") as log:
            process = subprocess.Popen([*command, flag, str(config)], stdout=log, stderr=log)
        try:
            _wait(process, port, directory / "log")
            yield port
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, EOFError):
            client = Client(port, 1)
            client.send(b"GET /health HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
            assert client.read().status == 200
            client.close()
            return
        time.sleep(0.02)
    raise AssertionError(f"did not start: {log.read_text()}")
