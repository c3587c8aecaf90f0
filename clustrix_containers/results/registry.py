"""Results in the registry that the image came from: artifacts that refer to it.

The container gets a token for this one repository, never what the user logs in with.
https://distribution.github.io/distribution/spec/auth/token/
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clustrix_containers.errors import (
    ClusterError,
    Error,
    ImageError,
    RegistryError,
    ResultError,
    ResultLost,
)
from clustrix_containers.oci.model import Descriptor
from clustrix_containers.registry import Remote
from clustrix_containers.worker.contract import RESULT_ARTIFACT

from .arrival import arrive
from .inline import Stored
from .outcome import MARK_LIMIT, Mark

_PIECE = 1 << 20
_INSTEAD = "Keep the results in S3 or on a volume, or let the container hold them (results: hold)."


def open_store(
    repository: Remote | str, run: str, subject: Descriptor, *, seconds: float
) -> dict[str, Any]:
    """The store of ``run/deliver`` that may push the run's results for so many ``seconds``.

    ``subject`` is the run's image in this repository. ``ClusterError`` if the registry gives no
    token for one repository alone, or one whose life is shorter; ``RegistryError`` if it does
    not let this user push, or does not answer.
    """
    remote = _remote(repository)
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
            f"a token to push to {remote.name} lives {life:.0f} s, and the run may take"
            f" {seconds:.0f} s until its last result is pushed",
            hint=f"Give the run a shorter time. {_INSTEAD}",
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
    """Seconds that the token itself says that it lives, where it can be read.

    ``ClusterError`` if it says that it is good for more than this repository, or does not let push.
    """
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        access = [(it["type"], it["name"], set(it["actions"])) for it in claims.get("access", ())]
        life = float(claims["exp"]) - float(claims["iat"]) if "iat" in claims else float("inf")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        # Some services give a token that only they can read.
        return float("inf")
    own = {
        action
        for kind, it, actions in access
        if (kind, it) == ("repository", repository)
        for action in actions
    }
    others = [
        it for kind, it, actions in access if actions and (kind, it) != ("repository", repository)
    ]
    if others or own - {"pull", "push"}:
        raise ClusterError(
            f"the token service of {name} gives tokens that are good for more than was asked for",
            hint=f"No container gets one. {_INSTEAD}",
        )
    if access and "push" not in own:
        raise ClusterError(
            f"the token service of {name} gives no token to push there",
            hint="Log in with an account that may push: docker login.",
        )
    return life


def fetch(
    repository: Remote | str,
    run: str,
    stored: Stored | None,
    element: int,
    attempt: int,
    directory: Path,
    *,
    key: bytes,
) -> bool:
    """Bring an outcome into ``directory``, where :func:`.directory.collect` finds it.

    ``stored`` is what the termination message said; without it (its pod is gone) the tag of
    this element and attempt is looked up; whether there was one. ``ResultLost`` if the registry
    does not have what the message said, ``RegistryError`` if it cannot be asked.
    """
    remote = _remote(repository)
    reference = (stored and stored.manifest) or f"{_tag(run)}-{attempt}-{element}"
    try:
        manifest = remote.manifest(reference)
    except RegistryError as error:
        if error.status != 404:
            raise
        if stored is None:
            return False
        raise _lost(remote, element) from error
    described = _mark_of(manifest, element)

    def result(mark: Mark) -> Iterator[bytes]:
        return _pieces(
            remote, Descriptor(RESULT_ARTIFACT, f"sha256:{mark.sha256}", mark.size), element
        )

    data = b"".join(_pieces(remote, described, element))
    arrive(directory, element, attempt, data, result, key=key, run=run)
    return True


def _mark_of(manifest: bytes, element: int) -> Descriptor:
    try:
        layers = json.loads(manifest)["layers"]
        kind = f"{RESULT_ARTIFACT}.mark+json"
        found = next(Descriptor.from_json(it) for it in layers if it["mediaType"] == kind)
    except (ValueError, KeyError, TypeError, StopIteration, AttributeError, ImageError) as error:
        raise ResultError(
            f"what the registry keeps for element {element} is no outcome", element=element
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
        f"{remote.name} does not have the result of element {element} any more",
        hint="Somebody, or a rule of the registry, has deleted it.",
        element=element,
    )


def _remote(repository: Remote | str) -> Remote:
    return repository if isinstance(repository, Remote) else Remote(repository)


def _tag(run: str) -> str:
    return f"cxr-{run}"
