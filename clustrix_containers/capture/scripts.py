"""The program that is running: a script, a module started with ``-m``, or an interactive session."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from clustrix_containers.worker import contract

from . import syntax
from .modules import absolute

MAIN_NAMES = frozenset({"__main__", "__mp_main__"})
"""The second is what multiprocessing calls the parent's script in a spawned child."""


@dataclass(frozen=True, slots=True)
class Main:
    """How ``__main__`` travels.

    ``script``: its file travels and is loaded as :data:`contract.MAIN`. ``module``: it was
    started with ``-m`` and is imported by its real name. ``interactive``: a REPL, a notebook
    or standard input; what it defines travels by value.
    """

    kind: Literal["script", "module", "interactive"]
    module: str = contract.MAIN
    path: Path | None = None


def current() -> Main:
    """What the running process's ``__main__`` is."""
    module = sys.modules.get("__mp_main__") or sys.modules.get("__main__")
    spec = getattr(module, "__spec__", None)
    file = getattr(module, "__file__", None)
    name = str(spec.name) if spec is not None else ""
    if "get_ipython" in vars(module) if module is not None else False:
        # A kernel's launcher is not the user's program; %run sets the script's own file.
        name = ""
        if file is None or "ipykernel" in file:
            return Main("interactive")
    if name and name != "__main__":
        return Main("interactive") if name.startswith("ipykernel") else Main("module", name)
    if not isinstance(file, str) or not Path(file).is_file():
        return Main("interactive")
    return Main("script", contract.MAIN, absolute(file))


def loaded_script(name: str) -> Path | None:
    """The script that :func:`load_script` loaded under this module name, if it did."""
    if name != contract.MAIN and not name.startswith(contract.MAIN + "."):
        return None
    file = getattr(sys.modules.get(name), "__file__", None)
    return absolute(file) if isinstance(file, str) else None


def script_of(name: str) -> Path | None:
    """The script behind a module name, ``__main__`` included; ``None`` if there is none."""
    if name in MAIN_NAMES:
        return current().path
    return loaded_script(name)


def travel_name(name: str) -> str | None:
    """The module name that a module has in the container; ``None``: it does not exist there."""
    if name in MAIN_NAMES:
        main = current()
        return None if main.kind == "interactive" else main.module
    return contract.MAIN if loaded_script(name) is not None else name


_bound: dict[tuple[str, int, int], tuple[frozenset[str], frozenset[str]] | None] = {}


def bound_names(name: str) -> tuple[frozenset[str], frozenset[str]] | None:
    """What a program's file binds when it is imported, and what it binds under its main guard.

    ``None`` when that cannot be told (no file, or a star import).
    """
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        return None
    if not file.endswith((".py", ".pyw")) and name not in MAIN_NAMES:
        return None
    try:
        status = os.stat(file)  # noqa: PTH116 - asked for every argument of a map
        key = (file, status.st_mtime_ns, status.st_size)
        if key not in _bound:
            source = syntax.parse(Path(file).read_bytes(), file)
            _bound[key] = None if source.star else (source.bound, source.guarded)
    except OSError:
        return None
    return _bound[key]


_loading = threading.Lock()


def load_script(source: Path | bytes, name: str, filename: str) -> ModuleType:
    """Load a script as module ``name``, registered in ``sys.modules``.

    What stands under its main guard does not run, since ``name`` is not ``__main__``; nor can
    a script without a guard submit itself: :data:`contract.INSIDE` is set meanwhile. Raises
    what the script raises, and leaves no module behind then.
    """
    content = source if isinstance(source, bytes) else source.read_bytes()
    module = ModuleType(name)
    module.__file__ = filename
    # The user's own file, or the code layer of an image whose digest is known.
    code = compile(content, filename, "exec", dont_inherit=True)
    with _loading, _inside():
        sys.modules[name] = module
        try:
            exec(code, module.__dict__)  # noqa: S102
        except BaseException:
            sys.modules.pop(name, None)
            raise
    return module


@contextmanager
def _inside() -> Iterator[None]:
    before = os.environ.get(contract.INSIDE)
    os.environ[contract.INSIDE] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(contract.INSIDE, None)
        else:
            os.environ[contract.INSIDE] = before


def script_module(path: Path | None, source: Callable[[], bytes]) -> ModuleType:
    """The module whose types a script's results are instances of.

    ``path`` is where the script was on the client. If this process runs that very file, it is
    ``__main__`` itself; if it has loaded it, that module; else ``source()`` (the script as it
    is in the code layer) is loaded under a free name below :data:`contract.MAIN`.
    """
    wanted = absolute(path) if path is not None else None
    for name in ("__mp_main__", "__main__", *_loaded_names()):
        module = sys.modules.get(name)
        if wanted is not None and module is not None and script_of(name) == wanted:
            return module
    number = 1
    while f"{contract.MAIN}.{number}" in sys.modules:
        number += 1
    name = f"{contract.MAIN}.{number}"
    return load_script(source(), name, str(wanted or f"<{name}>"))


def _loaded_names() -> list[str]:
    prefix = contract.MAIN
    return [n for n in list(sys.modules) if n == prefix or n.startswith(prefix + ".")]
