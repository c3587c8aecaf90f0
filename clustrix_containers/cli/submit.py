"""run, build, push, explain: the commands that take a function."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import sys
import threading
from pathlib import Path
from typing import Any

from clustrix_containers.api.function import Function, function
from clustrix_containers.api.jobs import Job
from clustrix_containers.errors import ConfigError, Error, RemoteTraceback

from . import output


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    run = commands.add_parser("run", help="run one call in its image and print the result")
    takes_function(run)
    run.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="ARG",
        help="Python literals (3, '[1, 2]', None); anything else is a string; name=value by keyword",
    )
    run.add_argument(
        "--on", metavar="TARGET", help="a target of clustrix.yml (default: its default)"
    )
    run.add_argument(
        "--detach",
        "-d",
        action="store_true",
        help="print the run id without waiting for the result",
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be created on the target, without submitting",
    )
    run.add_argument("--json", action="store_true", help="print the result as JSON")
    run.set_defaults(command=_run)

    build = commands.add_parser("build", help="build the function's image and print its digest")
    takes_function(build)
    build.add_argument("--json", action="store_true", help="digest and layers as JSON")
    build.set_defaults(command=_build)

    push = commands.add_parser("push", help="push an image to a registry")
    push.add_argument("what", metavar="FILE.py:FUNC|DIGEST")
    push.add_argument("repository", nargs="?", help="registry/repository (default: clustrix.yml's)")
    _options(push)
    push.set_defaults(command=_push)

    explain = commands.add_parser("explain", help="show what goes into the image, and why")
    takes_function(explain)
    explain.add_argument("--json", action="store_true")
    explain.set_defaults(command=_explain)


def takes_function(parser: argparse.ArgumentParser) -> None:
    """Add the function and its options."""
    parser.add_argument("function", metavar="FILE.py:FUNC", help="also package.module:FUNC")
    _options(parser)


def _options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of the function (over those of its decorator)")
    group.add_argument("--cpus", type=float, help="cores")
    group.add_argument("--memory", help="2GiB")
    group.add_argument("--timeout", help="30m")
    group.add_argument("--retries", type=int, help="how often a failing element is run again")
    group.add_argument("--base", help="an image reference or a Dockerfile")
    group.add_argument("--package", dest="packages", action="append", metavar="REQUIREMENT")
    group.add_argument("--module", dest="modules", action="append", metavar="MODULE")
    group.add_argument("--file", dest="files", action="append", metavar="PATH")
    group.add_argument("--requirements", metavar="FILE", help="requirements.txt or pylock.toml")
    group.add_argument("--lock", metavar="PYLOCK", help="a lock file of cxc lock to build by")
    group.add_argument("--whole-environment", action="store_true", default=None)
    group.add_argument(
        "--option",
        dest="cluster_options",
        action="append",
        default=[],
        metavar="TYPE.NAME=VALUE",
        help="an option of one type of target, as in kubernetes.queue=gpu; VALUE is YAML",
    )


def function_of(arguments: argparse.Namespace) -> Function[..., Any]:
    """The function that :func:`takes_function` has parsed, with its options."""
    names = (
        "cpus",
        "memory",
        "timeout",
        "retries",
        "base",
        "packages",
        "modules",
        "files",
        "requirements",
        "lock",
    )
    changes: dict[str, Any] = {
        name: value for name in names if (value := getattr(arguments, name)) is not None
    }
    if arguments.whole_environment:
        changes["whole_environment"] = True
    for text in arguments.cluster_options:
        kind, name, value = _cluster_option(text)
        changes.setdefault(kind, {})[name] = value
    return load(arguments.function).options(**changes)


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
                f"there is no {name!r} in {place}",
                hint=f"There are: {', '.join(there)}." if there else None,
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{text} is a {type(found).__name__}, not a function")
    return found if isinstance(found, Function) else function(found)


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
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
    from clustrix_containers.capture.pickling import load_script
    from clustrix_containers.worker.contract import MAIN

    sys.path.insert(0, str(path.parent))
    try:
        return load_script(path, MAIN, str(path))
    except ModuleNotFoundError as error:
        raise _not_importable(path, error) from error
    except (Exception, SystemExit) as error:
        if isinstance(error, Error):
            raise
        raise ConfigError(f"{path} fails when it is loaded: {error!r}") from error


def _not_importable(what: object, error: ModuleNotFoundError) -> ConfigError:
    return ConfigError(
        f"{what} cannot be imported: {error}",
        hint="Run cxc with the Python environment that the function runs in.",
    )


def _import_name(name: str, path: Path | None = None) -> Any:
    if path is None:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(name)
    except Error:
        raise
    except ModuleNotFoundError as error:
        raise _not_importable(path or name, error) from error
    except Exception as error:
        raise ConfigError(f"{path or name} fails on import: {error!r}") from error
    found = getattr(module, "__file__", None)
    if path is not None and (found is None or Path(found).resolve() != path):
        raise ConfigError(
            f"{path} cannot be imported as {name!r}: that name is taken by {found or 'a built-in module'}",
            hint="Give the file another name.",
        )
    return module


def _arguments(words: list[str], target: Function[..., Any]) -> tuple[list[Any], dict[str, Any]]:
    try:
        parameters = inspect.signature(target.__clustrix_function__).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    free = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for word in words[1:] if words[:1] == ["--"] else words:
        name, equals, value = word.partition("=")
        if equals and name.isidentifier() and (free or name in parameters):
            named[name] = _literal(value)
        else:
            positional.append(_literal(word))
    return positional, named


def _literal(word: str) -> Any:
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return word


def _run(arguments: argparse.Namespace) -> int:
    target = function_of(arguments)
    positional, named = _arguments(arguments.arguments, target)
    try:
        inspect.signature(target.__clustrix_function__).bind(*positional, **named)
    except TypeError as error:
        raise ConfigError(f"{arguments.function} cannot be called like that: {error}") from error
    except ValueError:
        pass
    changes = {"on": arguments.on} if arguments.on else {}
    target = target.options(**changes)
    if arguments.dry_run:
        sys.stdout.write(target.preview(*positional, **named))
        return 0
    job = target.submit(*positional, **named)
    if arguments.detach:
        sys.stdout.write(f"{job.run}\n")
        return 0
    output.note(f"run {job.run}  image {job.image}")
    if job.how:
        output.note(job.how)
    return wait(job, as_json=arguments.json)


def wait(job: Job, *, as_json: bool) -> int:
    """Show a job's output while it runs, then its result; an interrupt ends the job."""
    printer = threading.Thread(target=_print_logs, args=(job,), daemon=True)
    printer.start()
    try:
        value = job.result()
    except KeyboardInterrupt:
        job.cancel()
        output.note(f"{job.run} is cancelled")
        return 130
    except Error:
        raise
    except BaseException as error:
        printer.join(5)
        output.note(exception_text(error))
        return 1
    printer.join(5)
    output.result(value, as_json=as_json)
    return 0


def exception_text(error: BaseException) -> str:
    """The user's exception as the container printed it."""
    cause = error.__cause__
    text = f"{type(error).__name__}: {error}"
    if isinstance(cause, RemoteTraceback):
        text = cause.text.rstrip()
    return "\n".join([text, *getattr(error, "__notes__", ())])


def _print_logs(job: Job) -> None:
    for line in job.logs(follow=True):
        sys.stderr.write(line)
        sys.stderr.flush()


def _build(arguments: argparse.Namespace) -> int:
    from clustrix_containers.runs.explain import layer_lines, size

    image = function_of(arguments).build()
    if arguments.json:
        from dataclasses import asdict

        output.emit_json(
            {
                "digest": image.digest,
                "size": image.size,
                "layers": [asdict(line) for line in layer_lines(image)],
            }
        )
        return 0
    output.note(f"{len(image.layers)} layers, {size(image.size)}")
    sys.stdout.write(f"{image.digest}\n")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from clustrix_containers.clusters import staging
    from clustrix_containers.config import file as config
    from clustrix_containers.oci.progress import shown
    from clustrix_containers.runs import images

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
        image = images.find(arguments.what)
        with shown() as progress:
            reference = staging.to_registry(image, repository, progress=progress)
    sys.stdout.write(f"{reference}\n")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    explanation = function_of(arguments).explain()
    if arguments.json:
        output.emit_json(explanation.to_json())
    else:
        sys.stdout.write(f"{explanation}\n")
    return 0
