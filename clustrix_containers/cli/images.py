"""build, push, explain, lock: the commands that make a function's image or say what is in it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clustrix_containers.config import file as config
from clustrix_containers.errors import ConfigError
from clustrix_containers.remote.progress import shown

from . import output
from .functions import function_of, takes_function, takes_options


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    build = commands.add_parser("build", help="build the function's image and print its digest")
    takes_function(build)
    build.add_argument("--json", action="store_true", help="print digest and layers as JSON")
    build.set_defaults(command=_build)

    push = commands.add_parser("push", help="push an image to a registry")
    push.add_argument("what", metavar="FILE.py:FUNC|DIGEST")
    push.add_argument("repository", nargs="?", help="host[:port]/name (default: clustrix.yml's)")
    takes_options(push)
    push.set_defaults(command=_push)

    explain = commands.add_parser("explain", help="show what goes into the image, and why")
    takes_function(explain)
    explain.add_argument("--json", action="store_true", help="print it as JSON")
    explain.set_defaults(command=_explain)

    lock = commands.add_parser("lock", help="pin what goes into the image in a lock file")
    takes_function(lock)
    lock.add_argument(
        "-o",
        "--output",
        metavar="PYLOCK",
        help="the file to write (default: the lock of the function's options or of clustrix.yml,"
        " else pylock.toml beside the function's file)",
    )
    lock.set_defaults(command=_lock)


def _build(arguments: argparse.Namespace) -> int:
    from rich.filesize import decimal

    from clustrix_containers.runs.explain import layer_lines

    image = function_of(arguments).build()
    if arguments.json:
        layers = [asdict(line) for line in layer_lines(image)]
        output.emit_json({"digest": image.digest, "size": image.size, "layers": layers})
    else:
        output.note(f"{len(image.layers)} layers, {decimal(image.size)}")
        sys.stdout.write(f"{image.digest}\n")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from clustrix_containers.runs import images
    from clustrix_containers.runs.attach import find_image

    repository = arguments.repository or config.load().registry
    if not repository:
        raise ConfigError(
            "no repository to push to",
            hint="Name one (registry.example.org/team/runs), or set `registry:` in clustrix.yml.",
        )
    if ":" in arguments.what and not arguments.what.startswith("sha256:"):
        arguments.function = arguments.what
        reference = function_of(arguments).push(repository)
    else:
        reference = images.push(find_image(arguments.what), repository)
    sys.stdout.write(f"{reference}\n")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    explanation = function_of(arguments).explain()
    if arguments.json:
        output.emit_json(explanation.to_json())
    else:
        sys.stdout.write(f"{explanation}\n")
    return 0


def _lock(arguments: argparse.Namespace) -> int:
    from clustrix_containers.runs import plan

    target = function_of(arguments)
    options = target._options
    path = arguments.output or options.lock or config.load().lock or _beside(arguments.function)
    with shown() as progress:
        made = plan.write_lock(target.__clustrix_function__, options, Path(path), progress=progress)
    files = [package.name for package in made.packages if package.wheel is None]
    output.note(
        f"base {made.base}, packages: {len(made.packages)}"
        + (f"; packed from installed files: {', '.join(files)}" if files else "")
    )
    sys.stdout.write(f"{path}\n")
    return 0


def _beside(function: str) -> Path:
    place = function.rpartition(":")[0]
    return (Path(place).parent if place.endswith(".py") else Path()) / "pylock.toml"
