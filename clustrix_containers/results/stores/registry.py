"""Results in the registry that the image came from: artifacts that refer to it.

The container gets a token for this one repository, never what the user logs in with.
https://distribution.github.io/distribution/spec/auth/token/
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from clustrix_containers.errors import (
    ClusterError,
    Error,
    ImageError,
    RegistryError,
    ResultError,
    ResultLost,
)
from clustrix_containers.oci.model import MANIFEST, Descriptor
from clustrix_containers.registry import Remote
from clustrix_containers.results.delivery import Stored
from clustrix_containers.results.directory import arrive
from clustrix_containers.results.outcome import MARK_LIMIT, Expected, Mark
from clustrix_containers.worker.contract import RESULT_ARTIFACT

_PIECE = 1 << 20
_INSTEAD = "Keep the results in S3 or on a volume, or in the container (results: hold)."


@dataclass(frozen=True)
class RegistryStore:
    """In ``repository`` (None: the image's own). ``expires``: seconds for which a container may push."""

    repository: str | None = None
    expires: float = 3600.0
    kind: ClassVar[str] = "registry"
    _lock: threading.Lock = field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )
    _remotes: dict[str, Remote] = field(default_factory=dict, init=False, repr=False, compare=False)

    def open(self, run: str, image: str, seconds: float) -> dict[str, Any]:
        """As all stores: a token for one repository; see :func:`open_store`."""
        name, _, digest = image.rpartition("@")
        subject = Descriptor(MANIFEST, digest, len(self._remote(name).manifest(digest)))
        remote = self._remote(self.repository or name)
        return open_store(remote, run, subject, seconds=max(seconds, self.expires))

    def fetch(self, expected: Expected, stored: Stored | None, image: str) -> bool:
        """As all stores; without ``stored`` the tag of this element and attempt is looked up."""
        return fetch(self._remote(self.repository or image.rpartition("@")[0]), expected, stored)

    def describe(self) -> str:
        return f"larger ones go to {self.repository or 'the repository of the image'}"

    def _remote(self, name: str) -> Remote:
        """One for each repository: its connections and its token serve all runs and threads."""
        with self._lock:
            if name not in self._remotes:
                self._remotes[name] = Remote(name)
            return self._remotes[name]


def open_store(remote: Remote, run: str, subject: Descriptor, *, seconds: float) -> dict[str, Any]:
    """The store of ``run/deliver`` that may push the run's results for at least ``seconds``.

    ``subject`` is the run's image in this repository. ``ClusterError`` if the registry gives no
    token for one repository alone, or one whose life is shorter; ``RegistryError`` if it does
    not let this user push, or does not answer.
    """
    try:
        loan = remote.scoped_token()
    except RegistryError as error:
        if error.status is not None or error.temporary:
            raise
        raise ClusterError(
            f"{remote.name} cannot take the results of containers: {error.message}",
            hint=f"Your own credentials never leave this machine. {_INSTEAD}",
        ) from error
    life = loan.seconds
    if loan.token:
        life = min(life, _inspect(loan.token, remote.reference.repository, remote.name))
    if life < seconds:
        raise ClusterError(
            f"a token to push to {remote.name} is valid for {life:.0f} s, and the run may take"
            f" {seconds:.0f} s until its last result is pushed",
            hint=f"Shorten expires and timeout. {_INSTEAD}",
        )
    return {
        "kind": "registry",
        "base": loan.origin,
        "repository": remote.reference.repository,
        "token": loan.token or None,
        "tag": _tag(run),
        "subject": Descriptor(subject.media_type, subject.digest, subject.size).to_json(),
        "ca": loan.authorities or None,
    }


def _inspect(token: str, repository: str, name: str) -> float:
    """Seconds for which a token is valid by its own claims, where they can be read.

    ``ClusterError`` if it is good for more than this repository, or does not allow pushing.
    """
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        access = [(it["type"], it["name"], set(it["actions"])) for it in claims.get("access", ())]
        life = float(claims["exp"]) - float(claims["iat"]) if "iat" in claims else float("inf")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        # Opaque: only the service itself can read it.
        return float("inf")
    own: set[str] = set().union(*(it[2] for it in access if it[:2] == ("repository", repository)))
    others = any(it[2] for it in access if it[:2] != ("repository", repository))
    if others or own - {"pull", "push"}:
        raise ClusterError(
            f"the token service of {name} gives tokens that are good for more than was requested",
            hint=f"No container gets one. {_INSTEAD}",
        )
    if access and "push" not in own:
        raise ClusterError(
            f"the token service of {name} gives no token for pushing",
            hint="Log in with an account that may push: docker login.",
        )
    return life


def fetch(remote: Remote, expected: Expected, stored: Stored | None) -> bool:
    """Bring an outcome from a repository; see :meth:`RegistryStore.fetch`."""
    element = expected.element
    tag = f"{_tag(expected.run)}-{expected.attempt}-{element}"
    reference = (stored and stored.manifest) or tag
    try:
        manifest = remote.manifest(reference)
    except RegistryError as error:
        if error.status != 404:
            raise
        if stored is None:
            return False
        raise _lost(remote, element) from error
    data = b"".join(_pieces(remote, _mark_of(manifest, element), element))

    def result(mark: Mark) -> Iterator[bytes]:
        described = Descriptor(RESULT_ARTIFACT, f"sha256:{mark.sha256}", mark.size)
        return _pieces(remote, described, element)

    arrive(expected, data, result)
    return True


def _mark_of(manifest: bytes, element: int) -> Descriptor:
    try:
        layers = json.loads(manifest)["layers"]
        kind = f"{RESULT_ARTIFACT}.mark+json"
        found = next(Descriptor.from_json(it) for it in layers if it["mediaType"] == kind)
    except (ValueError, KeyError, TypeError, StopIteration, AttributeError, ImageError) as error:
        raise ResultError(
            f"the registry's artifact of element {element} is not an outcome", element=element
        ) from error
    if not 0 < found.size <= MARK_LIMIT:
        raise ResultError(f"the mark of element {element} is too large", element=element)
    return found


def _pieces(remote: Remote, descriptor: Descriptor, element: int) -> Iterator[bytes]:
    try:
        with remote.open_blob(descriptor) as blob:
            while piece := blob.read(_PIECE):
                yield piece
    except RegistryError as error:
        if error.status == 404:
            raise _lost(remote, element) from error
        raise


def _lost(remote: Remote, element: int) -> Error:
    return ResultLost(
        f"the result of element {element} no longer exists in {remote.name}",
        hint="Somebody, or a rule of the registry, has deleted it.",
        element=element,
    )


def _tag(run: str) -> str:
    return f"cxr-{run}"
