"""Secrets are refused by name and place, and never shown."""

from __future__ import annotations

from typing import Any

import pytest

from clustrix_containers.capture.callables import capture
from clustrix_containers.capture.secrets import find_secret
from clustrix_containers.errors import CaptureError

_LETTERS = "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dF3hJ5kL7nP9rS1tU3"
SECRETS = {
    "an AWS access key": "AKIA" + "QWERTYUIOPASDFG1",
    "a GitHub token": "ghp_" + _LETTERS[:36],
    "a Hugging Face token": "hf_" + _LETTERS[:34],
    "an OpenAI or Anthropic key": "sk-ant-" + _LETTERS,
    "a Slack token": "xoxb-" + _LETTERS[:20],
    "a Google API key": "AIza" + _LETTERS[:35],
    "a private key": "-----BEGIN RSA PRIVATE KEY-----\n" + _LETTERS + _LETTERS,
    "a GitLab token": "glpat-" + _LETTERS[:20],
}


@pytest.mark.parametrize("kind", SECRETS)
def test_found_alone_in_text_bytes_and_pickles(kind: str) -> None:
    import pickle

    secret = SECRETS[kind]
    for data in (secret, secret.encode(), f"x = {secret!r}", pickle.dumps([secret], 5)):
        assert find_secret(data) == kind


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AKIAIOSFODNN7EXAMPLE",
        "if line.startswith('-----BEGIN PRIVATE KEY-----'): pass",
        "sk-toggleable__content-arrow sk-estimator-doc-link risk-adjusted",
        "half_life = thf_1",
        "AKIA",
    ],
)
def test_not_secrets(text: str) -> None:
    assert find_secret(text) is None


def test_values_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "correct horse battery")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    monkeypatch.setenv("TOKEN_FILE_SECRET", "/run/secrets/token-file")
    assert find_secret("p = 'correct horse battery'") == (
        "the value of the environment variable MY_SERVICE_PASSWORD"
    )
    assert find_secret("true /run/secrets/token-file") is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def o():\n    key = S\n    return lambda: key", "closure variable 'key'"),
        (
            "def o(k=S):\n    def f(cfg={'k': k}): return cfg\n    return f",
            "parameter 'cfg' of 'f'",
        ),
        ("def o(k=S): return (lambda c: lambda: c)(C(k))", "attribute 'token'"),
        ("def o(k=S): return C(k).run", "attribute 'token'"),
    ],
)
def test_captured_value_names_the_variable(
    source: str, words: str, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = SECRETS["a Hugging Face token"]
    monkeypatch.setenv("FOR_THE_TEST", secret)
    project.write(
        {
            "m.py": "import os\nS = os.environ['FOR_THE_TEST']\nclass C:\n"
            "    def __init__(self, token): self.token = token\n    def run(self): pass\n" + source
        }
    )
    function = project.load("m").o()
    with pytest.raises(CaptureError) as caught:
        capture(function)
    text = str(caught.value)
    assert words in text
    assert "a Hugging Face token" in text
    assert secret not in text
    assert capture(function, allow_secrets=True).entry.kind == "value"


def test_source_and_data_name_file_and_line(bundle_of: Any, project: Any) -> None:
    secret = SECRETS["a GitHub token"]
    with pytest.raises(CaptureError, match=r"m\.py:3 holds a GitHub token") as caught:
        bundle_of({"m.py": f"def f(): pass\n\nT = {secret!r}\n"}, "m:f")
    assert secret not in str(caught.value)
    assert "allow_secrets" in str(caught.value)
    with pytest.raises(CaptureError, match=r"cfg\.toml:2 holds a GitHub token"):
        bundle_of(
            {
                "n.py": "import p\ndef f(): pass",
                "p/__init__.py": "",
                "p/cfg.toml": f"\nt='{secret}'",
            },
            "n:f",
        )
    bundle_of({"p/cfg.toml": f"\nt='{secret}'"}, "n:f", allow_secrets=True)
