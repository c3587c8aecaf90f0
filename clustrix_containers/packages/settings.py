"""The package indexes that the user has configured for pip, uv, Poetry and PDM.

Formats: https://pip.pypa.io/en/stable/topics/configuration/,
https://docs.astral.sh/uv/concepts/indexes/, https://python-poetry.org/docs/repositories/ and
https://pdm-project.org/en/latest/usage/config/. All indexes of all tools are searched: a wheel is
used only where it equals what is installed, so which index it comes from decides nothing.
"""

from __future__ import annotations

import configparser
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from .requirements import toml

PYPI = "https://pypi.org/simple/"


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """Where wheels come from, and how to get there.

    ``indexes`` are URLs or directories of simple repositories (PEP 503, PEP 691), ``find_links``
    of flat listings; both may hold credentials. ``trusted_hosts`` are ``host`` or ``host:port``
    whose certificates are not checked. ``certificates`` is a file of CA certificates,
    ``client_certificate`` one with the client's key.
    """

    indexes: tuple[str, ...]
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    certificates: str | None = None
    client_certificate: str | None = None
    proxy: str | None = None


@dataclass
class _Found:
    """What has been read so far."""

    environ: Mapping[str, str]
    default: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    find_links: list[str] = field(default_factory=list)
    trusted_hosts: list[str] = field(default_factory=list)
    no_index: bool = False

    def named(self, item: str, *, default: bool = False) -> None:
        """An index of uv's environment variables: ``URL`` or ``NAME=URL``."""
        match = re.match(r"([A-Za-z0-9._-]+)=(.+)", item)
        name, url = (match[1], match[2]) if match else ("", item)
        self.add({"name": name, "url": url, "default": default}, "UV_INDEX_", Path())

    def add(self, index: Mapping[str, Any], prefix: str, directory: Path) -> None:
        """A table with ``name`` and ``url``; credentials are in variables that begin with ``prefix``."""
        url = os.path.expandvars(_located(str(index.get("url", "")), directory))
        name = re.sub(r"[^A-Z0-9]", "_", str(index.get("name", "")).upper())
        user = self.environ.get(f"{prefix}{name}_USERNAME")
        password = self.environ.get(f"{prefix}{name}_PASSWORD")
        parts = urlsplit(url)
        if parts.hostname and (user or password) and "@" not in parts.netloc:
            credentials = f"{quote(user or '', safe='')}:{quote(password or '', safe='')}"
            url = parts._replace(netloc=f"{credentials}@{parts.netloc}").geturl()
        if not url:
            return
        if index.get("type") == "find_links" or index.get("format") == "flat":
            self.find_links.append(url)
        else:
            (self.default if index.get("default") else self.extra).append(url)


def index_settings(environ: Mapping[str, str] | None = None) -> IndexSettings:
    """The settings of this user, environment and working directory. Unreadable files are ignored."""
    environ = os.environ if environ is None else environ
    found = _Found(environ)
    pip = _pip(environ)
    _add_pip(found, pip)
    for table, directory in _uv_tables(environ):
        _add_uv(found, table, directory)
    _add_uv_environment(found, environ)
    for table, directory in _pyproject_tables(Path.cwd()):
        for tool, prefix in (("poetry", "POETRY_HTTP_BASIC_"), ("pdm", "PDM_SOURCE_")):
            sources = table.get(tool, {}).get("source", [])
            for source in sources if isinstance(sources, list) else []:
                found.add(source, prefix, directory)
    bundles = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    certificates = [pip.get("cert"), *map(environ.get, bundles)]
    return IndexSettings(
        () if found.no_index else tuple(dict.fromkeys((found.default or [PYPI]) + found.extra)),
        tuple(dict.fromkeys(found.find_links)),
        tuple(dict.fromkeys(found.trusted_hosts)),
        next((path for path in certificates if path and Path(path).is_file()), None),
        pip.get("client-cert"),
        pip.get("proxy"),
    )


def _pip(environ: Mapping[str, str]) -> dict[str, str]:
    """pip's settings: of each key the last that a configuration file or a variable gives."""
    settings: dict[str, str] = {}
    for path in _pip_files(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, configparser.Error):
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                for key, value in parser.items(section):
                    settings[key.replace("_", "-").removeprefix("--")] = value
    for variable, value in environ.items():
        if variable.startswith("PIP_") and value:
            settings[variable[4:].lower().replace("_", "-")] = value
    return settings


def _pip_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Lowest precedence first, as pip's own configuration module has them."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    home = Path(environ.get("HOME") or Path.home())
    yield from (
        Path(directory, "pip/pip.conf")
        for directory in reversed(environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":"))
    )
    yield from (Path("/Library/Application Support/pip/pip.conf"), Path("/etc/pip.conf"))
    if not (named and Path(named).exists()):
        yield home / ".pip/pip.conf"
        yield _config_home(environ) / "pip/pip.conf"
        yield home / "Library/Application Support/pip/pip.conf"
    yield Path(sys.prefix, "pip.conf")
    if named:
        yield Path(named)


def _config_home(environ: Mapping[str, str]) -> Path:
    return Path(
        environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or Path.home(), ".config")
    )


def _add_pip(found: _Found, pip: Mapping[str, str]) -> None:
    if "index-url" in pip:
        found.default.append(pip["index-url"])
    found.extra += pip.get("extra-index-url", "").split()
    found.find_links += pip.get("find-links", "").split()
    found.trusted_hosts += pip.get("trusted-host", "").split()
    found.no_index = _true(pip.get("no-index"))


def _uv_tables(environ: Mapping[str, str]) -> Iterator[tuple[dict[str, Any], Path]]:
    """uv's tables with their files' directories: the system's, the user's, the project's."""
    if _true(environ.get("UV_NO_CONFIG")):
        return
    named = environ.get("UV_CONFIG_FILE")
    paths = (
        [Path(named)] if named else [Path("/etc/uv/uv.toml"), _config_home(environ) / "uv/uv.toml"]
    )
    for path in paths:
        yield _load(path), path.parent
    if named:
        return
    for directory in (Path.cwd(), *Path.cwd().parents):
        if (directory / "uv.toml").is_file():
            yield _load(directory / "uv.toml"), directory
            return
        table = _load(directory / "pyproject.toml").get("tool", {})
        if "uv" in table:
            yield table["uv"], directory
            return


def _pyproject_tables(directory: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """The table ``tool`` of the project that ``directory`` is in."""
    for folder in (directory, *directory.parents):
        if (folder / "pyproject.toml").is_file():
            yield _load(folder / "pyproject.toml").get("tool", {}), folder
            return


def _load(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = toml().loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, toml().TOMLDecodeError):
        return {}
    return document


def _add_uv(found: _Found, table: Mapping[str, Any], directory: Path) -> None:
    for part in (table, table.get("pip", {})):
        if "index-url" in part:
            found.default.append(_located(part["index-url"], directory))
        found.extra += [_located(url, directory) for url in part.get("extra-index-url", [])]
        found.find_links += [_located(url, directory) for url in part.get("find-links", [])]
        found.trusted_hosts += part.get("allow-insecure-host", [])
        found.no_index |= part.get("no-index") is True
        for index in part.get("index", []):
            found.add(index, "UV_INDEX_", directory)


def _add_uv_environment(found: _Found, environ: Mapping[str, str]) -> None:
    def words(variable: str, separators: str = r"\s+") -> Iterable[str]:
        return filter(None, re.split(separators, environ.get(variable, "")))

    for variable in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        for item in words(variable):
            found.named(item, default=True)
    for variable in ("UV_INDEX", "UV_EXTRA_INDEX_URL"):
        for item in words(variable):
            found.named(item)
    found.find_links += words("UV_FIND_LINKS", r"[,\s]+")
    found.trusted_hosts += words("UV_INSECURE_HOST")
    found.no_index |= _true(environ.get("UV_NO_INDEX"))


def _located(url: str, directory: Path) -> str:
    """A URL, or a path that is relative to the file that names it."""
    return url if "://" in url or not url else str(directory / Path(url).expanduser())


def _true(value: str | None) -> bool:
    return (value or "").strip().lower() in ("1", "y", "yes", "t", "true", "on")
