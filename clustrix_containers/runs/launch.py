"""One call or many of a function, all the way: pickled, built, pushed, recorded, submitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from clustrix_containers.api.options import Options
from clustrix_containers.config import file as configuration
from clustrix_containers.errors import CaptureError
from clustrix_containers.oci.model import Image
from clustrix_containers.oci.progress import shown
from clustrix_containers.worker.contract import LABEL_ARRAY, LABEL_COUNT

from . import plan as planning
from . import runs
from .session import Session

Call = tuple[tuple[Any, ...], dict[str, Any]]


def launch(
    function: Callable[..., Any], calls: Iterable[Call], options: Options, *, array: bool
) -> Session:
    """Submit every call of ``function`` as one run; gives the session that is being watched."""
    runs.refuse_inside()
    runs.choose(options)
    image, plan, count = _image(function, calls, options, array=array)
    main = plan.bundle.main

    def main_module() -> ModuleType:
        return runs.load_main(image.digest, str(main) if main else None)

    return runs.launch(
        image,
        _name(plan),
        count,
        options,
        main=main,
        main_module=main_module,
        array=array,
        built=True,
    )


def preview(
    function: Callable[..., Any], calls: Iterable[Call], options: Options, *, array: bool
) -> str:
    """What submitting would make on the target, as a person writes it. Only the image is built."""
    image, plan, count = _image(function, calls, options, array=array)
    return runs.preview(image, _name(plan), count, options, array=array)


def _name(plan: planning.Plan) -> str:
    return plan.bundle.entry.name.rpartition(".")[2]


def _image(
    function: Callable[..., Any], calls: Iterable[Call], options: Options, *, array: bool
) -> tuple[Image, planning.Plan, int]:
    """The image with these calls in it, and how many they are."""
    from clustrix_containers.capture import pickling
    from clustrix_containers.image import build as builder

    references: set[str] = set()

    def pickles() -> Iterator[bytes]:
        for args, kwargs in calls:
            data, seen = pickling.dump_call(args, kwargs, function=function)
            if not options.allow_secrets:
                _refuse_secret(data, args, kwargs)
            references.update(seen)
            yield data

    with shown() as progress:
        layer, count = builder.call_layer(pickles(), cache=configuration.paths().cache)
        plan = planning.plan(
            function,
            options,
            references=frozenset(references),
            progress=progress,
        )
        image = planning.build(plan, progress=progress)
        labels = {
            **(image.settings.get("Labels") or {}),
            LABEL_COUNT: str(count),
            LABEL_ARRAY: str(int(array)),
        }
        return image.append(layer).configure(Labels=labels), plan, count


def _refuse_secret(data: bytes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """CaptureError if a call's pickle holds what looks like a credential; never shows it."""
    import pickle

    from clustrix_containers.capture.secrets import find_secret

    kind = find_secret(data)
    if kind is None:
        return
    named = [(f"argument {index + 1}", value) for index, value in enumerate(args)]
    named += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    guilty = "an argument"
    for name, value in named:
        try:
            if find_secret(pickle.dumps(value)):
                guilty = name
                break
        except Exception:  # noqa: S112
            continue
    raise CaptureError(
        f"{guilty} looks like a secret ({kind}), and arguments are part of the image",
        hint="Read it in the container, or say allow_secrets=True if it is none.",
    )
