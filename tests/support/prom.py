"""A real Prometheus on loopback, asked over its HTTP API."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from support.servers import free_port

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"


class Prometheus:
    """Runs the project's own configuration: other targets, one-second scrapes, alerts at once."""

    def __init__(self, executable: str, directory: Path, targets: dict[str, str]) -> None:
        """``targets``: job of deploy/prometheus/prometheus.yml → address."""
        config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
        config["global"] |= {
            "scrape_interval": "1s",
            "scrape_timeout": "1s",
            "evaluation_interval": "1s",
        }
        self.port = free_port()
        for job in config["scrape_configs"]:
            address = targets.get(job["job_name"], f"127.0.0.1:{self.port}")
            job["static_configs"] = [{"targets": [address]}]
        shutil.copytree(DEPLOY / "rules", directory / "rules")
        for file in (directory / "rules").glob("*.yml"):
            rules = yaml.safe_load(file.read_text())
            for group in rules["groups"]:
                for rule in group["rules"]:
                    rule.pop("for", None)
            file.write_text(yaml.safe_dump(rules))
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = (directory / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                executable,
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--enable-feature=exemplar-storage",
                "--log.level=warn",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        end = time.monotonic() + 20
        while True:
            try:
                self._get("/-/ready", {})
                return
            except (OSError, json.JSONDecodeError) as error:
                if isinstance(error, json.JSONDecodeError):
                    return  # "Prometheus Server is Ready."
                assert self._process.poll() is None, (directory / "prometheus.log").read_text()
                assert time.monotonic() < end, "Prometheus did not become ready"
                time.sleep(0.1)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._log.close()

    def _get(self, path: str, arguments: dict[str, str]) -> Any:
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code in (400, 422):
                raise AssertionError(f"{arguments}: {error.read().decode()}") from None
            raise

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """An instant query: (labels, value) of each series."""
        answer = self._get("/api/v1/query", {"query": expression})
        assert answer["status"] == "success", answer
        return [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]

    def value(self, expression: str) -> float | None:
        """Of the one series that the query gives; ``None``: it gives none."""
        found = self.query(expression)
        assert len(found) < 2, found
        return found[0][1] if found else None

    def get(self, path: str, **arguments: str) -> Any:
        """``data`` of another endpoint."""
        return self._get(path, arguments)["data"]

    def until(self, expression: str, expected: float, seconds: float = 15) -> None:
        """Wait for a value: a scrape comes once a second."""
        end = time.monotonic() + seconds
        while (found := self.value(expression)) != expected:
            assert time.monotonic() < end, f"{expression} is {found}, not {expected}"
            time.sleep(0.2)
