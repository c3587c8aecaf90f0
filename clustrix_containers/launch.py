"""One call or many of a function, all the way: pickled, built, pushed, recorded, submitted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import config as configuration
from . import prepare, runs
from .contract import LABEL_ARRAY, LABEL_COUNT
from .options import Options
from .progress import shown

if TYPE_CHECKING:
    from .function import Function

Call = tuple[tuple[Any, ...], dict[str, Any]]


def launch(
    function: Function[..., Any], calls: Iterable[Call], options: Options, *, array: bool
) -> runs.Session:
    """Submit every call of ``function`` as one run; gives the session that is being watched."""
    from .capture import pickling
    from .image import build as builder

    runs.refuse_inside()
    references: set[str] = set()

    def pickles() -> Iterator[bytes]:
        for args, kwargs in calls:
            data, seen = pickling.dump_call(args, kwargs, allow_secrets=options.allow_secrets)
            references.update(seen)
            yield data

    with shown() as progress:
        layer, count = builder.call_layer(pickles(), cache=configuration.paths().cache)
        plan = prepare.plan(
            function.__clustrix_function__,
            options,
            references=frozenset(references),
            progress=progress,
        )
        image = prepare.build(plan, progress=progress)
        labels = {
            **(image.settings.get("Labels") or {}),
            LABEL_COUNT: str(count),
            LABEL_ARRAY: str(int(array)),
        }
        image = image.append(layer).configure(Labels=labels)
        prepare.push_here(image)
    main = plan.bundle.main

    def main_module() -> ModuleType:
        return runs.load_main(image.digest, str(main) if main else None)

    return runs.launch(
        image,
        plan.bundle.entry.name.rpartition(".")[2],
        count,
        options,
        main=main,
        main_module=main_module,
        array=array,
        built=True,
    )
