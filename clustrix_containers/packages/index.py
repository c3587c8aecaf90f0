"""Finds wheels on the user's package indexes and downloads them.

:mod:`unearth` knows the protocols (PEP 503, PEP 691, flat listings), netrc and keyring. It is
imported here, and this module only where a wheel has to be fetched.
"""

from __future__ import annotations

import hashlib
import logging
import ssl
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from packaging.utils import parse_wheel_filename
from packaging.version import InvalidVersion, Version
from unearth import Link as Link
from unearth import PackageFinder, TargetPython
from unearth.auth import MultiDomainBasicAuth
from unearth.collector import is_secure_origin
from unearth.fetchers import PyPIClient

from clustrix_containers.errors import DependencyError
from clustrix_containers.remote.retry import Retry

from .settings import IndexSettings

CONNECT_TIMEOUT = 5.0
"""Seconds to wait for a connection: a machine that is offline is to know soon."""

READ_TIMEOUT = 30.0
"""Seconds to wait for the next bytes of a response."""

RETRY = Retry(attempts=3, first=0.3, longest=3.0, patience=10.0)

_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 527})
_CHUNK = 1 << 17

# unearth warns of every index that lacks a package.
logging.getLogger("unearth").addHandler(logging.NullHandler())


class _Client(PyPIClient):
    """Raises DependencyError where an index does not answer; unearth would only log it."""

    def get(self, url: Any, **options: Any) -> httpx2.Response:
        def once() -> httpx2.Response:
            with _readable_errors(str(url)):
                response = super(_Client, self).get(url, **options)
            if response.status_code not in (200, 404):
                raise _refusal(response)
            return response

        return RETRY.run(once)


class _readable_errors:  # noqa: N801 - a context manager
    """Turns httpx's errors into a DependencyError that says whether trying again can help."""

    def __init__(self, url: str) -> None:
        self.host = urlsplit(url).hostname or url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)):
            raise DependencyError(f"cannot connect to {self.host}: {_reason(error)}") from error
        if isinstance(error, httpx2.TransportError):
            raise DependencyError(
                f"the connection to {self.host} failed: {_reason(error)}", temporary=True
            ) from error
        if isinstance(error, (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError)):
            raise DependencyError(f"{self.host}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _refusal(response: httpx2.Response) -> DependencyError:
    status = response.status_code
    after = response.headers.get("Retry-After", "")
    credentials = " (no valid credentials in its URL, netrc or keyring)" if status == 401 else ""
    return DependencyError(
        f"{response.url.host} responded {status} {response.reason_phrase}{credentials}",
        temporary=status in _TEMPORARY,
        retry_after=float(after) if after.isdecimal() else None,
    )


class PackageIndexes:
    """All indexes of one :class:`IndexSettings`; may be used by several threads.

    ``failures`` has, by index, why it could not be searched. Such an index is not tried again.
    """

    def __init__(self, settings: IndexSettings) -> None:
        verify: ssl.SSLContext | bool = True
        if settings.certificates:
            verify = ssl.create_default_context(cafile=settings.certificates)
        # Any: httpx's Response is not quite unearth's protocol of one.
        self._client: Any = _Client(
            trusted_hosts=settings.trusted_hosts,
            verify=verify,
            cert=settings.client_certificate,
            proxy=settings.proxy,
            follow_redirects=True,
            timeout=(CONNECT_TIMEOUT, READ_TIMEOUT, READ_TIMEOUT, READ_TIMEOUT),
        )
        self._client.auth = MultiDomainBasicAuth(prompting=False, index_urls=settings.indexes)
        self._finders = {
            **{url: self._finder(find_links=url) for url in settings.find_links},
            **{url: self._finder(index=url) for url in settings.indexes},
        }
        self._guard = threading.Lock()
        self.failures: dict[str, str] = {}

    def _finder(self, *, index: str = "", find_links: str = "") -> PackageFinder:
        return PackageFinder(
            self._client,
            index_urls=filter(None, [index]),
            find_links=filter(None, [find_links]),
            # A lock may be of another machine, so tags are the caller's business.
            ignore_compatibility=True,
            target_python=TargetPython(py_ver=sys.version_info[:3]),
            only_binary=[":all:"],
        )

    def __bool__(self) -> bool:
        """Whether any index or listing is configured."""
        return bool(self._finders)

    @property
    def all_failed(self) -> bool:
        """Whether none of them could be searched."""
        return len(self.failures) == len(self._finders)

    def __enter__(self) -> PackageIndexes:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def wheels(self, name: str, version: str) -> list[Link]:
        """The wheels of exactly this version, the best tags for this interpreter first."""
        found: dict[tuple[str, str], Link] = {}
        for url, finder in self._finders.items():
            if url in self.failures:
                continue
            try:
                if "://" in url and not is_secure_origin(self._client, Link(url)):
                    raise DependencyError(f"{urlsplit(url).hostname} is neither https nor trusted")
                packages = finder.find_all_packages(name, allow_yanked=True)
                links = [p.link for p in packages if _same(p.version, version)]
            except (DependencyError, OSError, ValueError) as error:
                with self._guard:
                    self.failures[url] = getattr(error, "message", str(error))
                continue
            for link in links:
                digest = (link.hash_option or {}).get("sha256", [link.normalized])[0]
                found.setdefault((link.filename, digest), link)
        return list(found.values())

    def download(self, link: Link, folder: Path) -> Path:
        """The file of a link: downloaded into ``folder``, or where it lies if it is local.

        Interrupted transfers are resumed, a few times. DependencyError: it cannot be had, or
        it does not have the hash that the index states.
        """
        if link.is_file:
            if not link.file_path.is_file():
                raise DependencyError(f"{link.file_path} does not exist")
            _check_hash(link, link.file_path)
            return link.file_path
        path = folder / link.filename
        RETRY.run(lambda: self._transfer(link, path))
        return path

    def _transfer(self, link: Link, path: Path) -> None:
        have = path.stat().st_size if path.exists() and link.hash_option else 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with (
            _readable_errors(link.normalized),
            self._client.get_stream(link.normalized, headers=headers) as response,
        ):
            if response.status_code not in (200, 206, 416):
                raise _refusal(response)
            if response.status_code != 416:
                with path.open("ab" if response.status_code == 206 else "wb") as file:
                    for chunk in response.iter_bytes(_CHUNK):
                        file.write(chunk)
        try:
            _check_hash(link, path)
        except DependencyError:
            path.unlink()
            raise


def _same(candidate: str | None, version: str) -> bool:
    """Whether a version is this one, local part included."""
    try:
        return candidate is not None and Version(candidate) == Version(version)
    except InvalidVersion:
        return candidate == version


def _check_hash(link: Link, path: Path) -> None:
    for algorithm, (expected, *_) in (link.hash_option or {}).items():
        digest = hashlib.new(algorithm, usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            raise DependencyError(
                f"{link.filename} does not have the {algorithm} that the index states",
                temporary=not link.is_file,
            )


def usable(links: Sequence[Link], installed_tags: frozenset[str]) -> Iterator[Link]:
    """The wheels that this interpreter can use; those with the tags of the installed one first."""
    from packaging.tags import sys_tags

    supported = set(map(str, sys_tags()))
    ranked: list[tuple[bool, Link]] = []
    for link in links:
        tags = frozenset(map(str, parse_wheel_filename(link.filename)[3]))
        if tags & (supported | installed_tags):
            ranked.append((not tags & installed_tags, link))
    yield from (link for _, link in sorted(ranked, key=lambda pair: pair[0]))


def public_url(link: Link) -> str | None:
    """Where a wheel came from, without credentials and hash; ``None`` for a local file."""
    if link.is_file:
        return None
    parts = urlsplit(link.url_without_fragment)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
