"""Secrets are masked by key and by pattern, and ordinary text is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.observability.redaction import (
    redact_fields,
    redact_text,
    redact_url,
    secret_key,
)

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


@given(st.text(max_size=200))
def test_redaction_is_stable(text):
    once = redact_text(text)
    assert redact_text(once) == once
