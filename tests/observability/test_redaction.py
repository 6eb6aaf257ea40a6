"""Secrets are masked by key and by pattern, and ordinary text is left alone."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.observability.redaction import (
    redact_fields,
    redact_target,
    redact_text,
    redact_url,
    secret_key,
    wire_text,
)
from nexus.redact import mask_password

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJjbGllbnRfaWQiOiJzaG9wIn0.c2lnbmF0dXJlLWJ5dGVz"


@pytest.mark.parametrize(
    "text",
    [
        f"token is {JWT}",
        "Authorization: Bearer s3cr3t-s3cr3t-s3cr3t",
        "authorization=Basic c3MzY3IzdDpzM2NyM3Q=",
        "cannot reach redis://admin:s3cr3t@10.0.0.1:6379/0",
        "cannot reach redis://:s3cr3t@10.0.0.1",
        "GET /login?user=a&password=s3cr3t&x=1",
        "/cb?access_token=s3cr3t#x",
        "/x?api_key=s3cr3t",
        '{"client_secret": "s3cr3t with spaces", "client_id": "shop"}',
        "{'jwt_secret': 's3cr3t'}",
        "password: s3cr3t",
        "X-Amz-Signature=s3cr3t",
        "-----BEGIN RSA PRIVATE KEY-----\ns3cr3t\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\ns3cr3t cut off",
    ],
)
def test_credentials_are_masked(text):
    masked = redact_text(text)
    assert "s3cr3t" not in masked
    assert "c3MzY3" not in masked
    assert "eyJhbG" not in masked
    assert "********" in masked


def test_what_is_beside_a_credential_stays():
    assert redact_text("GET /a?user=bob&token=abc&page=2 done") == (
        "GET /a?user=bob&token=********&page=2 done"
    )
    assert (
        redact_text("redis://app:pw@cache:6379/1 lost") == "redis://app:********@cache:6379/1 lost"
    )


@pytest.mark.parametrize(
    "text",
    [
        "GET /api/products?page=2&sort=-price 200",
        "upstream http://127.0.0.1:3001/products is back",
        "http://user@example.org/ has no password in it",
        "a basic test of tokens and keys",
        "the session ended: 12 requests",
        "",
    ],
)
def test_ordinary_text_is_left_alone(text):
    assert redact_text(text) == text


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("password", True),
        ("Authorization", True),
        ("Set-Cookie", True),
        ("client_secret", True),
        ("x-internal-secret", True),
        ("X-API-Key", True),
        ("accessToken", True),
        ("token_type", False),
        ("client_id", False),
        ("key", False),
        ("path", False),
    ],
)
def test_keys(name, secret):
    assert secret_key(name) is secret


def test_fields_are_searched_to_the_bottom():
    fields = {
        "headers": {"Authorization": "abc", "Accept": "*/*"},
        "list": [{"password": "abc"}, f"see {JWT}"],
        "bytes": b"Bearer abcdefghij",
        "token": None,
        "secret": True,
        "count": 3,
    }
    assert redact_fields(fields) == {
        "headers": {"Authorization": "********", "Accept": "*/*"},
        "list": [{"password": "********"}, "see ********"],
        "bytes": "Bearer ********",
        "token": None,
        "secret": True,
        "count": 3,
    }
    assert fields["token"] is None
    assert fields["headers"]["Authorization"] == "abc"


def test_a_structure_without_end_is_cut():
    endless: dict[str, object] = {}
    endless["again"] = endless
    assert "<dict>" in str(redact_fields(endless))


def test_urls():
    assert redact_url("/a/b") == "/a/b"
    assert redact_url("/a?token=x") == "/a?token=********"
    assert redact_url(f"/verify/{JWT}/now") == "/verify/********/now"
    assert redact_url(f"/verify/{JWT[:40]}") == "/verify/********"  # cut off by a limit
    assert redact_url(f"/a?next=Bearer%20{JWT}&b=1") == "/a?next=Bearer%20********&b=1"
    assert redact_url("http://u:p@ss@h/a") == "http://u:********@h/a"


@pytest.mark.parametrize(
    "name", ["sig", "pwd", "key", "code", "X-Amz-Signature", "subscription-key", "jwt", "user_pass"]
)
def test_short_names_of_secrets_in_a_query(name):
    assert redact_url(f"/a?b=1&{name}=s3c,r3t&c=2") == f"/a?b=1&{name}=********&c=2"
    assert redact_url(f"/a?{name}=s3cr3t") == f"/a?{name}=********"


@pytest.mark.parametrize(
    "target", ["/a?page=2&sort=-price", "/a?zip_code=1&country=de", "/code=5/pin=4", "/key?x", "*"]
)
def test_ordinary_targets_are_left_alone(target):
    assert redact_url(target) == target


@pytest.mark.parametrize(
    "word", ["token", "eyJ", "key", "://u:", "eyJ-", "passw=", "?key", "-secret"]
)
def test_a_hostile_target_costs_no_more_than_its_length(word):
    """20 000 characters; what grows with the square would take seconds here."""
    text = "/?" + word * (20_000 // len(word))
    started = time.process_time()
    redact_url(text)
    redact_text(text)
    assert time.process_time() - started < 1.0


def test_bytes_of_a_target_are_shown_in_one_way():
    assert wire_text("/é".encode() + b"\xff", 10) == "/é\\xff"
    assert wire_text(b"\xff" * 10, 10) == "\\xff\\xff\\x"
    assert redact_target(b"/?key=\xff&a=1", 14) == "/?key=********"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://u:p@ss@h:6379/0", "redis://u:********@h:6379/0"),
        ("redis://:p@h", "redis://:********@h"),
        ("redis://u:p:q@h", "redis://u:********@h"),
        ("redis://u:p/s@h", "redis://u:********@h"),
        ("redis://u:p#s@h", "redis://u:********@h"),
        ("redis://u:p?s@h/0", "redis://u:********@h/0"),
        ("http://u:pw@h/a@b", "http://u:********@h/a@b"),
        ("http://h:80/a@b", "http://h:80/a@b"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("http://u@h/", "http://u@h/"),
        ("no url: a@b", "no url: a@b"),
        ("a redis://u:p@ss@h, b redis://v:q@h", "a redis://u:********@h, b redis://v:********@h"),
    ],
)
def test_the_password_of_a_url(url, masked):
    assert mask_password(url) == masked
    assert redact_text(url) == masked


@given(st.text(max_size=200))
def test_redaction_is_stable(text):
    once = redact_text(text)
    assert redact_text(once) == once
