"""Every error that this package raises on purpose, in one tree.

::

    Error
    ├── CaptureError            a callable, argument or module that cannot travel
    ├── DependencyError         an import, a distribution or a lock that cannot be satisfied
    ├── ImageError              an archive, layer, base or image that breaks a rule
    ├── RegistryError           a registry's error response, or none at all (status, codes, temporary)
    │   └── DigestMismatch      bytes that do not match their digest
    ├── ConfigError             clustrix.yml, an option or an environment variable (path, line, key)
    ├── ClusterError            a target that is unknown, unreachable or rejects a run
    ├── InsideImageError        submit or map was called inside an image
    ├── UntrustedResultError    a result that is kept as bytes until it is trusted
    └── JobError                a run that ended without the function's own result or exception
        ├── TimeLimitExceeded
        ├── MemoryLimitExceeded
        ├── WorkerDied          the container ended without a completion mark
        ├── ResultLost          the job succeeded, its result no longer exists
        └── ResultError         a result that cannot be pickled, read or verified

The user's own exceptions are never wrapped: they come back with their own type,
and with the remote traceback as ``__cause__`` (:class:`RemoteTraceback`).

Errors carry fields, say what to do next, and survive pickling.
"""

from __future__ import annotations

from typing import Any


class Error(Exception):
    """Base class. ``message`` says what failed, ``hint`` what to do, ``fields`` has details."""

    def __init__(self, message: str, *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def __getattr__(self, name: str) -> Any:
        # Unpickling asks for attributes before __init__ has run.
        fields = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.fields)


def _rebuild(cls: type[Error], message: str, hint: str | None, fields: dict[str, Any]) -> Error:
    return cls(message, hint=hint, **fields)


class CaptureError(Error):
    """A callable, an argument or a module that cannot travel."""


class DependencyError(Error):
    """An import, a distribution or a lock that cannot be satisfied."""


class ImageError(Error):
    """An archive, a layer, a base or an image that breaks a rule."""


class RegistryError(Error):
    """An error response of a registry, or no response at all.

    ``status`` is the HTTP status or ``None``; ``codes`` the error codes of the
    distribution specification; ``temporary`` whether a retry can help.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        status: int | None = None,
        codes: tuple[str, ...] = (),
        temporary: bool = False,
        **fields: Any,
    ) -> None:
        super().__init__(
            message, hint=hint, status=status, codes=codes, temporary=temporary, **fields
        )
        self.status = status
        self.codes = codes
        self.temporary = temporary


class DigestMismatch(RegistryError):
    """Bytes that do not match their digest."""


class ConfigError(Error):
    """clustrix.yml, an option or an environment variable is wrong (``path``, ``line``, ``key``)."""


class ClusterError(Error):
    """A target that is unknown, unreachable or rejects a run."""


class InsideImageError(Error):
    """``submit`` or ``map`` was called inside an image."""


class UntrustedResultError(Error):
    """A result that is kept as bytes (``path``) until it is trusted."""


class JobError(Error):
    """A run that ended without the function's own result or exception."""


class TimeLimitExceeded(JobError):
    """The element exceeded its time limit and was terminated."""


class MemoryLimitExceeded(JobError):
    """The element exceeded its memory limit and was killed."""


class WorkerDied(JobError):
    """The container ended without a completion mark."""


class ResultLost(JobError):
    """The job succeeded and its result no longer exists."""


class ResultError(JobError):
    """A result that cannot be pickled, read or verified."""


class RemoteTraceback(Exception):
    """The traceback of the user's exception as it was printed in the container."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text}"
