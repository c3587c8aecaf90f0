"""Results in an S3 bucket: what a container may do there, and how the client takes them.

The container gets one POST policy for its run: it may write below one key prefix, for a time,
and it can read nothing. https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-HTTPPOSTConstructPolicy.html
"""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustrix_containers.errors import ClusterError, ConfigError, ResultError, ResultLost

from .arrival import arrive
from .inline import Stored
from .outcome import MARK_LIMIT, Mark

LONGEST = 7 * 24 * 3600
"""Seconds: how long S3 believes a signature."""

SESSION = 36 * 3600
"""Seconds: no session token of AWS lives longer, also where it does not say how long."""

LARGEST = 5 << 30
"""Bytes: what S3 takes in one POST."""

_CA_LIMIT = 512 << 10
_PIECE = 1 << 20
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Options:
    """Where results go. ``endpoint``: a URL, for what is not AWS; it is addressed by path.

    Credentials, and ``region`` where it is not given, are those of the AWS ``profile``
    (None: as boto3 finds them: variables, files, an instance's role).
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None

    def keys(self, run: str) -> str:
        """The prefix of all keys of a run."""
        return "/".join([*filter(None, [self.prefix.strip("/")]), run, ""])


def presign(options: Options, run: str, *, seconds: float) -> dict[str, Any]:
    """The store of ``run/deliver`` that may write the run's results for so many ``seconds``.

    ``ClusterError`` if there are no credentials, or if theirs or a signature's life is
    shorter. ``ConfigError`` if boto3 is missing or the options name no profile or region.
    """
    if seconds > LONGEST:
        raise ClusterError(
            f"a signature for S3 lives {_span(LONGEST)}, and the run may take {_span(seconds)}",
            hint="Give it a shorter time to wait and run, or keep results in a registry or a volume.",
        )
    with _failures(options), _client(options) as (session, client):
        _check_life(session, options, seconds)
        prefix = options.keys(run)
        signed = client.generate_presigned_post(
            options.bucket,
            prefix + "${filename}",
            Conditions=[["content-length-range", 0, LARGEST]],
            ExpiresIn=int(seconds) + 1,
        )
        authorities = session.get_config_variable("ca_bundle")
    return {
        "kind": "s3",
        "url": signed["url"],
        "fields": {name: it for name, it in signed["fields"].items() if name != "key"},
        "prefix": prefix,
        "ca": _pem(Path(authorities)) if authorities else None,
    }


def fetch(
    options: Options,
    run: str,
    stored: Stored | None,
    element: int,
    attempt: int,
    directory: Path,
    *,
    key: bytes,
) -> bool:
    """Bring an outcome into ``directory``, where :func:`.directory.collect` finds it.

    ``stored`` is what the termination message said; without it (its pod is gone) the bucket is
    asked for marks of this element and attempt, and the oldest valid one counts; whether there
    was one. ``ResultLost`` if the bucket does not have what the message said,
    ``ClusterError`` (``temporary``) if it cannot be asked.
    """
    prefix = options.keys(run)
    with _failures(options), _client(options) as (_, client):
        bucket = _Bucket(client, options.bucket)
        names = [prefix + stored.mark] if stored else bucket.marks(f"{prefix}{element}.{attempt}.")
        refused: ResultError | None = None
        for name in names:
            if not re.fullmatch(
                rf"{element}\.{attempt}\.[0-9a-f]{{16}}\.mark", name[len(prefix) :]
            ):
                continue
            data = b"".join(bucket.pieces(name, MARK_LIMIT))

            def result(mark: Mark) -> Iterator[bytes]:
                part = f"{element}.{attempt}.{mark.sha256[:16]}.result"
                return bucket.pieces(prefix + part, mark.size)

            try:
                arrive(directory, element, attempt, data, result, key=key, run=run)
            except ResultError as error:
                refused = error
                continue
            return True
    if refused is not None:
        raise refused
    if stored:
        raise ResultError(
            f"the message of element {element} names the mark of another: {stored.mark}",
            element=element,
        )
    return False


class _Bucket:
    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._name = name

    def marks(self, prefix: str) -> list[str]:
        """Keys of marks, the oldest first."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._name, Prefix=prefix
        )
        found = [
            (it["LastModified"], it["Key"])
            for page in pages
            for it in page.get("Contents", ())
            if it["Key"].endswith(".mark")
        ]
        return [name for _, name in sorted(found)]

    def pieces(self, name: str, largest: int) -> Iterator[bytes]:
        """An object's bytes; goes on where a connection broke off."""
        from botocore.exceptions import (
            HTTPClientError,
            IncompleteReadError,
            ReadTimeoutError,
            ResponseStreamingError,
        )

        broken = (HTTPClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
        at, failures = 0, 0
        more: dict[str, str] = {}
        while True:
            body, size, tag = self._open(name, more)
            if at + size > largest:
                body.close()
                raise ResultError(f"{name} has more bytes than its worker wrote: {at + size:,}")
            try:
                while piece := body.read(_PIECE):
                    at, failures = at + len(piece), 0
                    yield piece
                return
            except broken:
                failures += 1
                if failures == _TRIES:
                    raise
                time.sleep(0.5 * 2**failures)
                # The same object, or an error: not the beginning of one and the end of another.
                more = {"Range": f"bytes={at}-", "IfMatch": tag}
            finally:
                body.close()

    def _open(self, name: str, more: dict[str, str]) -> tuple[Any, int, str]:
        from botocore.exceptions import ClientError

        try:
            answer = self._client.get_object(Bucket=self._name, Key=name, **more)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                raise ResultLost(
                    f"the bucket {self._name} does not have {name}",
                    hint="Somebody, or a rule of the bucket, has deleted it.",
                ) from error
            raise
        return answer["Body"], int(answer["ContentLength"]), answer["ETag"]


@contextlib.contextmanager
def _client(options: Options) -> Iterator[tuple[Any, Any]]:
    try:
        from botocore.config import Config
        from botocore.session import Session
    except ImportError as error:
        raise ConfigError(
            "results in S3 need boto3, which is not installed",
            hint='Run: pip install "clustrix-containers[s3]"',
        ) from error
    session = Session(profile=options.profile)
    more: dict[str, Any] = {"s3": {"addressing_style": "path"}} if options.endpoint else {}
    config = Config(
        signature_version="s3v4",
        retries={"mode": "standard", "total_max_attempts": _TRIES},
        connect_timeout=15,
        **more,
    )
    client = session.create_client(
        "s3", region_name=options.region, endpoint_url=options.endpoint, config=config
    )
    try:
        yield session, client
    finally:
        client.close()


def _check_life(session: Any, options: Options, seconds: float) -> None:
    credentials = session.get_credentials()
    if credentials is None:
        raise ClusterError(
            f"there are no AWS credentials to write to the bucket {options.bucket}",
            hint="Set a profile (aws configure), or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        )
    frozen = credentials.get_frozen_credentials()
    lives: float | None = None
    if hasattr(credentials, "refresh_needed"):
        # What they sign ends with them, though boto3 gets new ones by itself.
        end = getattr(credentials, "_expiry_time", None)
        if isinstance(end, datetime.datetime):
            lives = (end - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
        elif credentials.refresh_needed(refresh_in=int(seconds) + 1):
            lives = 0.0
    elif frozen.token:
        lives = SESSION
    if lives is not None and lives < seconds:
        raise ClusterError(
            f"the AWS credentials live {_span(max(0.0, lives))} more at most, and the run may take"
            f" {_span(seconds)} until its last result is written",
            hint="What they sign ends with them: use a user's access key or a longer session,"
            " give the run a shorter time, or keep results in a registry or a volume.",
        )


@contextlib.contextmanager
def _failures(options: Options) -> Iterator[None]:
    """What boto3 raises, in a user's words; nothing secret is in its messages."""
    try:
        from botocore import exceptions
    except ImportError:
        yield
        return
    where = f"the bucket {options.bucket}" + (f" at {options.endpoint}" if options.endpoint else "")
    try:
        yield
    except (
        exceptions.ProfileNotFound,
        exceptions.NoRegionError,
        exceptions.InvalidRegionError,
        exceptions.ParamValidationError,
        exceptions.ConfigParseError,
        ValueError,
    ) as error:
        raise ConfigError(f"the results store {where} is not usable: {error}") from error
    except exceptions.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise ClusterError(
            f"{where} refused: {error}",
            hint="Check its name and region, and what your credentials may do there.",
            temporary=status in (408, 429) or status >= 500,
        ) from error
    except exceptions.BotoCoreError as error:
        raise ClusterError(f"{where} cannot be reached: {error}", temporary=True) from error


def _pem(path: Path) -> str:
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the certificates for S3 cannot be read: {error}") from error
    if len(text) > _CA_LIMIT:
        raise ConfigError(
            f"{path} is too large to be handed to a container: {len(text):,} bytes",
            hint="Let AWS_CA_BUNDLE (or ca_bundle of the profile) name only the authority of S3.",
        )
    return text


def _span(seconds: float) -> str:
    """A duration as people say it."""
    for name, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.0f} seconds"
