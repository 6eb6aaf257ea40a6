"""The command `nexus`: what it says and which part it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nexus import __version__
from nexus._speedups import BACKEND
from nexus.cli import main

GATEWAY = """
auth: {jwt_secret: "${SECRET_OF_THIS_TEST}", clients: [{client_id: c, client_secret: hush-hush}]}
rate_limit: {capacity: 7}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THIS_TEST", "s" * 32)
    monkeypatch.chdir(tmp_path)
    # The gateway's settings name it by default, and a file that is named must be there.
    Path("services.json").write_text('{"services": [{"url": "http://127.0.0.1:3001"}]}')

    def write(text, name="settings.yaml"):
        file = tmp_path / name
        file.write_text(text)
        return str(file)

    return write


def test_version_says_which_kernels_and_which_python(capsys):
    assert main(["--version"]) == 0
    line = capsys.readouterr().out
    python = ".".join(str(part) for part in sys.version_info[:3])
    assert line.startswith(f"nexus {__version__} ({BACKEND} kernels, Python {python}")


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"]])
def test_help_names_every_command(argv, capsys):
    assert main(argv) == 0
    text = capsys.readouterr().out
    for command in ("up", "gateway", "cacheproxy", "consumer", "check", "--version"):
        assert f"nexus {command}" in text


def test_without_a_command_the_usage_is_an_error(capsys):
    assert main([]) == 2
    assert "usage: nexus COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "meant"), [("gatway", "gateway"), ("chek", "check"), ("cache-proxy", "cacheproxy")]
)
def test_an_unknown_command_gets_a_suggestion(word, meant, capsys):
    assert main([word]) == 2
    error = capsys.readouterr().err
    assert f"there is no command {word!r}; did you mean 'nexus {meant}'?" in error
    assert "usage:" in error


def test_a_word_like_no_command_gets_the_usage_only(capsys):
    assert main(["zzz"]) == 2
    error = capsys.readouterr().err
    assert "did you mean" not in error
    assert "usage:" in error


def test_check_finds_the_service_and_masks_secrets(config, capsys):
    assert main(["check", config(GATEWAY)]) == 0
    shown = capsys.readouterr().out
    assert "capacity: 7" in shown
    assert "refill_per_second: 2.0" in shown
    assert "s" * 32 not in shown
    assert "hush" not in shown


def test_check_reports_what_is_wrong_and_where(config, capsys):
    file = config(GATEWAY.replace("capacity: 7", "capacity: many"))
    assert main(["check", file]) == 2
    error = capsys.readouterr().err
    assert "rate_limit.capacity: expected an integer" in error
    assert file in error


def test_check_goes_by_the_name_where_the_keys_do_not_tell(config, capsys):
    assert main(["check", config("workers: 2\n", "my-consumer.yaml")]) == 0
    assert "nexus-consumer-group" in capsys.readouterr().out


def test_check_asks_where_nothing_tells(config, capsys):
    assert main(["check", config("workers: 2\n")]) == 2
    assert "say which with --service" in capsys.readouterr().err
    assert main(["check", "--service", "cacheproxy", config("workers: 2\n")]) == 0
    assert "redis:" in capsys.readouterr().out


def test_check_of_keys_that_nobody_knows(config, capsys):
    assert main(["check", config("ratelimit: {}\n")]) == 2
    assert "no service knows any of its keys (ratelimit)" in capsys.readouterr().err
    assert main(["check", config("ratelimit: {}\n", "gateway.yaml")]) == 2
    assert "did you mean 'rate_limit'?" in capsys.readouterr().err


def test_check_reads_a_list_of_services(config, capsys):
    good = '{"services": [{"url": "http://127.0.0.1:3001", "weight": 2}]}'
    assert main(["check", config(good, "services.json")]) == 0
    assert capsys.readouterr().out == "http://127.0.0.1:3001 weight 2\n"
    bad = '{"services": [{"url": "ftp://h", "weight": 2}]}'
    assert main(["check", config(bad, "services.json")]) == 2
    assert "services.json" in capsys.readouterr().err


def test_check_of_a_missing_file(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["up", "gateway", "cacheproxy", "consumer", "check"])
def test_each_command_explains_itself(command):
    done = subprocess.run(
        [sys.executable, "-m", "nexus", command, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_version_loads_no_service():
    source = (
        "import sys; from nexus.cli import main; main(['--version']); "
        "print([m for m in sys.modules if m.startswith(('nexus.gateway', 'nexus.cacheproxy', "
        "'nexus.consumer', 'nexus.demo'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
