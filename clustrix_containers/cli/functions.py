"""The functions that commands take: ``FILE.py:FUNC`` or ``package.module:FUNC``, with their options."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from clustrix_containers.api.function import Function, function
from clustrix_containers.api.options import Options
from clustrix_containers.errors import ConfigError, Error


def takes_function(parser: argparse.ArgumentParser) -> None:
    """Add the function and its options."""
    parser.add_argument("function", metavar="FILE.py:FUNC", help="or package.module:FUNC")
    takes_options(parser)


def takes_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a function. Their destinations are the fields of :class:`Options`."""
    group = parser.add_argument_group("options of the function (they override its decorator's)")
    group.add_argument("--cpus", type=float, help="cores")
    group.add_argument("--memory", metavar="SIZE", help="for example 2GiB")
    group.add_argument("--timeout", metavar="TIME", help="for example 30m")
    group.add_argument("--retries", type=int, help="how often an element that fails is run again")
    group.add_argument("--base", help="an image reference or a Dockerfile")
    group.add_argument(
        "--package", dest="packages", action="append", metavar="REQUIREMENT", help="one to add"
    )
    group.add_argument(
        "--module", dest="modules", action="append", metavar="MODULE", help="a local one to add"
    )
    group.add_argument(
        "--file", dest="files", action="append", metavar="PATH", help="a data file or directory"
    )
    group.add_argument("--requirements", metavar="FILE", help="requirements.txt or pylock.toml")
    group.add_argument("--lock", metavar="PYLOCK", help="build from this lock file of `cxc lock`")
    group.add_argument(
        "--whole-environment",
        action="store_true",
        default=None,
        help="include every installed package",
    )
    group.add_argument(
        "--option",
        dest="cluster_options",
        action="append",
        default=[],
        metavar="TYPE.NAME=VALUE",
        help="an option for one type of target, as in kubernetes.queue=gpu; VALUE is YAML",
    )


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given on the command line, as ``Options.but`` takes them."""
    given = {item.name: getattr(arguments, item.name, None) for item in fields(Options)}
    changes = {name: value for name, value in given.items() if value is not None}
    for text in getattr(arguments, "cluster_options", ()):
        kind, name, value = _cluster_option(text)
        changes.setdefault(kind, {})[name] = value
    return changes


def function_of(arguments: argparse.Namespace) -> Function[..., Any]:
    """The function that :func:`takes_function` has parsed, with its options."""
    return load(arguments.function).options(**options_of(arguments))


def _cluster_option(text: str) -> tuple[str, str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    kind, dot, name = key.partition(".")
    if not (equals and dot and kind and name):
        raise ConfigError(f"--option {text!r}: expected TYPE.NAME=VALUE")
    try:
        return kind, name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--option {text!r}: the value is not YAML: {error}") from error


def load(text: str) -> Function[..., Any]:
    """The function that ``FILE.py:FUNC`` or ``package.module:FUNC`` names; ConfigError if none."""
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(f"{text!r} does not name a function", hint="Write FILE.py:FUNC.")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_name(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            there = sorted(
                key
                for key, value in vars(module).items()
                if callable(value) and getattr(value, "__module__", None) == module.__name__
            )
            raise ConfigError(
                f"no function {name!r} in {place}",
                hint=f"Its functions are: {', '.join(there)}." if there else None,
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{text} is a {type(found).__name__}, not a function")
    return found if isinstance(found, Function) else function(found)


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"no such file: {path}")
    path = path.resolve()
    if not (path.parent / "__init__.py").exists():
        return _load_script(path)
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").exists():
        parts.insert(0, root.name)
        root = root.parent
    sys.path.insert(0, str(root))
    return _import_name(".".join(parts), path)


def _load_script(path: Path) -> Any:
    """Load the file as ``python FILE.py`` would, so that the image has the same digest."""
    from clustrix_containers.capture.source.program import load_script
    from clustrix_containers.worker.contract import MAIN

    sys.path.insert(0, str(path.parent))
    with _importing(path):
        return load_script(path.read_bytes(), MAIN, str(path))


@contextlib.contextmanager
def _importing(what: object) -> Iterator[None]:
    """Turn what code raises at its import into a ConfigError."""
    try:
        yield
    except Error:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{what} cannot be imported: {error}",
            hint="Run cxc with the Python environment that the function runs in.",
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what} raises an exception when it is imported: {error!r}") from error


def _import_name(name: str, path: Path | None = None) -> Any:
    if path is None:
        sys.path.insert(0, "")
    with _importing(path or name):
        module = importlib.import_module(name)
    found = getattr(module, "__file__", None)
    if path is not None and (found is None or Path(found).resolve() != path):
        raise ConfigError(
            f"{path} cannot be imported as {name!r}: that name is taken by {found or 'a built-in module'}",
            hint="Give the file another name.",
        )
    return module
