"""``@function`` and its verbs."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from clustrix_containers.errors import InsideImageError
from clustrix_containers.worker.contract import INSIDE

from .jobs import Job, JobArray
from .options import Options

if TYPE_CHECKING:
    from clustrix_containers.oci.model import Image
    from clustrix_containers.runs.explain import Explanation
    from clustrix_containers.runs.watching.watched import WatchedRun

P = ParamSpec("P")
R = TypeVar("R")


class Function(Generic[P, R]):
    """A callable with verbs. Calling it is an ordinary call in this process.

    ``submit`` and ``map`` run it in its image, ``build`` makes the image, ``explain`` says what
    goes in and why, ``options`` gives the same function with other options.
    """

    def __init__(self, function: Callable[P, R], options: Options) -> None:
        functools.update_wrapper(self, function)
        self.__clustrix_function__ = function
        self._options = options
        self._takes_on = _takes_on(function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.__clustrix_function__(*args, **kwargs)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The same as calling it: in this process."""
        return self.__clustrix_function__(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Function[..., R]:
        bound = self.__clustrix_function__.__get__(instance, owner)
        return self if bound is self.__clustrix_function__ else Function(bound, self._options)

    def __repr__(self) -> str:
        return f"<clustrix function {self._name}>"

    def __reduce__(self) -> Any:
        return Function, (self.__clustrix_function__, self._options)

    @property
    def _name(self) -> str:
        function = inspect.unwrap(self.__clustrix_function__)
        while isinstance(function, functools.partial):
            function = function.func
        return str(getattr(function, "__qualname__", type(function).__qualname__))

    def options(self, **changes: Any) -> Function[P, R]:
        """The same function with some options replaced; see :class:`Options` for their names."""
        return Function(self.__clustrix_function__, self._options.but(**changes))

    def submit(self, *args: Any, on: str | None = None, **kwargs: Any) -> Job:
        """Run one call in the function's image on the target ``on``; returns a Future."""
        if on is not None and self._takes_on:
            kwargs["on"] = on
            on = None
        run = self._submit([(args, kwargs)], on, array=False)
        job: Job = run.jobs[0]
        return job

    def map(
        self,
        *iterables: Iterable[Any],
        on: str | None = None,
        max_parallel: int | None = None,
    ) -> JobArray:
        """Run the function over the items: one image, one array.

        As with the built-in ``map``, several iterables give several arguments and the shortest
        decides. All items are read at once, and written to the image one by one.
        """
        if not iterables:
            raise TypeError("map() needs at least one iterable")
        changes = {} if max_parallel is None else {"max_parallel": max_parallel}
        function = self.options(**changes)
        calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]] = (
            (items, {}) for items in zip(*iterables, strict=False)
        )
        run = function._submit(calls, on, array=True)
        return JobArray(run, run.jobs)

    def preview(self, *args: Any, **kwargs: Any) -> str:
        """What ``submit`` with these arguments would create on the target, such as a Job in YAML.

        The image is built, since its digest is part of it; nothing is pushed or submitted.
        """
        _check_outside()
        from clustrix_containers.runs import submit

        return submit.preview(self.__clustrix_function__, [(args, kwargs)], self._options)

    def build(self) -> Image:
        """The function's image without a call; ``.digest`` names it.

        It is in the local layout afterwards, unless it stands on a base in a registry: the
        layers of that stay where they are until the image runs here.
        """
        _check_outside()
        from clustrix_containers.runs import images

        return images.build(self.__clustrix_function__, self._options)

    def push(self, repository: str) -> str:
        """Push the function's image to ``repository``; gives ``repository@sha256:…``."""
        image = self.build()
        from clustrix_containers.runs import images

        return images.push(image, repository)

    def explain(self) -> Explanation:
        """What goes into the image, and why. Print it."""
        _check_outside()
        from clustrix_containers.runs import images

        return images.explain(self.__clustrix_function__, self._options, self._name)

    def _submit(
        self,
        calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]],
        on: str | None,
        *,
        array: bool,
    ) -> WatchedRun:
        _check_outside()
        from clustrix_containers.runs import submit

        options = self._options if on is None else self._options.but(on=on)
        return submit.submit(self.__clustrix_function__, calls, options, array=array)


def _check_outside() -> None:
    """InsideImageError in an image of ours, which carries nothing of the client."""
    if os.environ.get(INSIDE) == "1":
        raise InsideImageError(
            "functions cannot be submitted or built inside an image: the script would submit itself again",
            hint='Put the call under `if __name__ == "__main__":`, so that only your own process runs it.',
        )


def _takes_on(function: Callable[..., Any]) -> bool:
    try:
        return "on" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


@overload
def function(target: Callable[P, R], /, **options: Any) -> Function[P, R]: ...
@overload
def function(**options: Any) -> Callable[[Callable[P, R]], Function[P, R]]: ...
def function(target: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Decorate a function so that it can be submitted: ``@function`` or ``@function(cpus=2, …)``.

    The options are those of :class:`Options`. The function itself stays an ordinary function.
    """
    chosen = Options().but(**options)

    def decorate(plain: Callable[..., Any]) -> Any:
        if isinstance(plain, staticmethod | classmethod):
            return type(plain)(decorate(plain.__func__))
        if not callable(plain):
            raise TypeError(f"@function decorates a callable, not a {type(plain).__name__}")
        return Function(plain, chosen)

    return decorate if target is None else decorate(target)


def image_directory() -> str:
    """The OCI image layout directory with this user's images, which skopeo and umoci read."""
    _check_outside()
    from clustrix_containers.runs import images

    return str(images.directory())


def attach(run_id: str, *, on: str | None = None) -> Job | JobArray:
    """The handle of a run again, in any process: a Job, or a JobArray for a ``map``.

    A run that is not in this user's record is looked up on the target ``on``; its results stay
    bytes until they are trusted.
    """
    _check_outside()
    from clustrix_containers.runs import attach as attaching

    return attaching.handle(attaching.attach(run_id, on=on))
