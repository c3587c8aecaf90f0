"""The package indexes that the user has configured for pip and uv.

Formats: https://pip.pypa.io/en/stable/topics/configuration/ and
https://docs.astral.sh/uv/concepts/indexes/. The indexes of both are searched: a wheel is used only
where it equals what is installed, so which index it comes from decides nothing.
"""

from __future__ import annotations

import configparser
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from clustrix_containers.packages.requirements import toml

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


def index_settings(environ: Mapping[str, str] | None = None) -> IndexSettings:
    """The settings of this user, environment and working directory. Unreadable files are ignored."""
    environ = os.environ if environ is None else environ
    pip = _pip(environ)
    default: list[str] = []
    extra: list[str] = []
    find_links: list[str] = []
    trusted: list[str] = []
    no_index = False
    tables = [(pip, Path()), *_uv_files(environ), (_uv_variables(environ), Path())]
    for table, directory in tables:
        for part in (table, table.get("pip", {})):
            indexes = [{"url": part.get("index-url", ""), "default": True}]
            indexes += [{"url": url} for url in part.get("extra-index-url", ())]
            indexes += part.get("index", ())
            indexes += [{"url": url, "format": "flat"} for url in part.get("find-links", ())]
            for index in filter(lambda index: index.get("url"), indexes):
                kind = default if index.get("default") else extra
                kind = find_links if index.get("format") == "flat" else kind
                kind.append(_url(index, directory, environ))
            trusted += part.get("allow-insecure-host", ())
            no_index |= part.get("no-index") is True
    bundles = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    certificates = [pip.get("cert"), *map(environ.get, bundles)]
    return IndexSettings(
        () if no_index else tuple(dict.fromkeys((default or [PYPI]) + extra)),
        tuple(dict.fromkeys(find_links)),
        tuple(dict.fromkeys(trusted)),
        next((path for path in certificates if path and Path(path).is_file()), None),
        pip.get("client-cert"),
        pip.get("proxy"),
    )


def _url(index: Mapping[str, Any], directory: Path, environ: Mapping[str, str]) -> str:
    """An index's URL with uv's credentials for its name, or a path relative to ``directory``."""
    url = str(index["url"])
    if "://" not in url:
        return str(directory / Path(url).expanduser())
    variable = "UV_INDEX_" + re.sub(r"[^A-Z0-9]", "_", str(index.get("name", "")).upper())
    user, password = (environ.get(f"{variable}_{it}", "") for it in ("USERNAME", "PASSWORD"))
    parts = urlsplit(url)
    if parts.hostname and (user or password) and "@" not in parts.netloc:
        credentials = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return parts._replace(netloc=f"{credentials}@{parts.netloc}").geturl()
    return url


def _pip(environ: Mapping[str, str]) -> dict[str, Any]:
    """pip's settings: variables before [install] before [global], a later file before an earlier.

    Their keys and types are those of uv's tables.
    """
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = lambda key: key.lower().replace("_", "-").removeprefix("--")  # type: ignore[method-assign,assignment]
    for path in _pip_files(environ):
        with suppress(UnicodeDecodeError, configparser.Error):
            parser.read(path, "utf-8")
    sections = [dict(parser[name]) for name in ("global", "install") if name in parser]
    variables = {
        name[4:].lower().replace("_", "-"): value
        for name, value in environ.items()
        if name.startswith("PIP_") and value
    }
    settings: dict[str, Any] = {}
    for part in (*sections, variables):
        settings.update(part)
    settings["allow-insecure-host"] = settings.pop("trusted-host", "")
    for key in ("extra-index-url", "find-links", "allow-insecure-host"):
        settings[key] = settings.get(key, "").split()
    return {**settings, "no-index": _true(settings.get("no-index"))}


def _pip_files(environ: Mapping[str, str]) -> list[Path]:
    """Lowest precedence first, as pip's own configuration module has them."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    folders = environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
    paths = [Path(folder, "pip/pip.conf") for folder in reversed(folders)]
    paths += [Path("/Library/Application Support/pip/pip.conf"), Path("/etc/pip.conf")]
    if not (named and Path(named).exists()):
        home = Path(environ.get("HOME") or Path.home())
        user = (
            home / ".pip",
            _config_home(environ) / "pip",
            home / "Library/Application Support/pip",
        )
        paths += [folder / "pip.conf" for folder in user]
    return [*paths, Path(sys.prefix, "pip.conf"), *([Path(named)] if named else [])]


def _config_home(environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME") or Path.home()
    return Path(environ.get("XDG_CONFIG_HOME") or Path(home, ".config"))


def _uv_files(environ: Mapping[str, str]) -> Iterator[tuple[dict[str, Any], Path]]:
    """uv's tables with their files' directories: the system's, the user's, the project's."""
    if _true(environ.get("UV_NO_CONFIG")):
        return
    if named := environ.get("UV_CONFIG_FILE"):
        yield _load(Path(named)), Path(named).parent
        return
    for path in (Path("/etc/uv/uv.toml"), _config_home(environ) / "uv/uv.toml"):
        yield _load(path), path.parent
    for directory in (Path.cwd(), *Path.cwd().parents):
        if (directory / "uv.toml").is_file():
            yield _load(directory / "uv.toml"), directory
            return
        table = _load(directory / "pyproject.toml").get("tool", {})
        if "uv" in table:
            yield table["uv"], directory
            return


def _load(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = toml().loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, toml().TOMLDecodeError):
        return {}
    return document


def _uv_variables(environ: Mapping[str, str]) -> dict[str, Any]:
    """uv's environment variables by the keys of its tables; an index is ``URL`` or ``NAME=URL``."""
    indexes = []
    for variable in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"):
        for item in environ.get(variable, "").split():
            match = re.fullmatch(r"(?:([A-Za-z0-9._-]+)=)?(.+)", item)
            assert match is not None
            default = variable in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")
            indexes.append({"name": match[1] or "", "url": match[2], "default": default})
    return {
        "index": indexes,
        "find-links": re.split(r"[,\s]+", environ.get("UV_FIND_LINKS", "")),
        "allow-insecure-host": environ.get("UV_INSECURE_HOST", "").split(),
        "no-index": _true(environ.get("UV_NO_INDEX")),
    }


def _true(value: str | None) -> bool:
    return (value or "").strip().lower() in ("1", "y", "yes", "t", "true", "on")
