"""The two brokers of a developer: what they say when they cannot run, and that they end."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.requirements import module, tool

# No code of the services runs here.
pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[2]
KAFKA_DEV = ROOT / "scripts" / "kafka-dev"


def kafka_dev(home, *arguments, **environ):
    return subprocess.run(
        [sys.executable, str(KAFKA_DEV), *arguments],
        env={"PATH": os.environ["PATH"], "NEXUS_KAFKA_HOME": str(home), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_node_that_does_not_run_has_no_url(tmp_path):
    assert kafka_dev(tmp_path, "url").returncode == 1
    status = kafka_dev(tmp_path, "status", "--name", "n1")
    assert (status.returncode, status.stdout) == (1, "node 'n1' does not run\n")
    assert kafka_dev(tmp_path, "stop").returncode == 0  # stopping twice is no error


def test_without_java_it_says_what_to_install(tmp_path):
    run = kafka_dev(tmp_path, "start", "--port", "0", PATH=str(tmp_path))
    assert run.returncode == 1
    assert run.stderr.startswith("kafka-dev: java is missing: install")
    assert run.stderr.count("\n") == 1


def test_without_maven_it_says_what_to_install(tmp_path):
    (tmp_path / "java").symlink_to(tool("java"))
    run = kafka_dev(tmp_path / "home", "start", "--port", "0", PATH=str(tmp_path))
    assert run.returncode == 1
    assert run.stderr == "kafka-dev: mvn is missing: install Maven (it fetches the broker, once)\n"


def test_a_recycled_process_id_is_nobodys_node(tmp_path):
    node = tmp_path / "nodes" / "default"
    node.mkdir(parents=True)
    (node / "pid").write_text(f"{os.getpid()}\n")
    (node / "bootstrap").write_text("127.0.0.1:9\n")
    assert kafka_dev(tmp_path, "url").returncode == 1
    assert kafka_dev(tmp_path, "stop").returncode == 0  # and it did not end this process


@pytest.mark.parametrize(
    "arguments", [("start", "--port", "99999"), ("start", "--name", "../x"), ("frobnicate",)]
)
def test_a_wrong_command_line_is_refused(tmp_path, arguments):
    assert kafka_dev(tmp_path, *arguments).returncode == 2


def test_the_in_memory_broker_prints_its_address_and_ends_when_asked():
    module("confluent_kafka")
    broker = subprocess.Popen(
        [sys.executable, "-m", "nexus.demo.kafka"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        line = broker.stdout.readline()
        assert line.startswith("bootstrap=127.0.0.1:")
        port = int(line.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), 5).close()
        broker.send_signal(signal.SIGTERM)
        assert broker.wait(10) == 0
    finally:
        broker.stdout.close()
        if broker.poll() is None:
            broker.kill()
            broker.wait()
