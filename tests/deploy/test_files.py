"""What is under deploy/, and the container files: linted, and run as far as Docker allows."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.servers import free_port
from support.waiting import eventually

from nexus.observability.catalogue import CATALOGUE
from nexus.observability.exposition import render
from nexus.observability.registry import Registry
from nexus.reference.dashboards import BOARDS

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SECRETS = {"NEXUS_JWT_SECRET": "0123456789abcdef" * 4, "NEXUS_CLIENT_SECRET": "client-secret"}


def run(*command: str, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def tool(name: str) -> str:
    """A program of the virtual environment, or of PATH."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, f"{name} is missing: pip install -e '.[test]'"
    return found


def alerts() -> list[dict]:
    return [
        rule
        for file in RULES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]


# ---------------------------------------------------------------------------------- Prometheus


def test_promtool_finds_nothing(prometheus):
    said = run("promtool", "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
    assert "FAILED" not in said
    assert said.count("SUCCESS") == 2 + len(RULES)


def test_promtool_finds_nothing_in_the_metrics_but_the_contracts_milliseconds(prometheus):
    """Every metric of the catalogue as it is scraped; the two that end in ``_ms`` are the
    contract's and stay, all else that promtool knows of would be told."""
    registry = Registry(workers=1)
    metrics = registry.open(0)
    for name, metric in CATALOGUE.items():
        labels = dict.fromkeys(metric.labels, "x")
        getattr(metrics, metric.kind)(name, **labels)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=render(registry), capture_output=True, check=False
    )
    told = (done.stdout + done.stderr).decode().splitlines()
    milliseconds = {"nexus_http_request_duration_ms", "nexus_upstream_request_duration_ms"}
    assert {line.partition(" ")[0] for line in told} == milliseconds
    assert all("should not contain abbreviated units" in line for line in told)


def test_every_alert_fires_on_its_fault_and_no_other_time(prometheus):
    file = Path(__file__).with_name("rules_test.yml")
    run("promtool", "test", "rules", str(file))
    shown = set(re.findall(r'alertname="(\w+)"\}\', value: 1', file.read_text()))
    assert shown == {rule["alert"] for rule in alerts()}


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_every_alert_has_a_page_that_names_it(rule):
    url = rule["annotations"]["runbook_url"]
    prefix, _, page = url.rpartition("/")
    assert prefix == "{{ $externalLabels.runbooks }}"
    text = (ROOT / "docs" / "runbooks" / page).read_text()
    assert rule["alert"] in text.splitlines()[0]
    for section in ("**Means.**", "**Look.**"):
        assert section in text
    assert rule["labels"]["severity"] in ("page", "ticket", "info")


def test_every_page_belongs_to_an_alert():
    used = {rule["annotations"]["runbook_url"].rpartition("/")[2] for rule in alerts()}
    assert {page.name for page in (ROOT / "docs" / "runbooks").glob("*.md")} == used


_NO_METRICS = ("events.md", "tags.md")


def metrics_of(text: str) -> set[str]:
    return {
        re.sub(r"_(bucket|count|sum)$", "", name)
        if re.sub(r"_(bucket|count|sum)$", "", name) in CATALOGUE
        else name
        for name in re.findall(r"\bnexus_[a-z0-9_]+(?![a-z0-9_*])", text)
    }


@pytest.mark.parametrize(
    "file",
    [
        *RULES,
        *sorted((ROOT / "docs" / "runbooks").glob("*.md")),
        # Those two have headers of Kafka's messages and a function with names alike.
        *sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / n for n in _NO_METRICS}),
        ROOT / "README.md",
    ],
    ids=lambda file: file.name,
)
def test_metrics_that_are_named_exist(file):
    assert metrics_of(file.read_text()) <= set(CATALOGUE)


# ------------------------------------------------------------------------------------- Grafana


def test_the_contracts_panels_are_there():
    gateway = next(board for board in BOARDS if board.title == "Nexus Gateway")
    first_four = [panel.title for panel in gateway.panels[:4]]
    assert first_four == [
        "Request rate",
        "p99 request latency",
        "Rate-limit hits in 5 min",
        "p95 upstream latency",
    ]
    assert "rate(nexus_http_requests_total[1m])" in gateway.panels[0].queries[0][0]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_dashboards(board):
    document = json.loads((DEPLOY / "grafana" / "dashboards" / f"{board.uid}.json").read_text())
    assert document["uid"] == board.uid
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in document["panels"]]
    assert len(set(places)) == len(places)
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in document["panels"])
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in document["templating"]["list"]}
    sources = yaml.safe_load(
        (DEPLOY / "grafana" / "provisioning" / "datasources" / "nexus.yml").read_text()
    )
    known = {source["uid"] for source in sources["datasources"]}
    for panel in document["panels"]:
        assert panel["datasource"]["uid"] in known
        assert panel["fieldConfig"]["defaults"]["unit"]
        names = [target["refId"] for target in panel["targets"]]
        assert names
        assert len(set(names)) == len(names)
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            used = set(re.findall(r"\$\{?(\w+)", target["expr"] + target["legendFormat"]))
            assert used <= variables | {"__rate_interval", "__interval", "__range"}
            assert metrics_of(target["expr"]) <= set(CATALOGUE), panel["title"]
            assert target["legendFormat"]


def test_grafana_finds_what_compose_gives_it():
    """Each path within the container is below a mount, and there; each address is a service's."""
    grafana = COMPOSE["services"]["grafana"]
    mounts = dict(volume.split(":")[1::-1] for volume in grafana["volumes"])

    def outside(path: str) -> Path:
        for inside, source in mounts.items():
            if path == inside or path.startswith(f"{inside}/"):
                return ROOT / source / path.removeprefix(inside).lstrip("/")
        raise AssertionError(f"{path} is not mounted")

    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert outside(home).is_file()
    provisioned = outside("/etc/grafana/provisioning")
    (provider,) = yaml.safe_load((provisioned / "dashboards" / "nexus.yml").read_text())[
        "providers"
    ]
    found = {file.stem for file in outside(provider["options"]["path"]).glob("*.json")}
    assert found == {board.uid for board in BOARDS}
    text = (provisioned / "datasources" / "nexus.yml").read_text()
    sources = yaml.safe_load(text)["datasources"]
    for source in sources:
        name, _, port = source["url"].removeprefix("http://").partition(":")
        assert any(f":{port}" in one for one in COMPOSE["services"][name]["ports"])
    linked = set(re.findall(r"datasourceUid: (\S+)", text))
    assert linked <= {source["uid"] for source in sources}
    prometheus = COMPOSE["services"]["prometheus"]
    assert "./deploy/prometheus:/etc/prometheus:ro" in prometheus["volumes"]
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    for pattern in config["rule_files"]:
        assert sorted((DEPLOY / "prometheus").glob(pattern)) == RULES


# ---------------------------------------------------------------------------------- containers


def test_the_dockerfile_is_linted():
    assert run(tool("hadolint"), "--no-color", str(ROOT / "Dockerfile")) == ""


def test_compose_follows_its_schema():
    run(
        tool("check-jsonschema"),
        *("--builtin-schema", "vendor.compose-spec", str(ROOT / "docker-compose.yml")),
    )


def test_compose_is_whole():
    services = COMPOSE["services"]
    assert set(services) == {
        *("gateway", "upstream-a", "upstream-b", "cacheproxy", "consumer"),
        *("redis", "kafka", "jaeger", "prometheus", "grafana"),
    }
    started: list[str] = []

    def start(name: str, waiting: tuple[str, ...] = ()) -> None:
        assert name not in waiting, f"{name} waits for itself"
        for other, how in services[name].get("depends_on", {}).items():
            start(other, (*waiting, name))
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], other
        started.append(name)

    for name, service in services.items():
        start(name)
        assert "healthcheck" in service, name
        assert service["image"].rpartition(":")[2] not in ("latest", ""), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), volume
            else:
                assert source in COMPOSE["volumes"], volume
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:") or name == "gateway", port
    published = {
        name: {int(port.split(":")[-2]) for port in service.get("ports", ())}
        for name, service in services.items()
    }
    assert published["gateway"] == {3000}
    assert published["grafana"] == {3004}
    assert published["cacheproxy"] == {6380, 6390}
    assert published["jaeger"] == {16686, 4318}
    # Never reachable from outside.
    assert not published["upstream-a"]
    assert not published["upstream-b"]


@pytest.mark.parametrize("name", ["gateway", "cacheproxy", "consumer"])
def test_the_commands_of_compose_are_right(name, tmp_path):
    """The service's own --check with its command, its environment and its mounted files."""
    service = COMPOSE["services"][name]
    mounted = dict(volume.split(":")[1::-1] for volume in service.get("volumes", ()))
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("NEXUS_", "OTEL_"))}
    for key, value in service.get("environment", {}).items():
        environ[key] = SECRETS.get(key, value)
    command = []
    for word in service["command"]:
        if word in mounted:
            # What the file itself refers to is mounted, too.
            text = (ROOT / mounted[word]).read_text()
            for inside, outside in mounted.items():
                text = text.replace(inside, str(ROOT / outside))
            word = str(tmp_path / "settings.yaml")
            Path(word).write_text(text)
        command.append(word)
    resolved = yaml.safe_load(
        run(sys.executable, "-m", "nexus", *command, "--check", env=environ, cwd=ROOT)
    )
    ports = {"gateway": "port", "cacheproxy": "port", "consumer": "admin_port"}
    assert any(port.endswith(f":{resolved[ports[name]]}") for port in service["ports"]), (
        "the published port is not the one that it listens on"
    )
    host = resolved["admin_host" if name == "consumer" else "host"]
    assert host == "0.0.0.0"
    for secret in SECRETS.values():
        assert secret not in str(resolved)


def test_the_health_checks_of_compose_tell_ready_from_not(tmp_path):
    """Ours run as they stand, on other ports: one that is up and ready, one that is not ready."""
    checks = {
        name: service["healthcheck"]["test"]
        for name, service in COMPOSE["services"].items()
        if "build" in service
    }
    assert set(checks) == {"gateway", "upstream-a", "upstream-b", "cacheproxy", "consumer"}

    def healthy(name: str, port: int) -> bool:
        kind, *command = checks[name]
        assert (kind, command[0]) == ("CMD", "python")
        (found,) = re.findall(r"127\.0\.0\.1:(\d+)/", command[-1])
        command[-1] = command[-1].replace(f":{found}/", f":{port}/")
        done = subprocess.run([sys.executable, *command[1:]], capture_output=True, check=False)
        return done.returncode == 0

    upstream, port, admin = free_port(), free_port(), free_port()
    service = COMPOSE["services"]["upstream-a"]
    words = [*service["entrypoint"][1:], *service["command"]]
    words[words.index("--port") + 1] = str(upstream)
    commands = [
        [sys.executable, *words],
        # No Redis: it serves, and is not ready.
        [sys.executable, "-m", "nexus", "cacheproxy", "--redis", f"redis://127.0.0.1:{free_port()}",
         "--port", str(port), "--admin-port", str(admin)],
    ]  # fmt: skip
    assert not healthy("upstream-a", upstream)
    running = [
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
        )
        for command in commands
    ]
    try:
        assert eventually(lambda: healthy("upstream-a", upstream), 60)
        assert eventually(lambda: answers(admin, "/health"), 60)
        assert not healthy("cacheproxy", admin)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(30)


def answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_the_upstreams_of_compose_are_those_of_its_services_file():
    listed = json.loads((DEPLOY / "nexus" / "services.json").read_text())["services"]
    ports = []
    for name in ("upstream-a", "upstream-b"):
        service = COMPOSE["services"][name]
        assert service["network_mode"] == "service:gateway"
        ports.append(service["command"][service["command"].index("--port") + 1])
        run(*[sys.executable, *service["entrypoint"][1:], "--help"], cwd=ROOT)
    assert [server["url"] for server in listed] == [f"http://127.0.0.1:{port}" for port in ports]


def test_prometheus_scrapes_what_compose_runs():
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    ports = {"gateway": 3000, "cacheproxy": 6390, "consumer": 3901}
    targets = {
        target
        for job in config["scrape_configs"]
        if job["job_name"].startswith("nexus-")
        for target in job["static_configs"][0]["targets"]
    }
    assert targets == {f"{name}:{port}" for name, port in ports.items()}


def test_what_the_dockerfile_copies_exists_and_is_sent():
    text = (ROOT / "Dockerfile").read_text()
    sent = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert source in sent, f"{source} is not sent to the build"
    assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE), "runs as root"
    assert text.count("FROM ") == 2


def test_the_wheel_of_the_image_runs(tmp_path):
    """The image's own two steps, on pure Python and without fetching what is installed here: a
    wheel, and the command out of it. The whole of it, compiled: `make prove-image`."""
    environ = {**os.environ, "NEXUS_NO_EXTENSIONS": "1"}
    environ.pop("NEXUS_REQUIRE_EXTENSIONS", None)
    source = tmp_path / "src"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(
        ROOT / "nexus",
        source / "nexus",
        ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"),
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run(
        *pip,
        *("wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir"),
        *("--wheel-dir", str(tmp_path / "wheels"), "."),
        cwd=source,
        env=environ,
    )
    run(
        *pip,
        *("install", "--no-deps", "--no-index", "--target", str(tmp_path / "site")),
        *("--find-links", str(tmp_path / "wheels"), "nexus-edge"),
        env=environ,
        cwd=tmp_path,
    )
    said = run(
        *(sys.executable, "-m", "nexus", "--version"),
        env={**environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
    )
    assert "pure kernels" in said
    assert (tmp_path / "site" / "nexus" / "tracing" / "_kernel_c.pxd").exists()
