"""Results in an S3 bucket: what a container may do there, and how the client fetches them.

The container gets one POST policy for its run: it may write below one key prefix, for a time,
and it can read nothing. https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-HTTPPOSTConstructPolicy.html
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from clustrix_containers.errors import ClusterError, ConfigError, ResultError, ResultLost
from clustrix_containers.remote.retry import Retry
from clustrix_containers.results.delivery import Stored
from clustrix_containers.results.directory import arrive
from clustrix_containers.results.outcome import MARK_LIMIT, Expected, Mark

MAX_SIGNATURE = 7 * 24 * 3600
"""Seconds: how long a signature of S3 is valid at most."""

MAX_SESSION = 36 * 3600
"""Seconds: no session token of AWS lives longer, also where its end is not known."""

MAX_POST = 5 << 30
"""Bytes: what S3 takes in one POST."""

_CA_LIMIT = 512 << 10
_PIECE = 1 << 20
_RETRY = Retry(attempts=5, first=1.0, longest=16.0)


@dataclass(frozen=True)
class S3Store:
    """Below ``prefix`` of a ``bucket``. ``endpoint``: a URL, for what is not AWS (path style).

    Credentials, and ``region`` where it is not given, are those of the AWS ``profile``
    (None: as boto3 finds them: variables, files, an instance's role). ``expires``: seconds for
    which a container may write at least.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    expires: float = 86400.0
    kind: ClassVar[str] = "s3"
    _lock: threading.Lock = field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )

    def keys(self, run: str) -> str:
        """The prefix of all keys of a run."""
        return "/".join([*filter(None, [self.prefix.strip("/")]), run, ""])

    def open(self, run: str, image: str, seconds: float) -> dict[str, Any]:  # noqa: ARG002
        """As all stores: a policy under which the run's results may be written.

        ``ClusterError`` if there are no credentials, or if they or a signature do not live long
        enough. ``ConfigError`` if boto3 is missing, or the options name no profile or region.
        """
        seconds = max(seconds, self.expires)
        if seconds > MAX_SIGNATURE:
            raise ClusterError(
                f"a signature of S3 is valid for {_span(MAX_SIGNATURE)}, and the run may take"
                f" {_span(seconds)}",
                hint="Shorten expires and timeout, or keep results in a registry or on a volume.",
            )
        with self._errors():
            session, client = self._connected()
            _check_life(session, self.bucket, seconds)
            prefix = self.keys(run)
            signed = client.generate_presigned_post(
                self.bucket,
                prefix + "${filename}",
                Conditions=[["content-length-range", 0, MAX_POST]],
                ExpiresIn=int(seconds) + 1,
            )
            authorities = session.get_config_variable("ca_bundle")
        return {
            "kind": self.kind,
            "url": signed["url"],
            "fields": {name: it for name, it in signed["fields"].items() if name != "key"},
            "prefix": prefix,
            "ca": _pem(Path(authorities)) if authorities else None,
        }

    def fetch(self, expected: Expected, stored: Stored | None, image: str) -> bool:  # noqa: ARG002
        """As all stores; without ``stored`` the oldest valid mark counts."""
        prefix = self.keys(expected.run)
        with self._errors():
            bucket = _Bucket(self._connected()[1], self.bucket)

            def result(mark: Mark) -> Iterator[bytes]:
                return bucket.pieces(prefix + mark.result_name, mark.size)

            names = [prefix + stored.mark] if stored else bucket.marks(prefix + expected.prefix)
            refused: ResultError | None = None
            for name in names:
                if not expected.is_mark(name.removeprefix(prefix)):
                    continue
                data = b"".join(bucket.pieces(name, MARK_LIMIT))
                try:
                    arrive(expected, data, result)
                except ResultError as error:
                    refused = error
                    continue
                return True
        if refused is not None:
            raise refused
        if stored:
            raise ResultError(
                f"the message of element {expected.element} names another's mark: {stored.mark}",
                element=expected.element,
            )
        return False

    def describe(self) -> str:
        return f"larger ones go to the S3 bucket {self.bucket}"

    def _connected(self) -> tuple[Any, Any]:
        """The session and its client: made once, for all runs and threads."""
        with self._lock:
            return self._connection

    @functools.cached_property
    def _connection(self) -> tuple[Any, Any]:
        from botocore.config import Config
        from botocore.session import Session

        session = Session(profile=self.profile)
        style: dict[str, Any] = {"s3": {"addressing_style": "path"}} if self.endpoint else {}
        config = Config(
            signature_version="s3v4",
            retries={"mode": "standard", "total_max_attempts": _RETRY.attempts},
            connect_timeout=15,
            **style,
        )
        client = session.create_client(
            "s3", region_name=self.region, endpoint_url=self.endpoint, config=config
        )
        return session, client

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what boto3 raises into our errors; nothing secret is in its messages."""
        try:
            from botocore import exceptions
        except ImportError as error:
            raise ConfigError(
                "results in S3 need boto3, which is not installed",
                hint='Run: pip install "clustrix-containers[s3]"',
            ) from error
        where = f"the bucket {self.bucket}" + (f" at {self.endpoint}" if self.endpoint else "")
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

    def pieces(self, name: str, max_size: int) -> Iterator[bytes]:
        """An object's bytes; resumes where a connection broke off."""
        from botocore.exceptions import (
            HTTPClientError,
            IncompleteReadError,
            ReadTimeoutError,
            ResponseStreamingError,
        )

        broken = (HTTPClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
        at, failures = 0, 0
        resume: dict[str, str] = {}
        while True:
            body, size, tag = self._open(name, resume)
            if at + size > max_size:
                body.close()
                raise ResultError(f"{name} is longer than what its worker wrote: {at + size:,}")
            try:
                while piece := body.read(_PIECE):
                    at, failures = at + len(piece), 0
                    yield piece
                return
            except broken as error:
                failures += 1
                delay = _RETRY.delay(failures, ClusterError(str(error), temporary=True))
                if delay is None:
                    raise
                time.sleep(delay)
                # The same object, or an error: not the beginning of one and the end of another.
                resume = {"Range": f"bytes={at}-", "IfMatch": tag}
            finally:
                body.close()

    def _open(self, name: str, resume: dict[str, str]) -> tuple[Any, int, str]:
        from botocore.exceptions import ClientError

        try:
            response = self._client.get_object(Bucket=self._name, Key=name, **resume)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                raise ResultLost(
                    f"the bucket {self._name} does not have {name}",
                    hint="Somebody, or a rule of the bucket, has deleted it.",
                ) from error
            raise
        return response["Body"], int(response["ContentLength"]), response["ETag"]


def _check_life(session: Any, bucket: str, seconds: float) -> None:
    credentials = session.get_credentials()
    if credentials is None:
        raise ClusterError(
            f"there are no AWS credentials to write to the bucket {bucket}",
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
        lives = MAX_SESSION
    if lives is not None and lives < seconds:
        raise ClusterError(
            f"the AWS credentials are valid for {_span(max(0.0, lives))} at most, and the run may"
            f" take {_span(seconds)} until its last result is written",
            hint="What they sign ends with them: use a user's access key or a longer session,"
            " shorten expires and timeout, or keep results in a registry or on a volume.",
        )


def _pem(path: Path) -> str:
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the certificates for S3 cannot be read: {error}") from error
    if len(text) > _CA_LIMIT:
        raise ConfigError(
            f"{path} is too large to be passed to a container: {len(text):,} bytes",
            hint="Let AWS_CA_BUNDLE (or ca_bundle of the profile) name only the authority of S3.",
        )
    return text


def _span(seconds: float) -> str:
    """A duration for a message."""
    for name, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.0f} seconds"
