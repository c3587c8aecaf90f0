"""Finds wheels on the user's package indexes and downloads them.

:mod:`unearth` knows the protocols (PEP 503, PEP 691, flat listings), netrc and keyring. It is
imported here, and this module only where a wheel has to be fetched.
"""

from __future__ import annotations

import logging
import ssl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename
from unearth import Link as Link
from unearth import PackageFinder, TargetPython
from unearth.auth import MultiDomainBasicAuth
from unearth.collector import is_secure_origin
from unearth.errors import UnpackError
from unearth.fetchers import PyPIClient
from unearth.preparer import download_link

from clustrix_containers.errors import DependencyError
from clustrix_containers.remote.retry import Retry

from .settings import IndexSettings
from .wheel import same_version

CONNECT_TIMEOUT = 5.0
"""Seconds to wait for a connection: short, since a machine may be offline."""

READ_TIMEOUT = 30.0
"""Seconds to wait for the next bytes of a response."""

RETRY = Retry(attempts=3, first=0.3, longest=3.0, patience=10.0)

_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 527})

# unearth warns of every index that lacks a package.
logging.getLogger("unearth").addHandler(logging.NullHandler())


class _Client(PyPIClient):
    """Raises DependencyError where an index fails; unearth would only log it."""

    def send(
        self, request: httpx2.Request, *, stream: bool = False, **options: Any
    ) -> httpx2.Response:
        with _readable_errors(request.url.host):
            response = super().send(request, stream=stream, **options)
        status = response.status_code
        # A page that is missing is a package that the index does not have.
        if status == 200 or (status == 404 and not stream):
            return response
        response.close()
        after = response.headers.get("Retry-After", "")
        hint = " (no valid credentials in its URL, netrc or keyring)" if status == 401 else ""
        raise DependencyError(
            f"{request.url.host} responded {status} {response.reason_phrase}{hint}",
            temporary=status in _TEMPORARY,
            retry_after=float(after) if after.isdecimal() else None,
        )


@contextmanager
def _readable_errors(host: str) -> Iterator[None]:
    """Turns httpx's errors into a DependencyError with whether another attempt can help."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)):
            raise DependencyError(f"cannot connect to {host}: {reason}") from error
        temporary = isinstance(error, httpx2.TransportError)
        raise DependencyError(f"{host}: {reason}", temporary=temporary) from error


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
        finder = partial(
            PackageFinder,
            self._client,  # type: ignore[arg-type]
            # A lock may be for another machine, so the caller compares tags.
            ignore_compatibility=True,
            target_python=TargetPython(py_ver=sys.version_info[:3]),
            only_binary=[":all:"],
        )
        self._finders = {url: finder(find_links=[url]) for url in settings.find_links}
        self._finders |= {url: finder(index_urls=[url]) for url in settings.indexes}
        self.failures: dict[str, str] = {}

    def why_none(self) -> str:
        """Why the indexes have no wheel of something, with those that could not be searched."""
        failures = "; ".join(dict.fromkeys(self.failures.values()))
        if not self._finders:
            return "no package index is configured"
        if len(self.failures) == len(self._finders):
            return f"no package index responded ({failures})"
        lacking = "the package index has no wheel of it for this Python and machine"
        return f"{lacking} ({failures})" if failures else lacking

    def close(self) -> None:
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
                packages = RETRY.run(lambda: list(finder.find_all_packages(name, True)))  # noqa: B023
            except (DependencyError, OSError, ValueError) as error:
                self.failures[url] = getattr(error, "message", str(error))
                continue
            for link in [
                package.link for package in packages if same_version(package.version or "", version)
            ]:
                digest = (link.hash_option or {}).get("sha256", [link.normalized])[0]
                found.setdefault((link.filename, digest), link)
        return list(found.values())

    def download(self, link: Link, folder: Path) -> Path:
        """The file of a link: downloaded into ``folder``, or its own path if it is local.

        Interrupted transfers are tried again, a few times. DependencyError or OSError: the
        download failed, or the file does not have the hash that the index states.
        """

        def once() -> Path:
            (folder / link.filename).unlink(missing_ok=True)
            try:
                with _readable_errors(urlsplit(link.normalized).hostname or link.filename):
                    return download_link(self._client, link, folder, link.hash_option)
            except UnpackError as error:
                message = " ".join(str(error).split())
                raise DependencyError(message, temporary=not link.is_file) from error

        return RETRY.run(once)


def usable(links: Sequence[Link], installed_tags: frozenset[str]) -> list[Link]:
    """The wheels that this interpreter can use; those with the tags of the installed one first."""
    supported = installed_tags.union(map(str, sys_tags()))
    tags = {link: set(map(str, parse_wheel_filename(link.filename)[3])) for link in links}
    fitting = [link for link in links if tags[link] & supported]
    return sorted(fitting, key=lambda link: not tags[link] & installed_tags)
