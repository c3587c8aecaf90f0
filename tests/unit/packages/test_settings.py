from __future__ import annotations

from pathlib import Path

import pytest

from clustrix_containers.packages.wheels.settings import PYPI, index_settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a project without any settings."""
    home = tmp_path / "home"
    (home / "project").mkdir(parents=True)
    monkeypatch.chdir(home / "project")
    return home


def settings(home: Path, **variables: str):
    environment = {"HOME": str(home), "XDG_CONFIG_DIRS": str(home / "xdg"), **variables}
    return index_settings({"PIP_CONFIG_FILE": "/dev/null", "UV_NO_CONFIG": "1"} | environment)


def test_pypi_is_the_default(home: Path) -> None:
    found = settings(home)
    assert (found.indexes, found.find_links) == ((PYPI,), ())


def test_pip_by_variables(home: Path) -> None:
    bundle = home / "ca.pem"
    bundle.touch()
    found = settings(
        home,
        PIP_INDEX_URL="https://a/simple",
        PIP_EXTRA_INDEX_URL="https://b/simple https://c/simple",
        PIP_FIND_LINKS="/wheels https://d/list",
        PIP_TRUSTED_HOST="a b:8080",
        PIP_CERT=str(bundle),
        PIP_CLIENT_CERT="/me.pem",
        PIP_PROXY="http://proxy:3128",
    )
    assert found.indexes == ("https://a/simple", "https://b/simple", "https://c/simple")
    assert found.find_links == ("/wheels", "https://d/list")
    assert found.trusted_hosts == ("a", "b:8080")
    assert (found.certificates, found.client_certificate) == (str(bundle), "/me.pem")
    assert found.proxy == "http://proxy:3128"


def test_pip_files_and_their_precedence(home: Path) -> None:
    for name, text in {
        "xdg/pip/pip.conf": "[global]\nindex-url = https://system\nextra-index-url = https://old\n",
        ".pip/pip.conf": "[global]\nextra_index_url =\n    https://e1\n    https://e2\n",
        ".config/pip/pip.conf": "[install]\nfind-links = /links\n",
        "named.conf": "[global]\ntrusted-host = t\n",
        "broken.conf": "not an ini file",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    found = settings(home, PIP_CONFIG_FILE="")
    assert found.indexes[0] == "https://system"
    assert {"https://e1", "https://e2"} <= set(found.indexes) and "https://old" not in found.indexes
    assert "/links" in found.find_links
    named = settings(home, PIP_CONFIG_FILE=str(home / "named.conf"))
    assert "t" in named.trusted_hosts
    assert "/links" not in named.find_links, "a named file replaces the user's"
    assert settings(home, PIP_CONFIG_FILE=str(home / "broken.conf")).indexes[0] == "https://system"


@pytest.mark.parametrize("variable", ["PIP_NO_INDEX", "UV_NO_INDEX"])
def test_no_index(variable: str, home: Path) -> None:
    found = settings(home, PIP_FIND_LINKS="/wheels", **{variable: "true"})
    assert (found.indexes, found.find_links) == ((), ("/wheels",))


def test_uv_by_variables(home: Path) -> None:
    found = settings(
        home,
        UV_DEFAULT_INDEX="https://a/simple",
        UV_INDEX="corp=https://b/simple https://c/simple",
        UV_INDEX_CORP_USERNAME="me@corp",
        UV_INDEX_CORP_PASSWORD="p/w",
        UV_EXTRA_INDEX_URL="https://d/simple",
        UV_FIND_LINKS="/one,/two",
        UV_INSECURE_HOST="b",
    )
    assert found.indexes == (
        "https://a/simple",
        "https://me%40corp:p%2Fw@b/simple",
        "https://c/simple",
        "https://d/simple",
    )
    assert (found.find_links, found.trusted_hosts) == (("/one", "/two"), ("b",))


@pytest.mark.parametrize("name", ["uv.toml", "pyproject.toml"])
def test_uv_files(name: str, home: Path) -> None:
    (home / ".config/uv").mkdir(parents=True)
    (home / ".config/uv/uv.toml").write_text('extra-index-url = ["https://user/simple"]\n')
    table = "tool.uv." if name == "pyproject.toml" else ""
    (home / "project" / name).write_text(
        f'[{table}pip]\nfind-links = ["wheels"]\n'
        f'[[{table}index]]\nname = "x"\nurl = "https://x/simple"\ndefault = true\n'
        f'[[{table}index]]\nurl = "../flat"\nformat = "flat"\n'
    )
    found = settings(home, UV_NO_CONFIG="")
    assert found.indexes == ("https://x/simple", "https://user/simple")
    assert found.find_links == (str(home / "project/../flat"), str(home / "project/wheels"))
    assert settings(home).indexes == (PYPI,), "UV_NO_CONFIG"
