"""What a registry's 401 asks for is read, whatever it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustrix_containers.registry.http.auth import is_loopback, parse_challenges


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="a b"', {"basic": {"realm": "a b"}}),
        (
            'Bearer realm="https://a/t",service="s, t",scope="repository:x:pull,push"',
            {
                "bearer": {
                    "realm": "https://a/t",
                    "service": "s, t",
                    "scope": "repository:x:pull,push",
                }
            },
        ),
        (
            'Negotiate, Basic realm=x , BEARER  realm = "q\\"uote"',
            {"negotiate": {}, "basic": {"realm": "x"}, "bearer": {"realm": 'q"uote'}},
        ),
        (
            'NTLM TlRM==, Bearer realm="a", error="b"',
            {"ntlm": {"tlrm": "="}, "bearer": {"realm": "a", "error": "b"}},
        ),
        ('Bearer realm="first", Bearer realm="second"', {"bearer": {"realm": "first"}}),
        ('realm="of no scheme"', {}),
        ("", {}),
        ('="', {}),
    ],
)
def test_challenges_are_read(header: str, expected: dict[str, dict[str, str]]) -> None:
    assert parse_challenges([header]) == expected


def test_several_headers_are_one_list() -> None:
    assert list(parse_challenges(["Negotiate", "Basic realm=x"])) == ["negotiate", "basic"]


@given(st.text())
def test_any_header_is_read_or_ignored(header: str) -> None:
    for scheme in parse_challenges([header]):
        assert scheme == scheme.lower()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("10.0.0.1", False),
        ("", False),
        (None, False),
    ],
)
def test_only_this_machine_is_loopback(host: str | None, expected: bool) -> None:
    assert is_loopback(host) is expected
