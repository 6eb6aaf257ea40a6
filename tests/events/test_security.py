"""Kafka with TLS and a user: a real broker that serves nobody else."""

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.requirements import tool

from nexus.cli import main as nexus
from nexus.errors import ConfigError
from nexus.net.kafka import check_settings
from nexus.net.producer import EventProducer
from nexus.net.settings import DialTlsSettings, KafkaSettings, SaslSettings

# What a broker asks of its clients comes before the first event.
pytestmark = pytest.mark.once

KAFKA_DEV = Path(__file__).resolve().parents[2] / "scripts" / "kafka-dev"
TOPIC = "gateway.rate_limit.hit"
USER = SaslSettings(username="nexus", password="right-word")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def kafka_dev(*words):
    return subprocess.run(
        [sys.executable, str(KAFKA_DEV), *words],
        env={**os.environ, "KAFKA_HEAP_MB": "192"},
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    ).stdout.split()[-1:]


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """(bootstrap, certificate) of a broker that demands TLS and a user."""
    for name in ("java", "mvn"):
        tool(name)
    directory = tmp_path_factory.mktemp("kafka-tls")
    key, certificate = directory / "key.pem", directory / "cert.pem"
    subprocess.run(
        [
            *(tool("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", str(key), "-out", str(certificate), "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    both = directory / "both.pem"
    both.write_text(key.read_text() + certificate.read_text())
    name = f"secured-{secrets.token_hex(4)}"
    options = ["--tls", str(both), "--sasl", f"{USER.username}:{USER.password}"]
    try:
        [bootstrap] = kafka_dev("start", "--name", name, "--port", "0", *options)
        yield bootstrap, str(certificate)
    finally:
        kafka_dev("stop", "--name", name, "--purge")


def settings_for(secured, **changed):
    bootstrap, certificate = secured
    known = {
        "bootstrap_servers": bootstrap,
        "security_protocol": "SASL_SSL",
        "tls": DialTlsSettings(ca_file=certificate),
        "sasl": USER,
        "linger_ms": 5,
    }
    return KafkaSettings(**(known | changed))


async def emitted(settings, metrics, seconds):
    producer = EventProducer(settings, metrics, "/nexus/test", 0)
    await producer.start()
    producer.emit(TOPIC, json.dumps({"here": "it is"}).encode(), b"k", [])
    await producer.stop(seconds)
    return metrics.counter("nexus_events_sent_total", topic=TOPIC).value


@pytest.mark.kafka
@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_events_reach_a_broker_that_asks_who_we_are(secured, metrics, mechanism):
    asked = SaslSettings(mechanism, USER.username, USER.password)
    assert await emitted(settings_for(secured, sasl=asked), metrics, 30) == 1


@pytest.mark.kafka
def test_the_command_reads_with_the_consumers_settings(secured, monkeypatch, tmp_path, capsys):
    """Behind the producer's test: its event is there."""
    bootstrap, certificate = secured
    file = tmp_path / "consumer.yaml"
    file.write_text(
        json.dumps(
            {
                "kafka": {
                    "bootstrap_servers": bootstrap,
                    "security_protocol": "SASL_SSL",
                    "tls": {"ca_file": certificate},
                    "sasl": {
                        "mechanism": "SCRAM-SHA-256",
                        "username": USER.username,
                        "password": USER.password,
                    },
                }
            }
        )
    )
    words = ["events", "--config", str(file), "tail", TOPIC, "--begin", "--end"]
    assert nexus(words) == 0
    assert '"here": "it is"' in capsys.readouterr().out


@pytest.mark.kafka
def test_the_consumer_joins_its_group_there(secured, redis_server, tmp_path):
    bootstrap, certificate = secured
    log = tmp_path / "log"
    environ = {
        "KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA__TLS__CA_FILE": certificate,
        "KAFKA__SASL__MECHANISM": "SCRAM-SHA-512",
        "KAFKA__SASL__USERNAME": USER.username,
        "KAFKA__SASL__PASSWORD": USER.password,
    }
    words = ["--kafka", bootstrap, "--redis", redis_server.url, "--admin-port", "0"]
    with log.open("wb") as output:
        service = subprocess.Popen(
            [sys.executable, "-m", "nexus.consumer", *words],
            env={**os.environ, **{f"NEXUS_CONSUMER_{k}": v for k, v in environ.items()}},
            stdout=output,
            stderr=output,
        )
    try:
        limit = time.monotonic() + 120
        while "set aside" not in log.read_text() and "dead letter" not in log.read_text():
            assert time.monotonic() < limit, log.read_text()
            assert service.poll() is None, log.read_text()
            time.sleep(0.05)
        assert "joined the group" in log.read_text()
        service.terminate()
        assert service.wait(20) == 0
    finally:
        service.kill()
        service.wait()


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        *(
            ({"sasl": SaslSettings(mechanism, "nexus", "wrong")}, "uthentication")
            for mechanism in MECHANISMS
        ),
        ({"tls": DialTlsSettings()}, "CERTIFICATE_VERIFY_FAILED"),
    ],
)
async def test_a_refusal_says_why(secured, metrics, caplog, changed, reason):
    assert await emitted(settings_for(secured, **changed), metrics, 2) == 0
    [line] = [r.getMessage() for r in caplog.records if "does not answer" in r.getMessage()][:1]
    assert reason in line
    assert "wrong" not in line.replace("wrong version", "")


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"security_protocol": "SASL_SSL"}, "kafka.sasl.username"),
        (
            {"security_protocol": "SASL_PLAINTEXT", "sasl": SaslSettings(username="u")},
            "kafka.sasl.password",
        ),
        ({"sasl": USER}, "kafka.sasl"),
        ({"tls": DialTlsSettings(ca_file="/x")}, "kafka.tls"),
        (
            {"security_protocol": "SSL", "tls": DialTlsSettings(ca_file="/nowhere/ca.pem")},
            "kafka.tls.ca_file",
        ),
    ],
)
def test_security_that_cannot_work_is_refused_when_it_is_loaded(settings, path):
    with pytest.raises(ConfigError) as caught:
        check_settings(KafkaSettings(**settings))
    assert caught.value.path == path
