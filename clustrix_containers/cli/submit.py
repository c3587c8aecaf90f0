"""run, rerun: the commands that submit, show the output and print the result."""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import inspect
import sys
import threading
from typing import Any

from clustrix_containers.api.jobs import Job
from clustrix_containers.api.options import Options
from clustrix_containers.errors import ConfigError

from . import output
from .functions import function_of, options_of, takes_function
from .runs import print_results, takes_trust


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
        "--dry-run",
        action="store_true",
        help="print what would be created on the target, without submitting",
    )
    run.set_defaults(command=_run)

    again = commands.add_parser("rerun", help="run the very same image again")
    again.add_argument(
        "digest", metavar="DIGEST", help="or a unique prefix of it, or registry/repository@sha256:…"
    )
    takes_trust(again)
    again.set_defaults(command=_rerun)

    for parser in (run, again):
        parser.add_argument(
            "--on", metavar="TARGET", help="a target of clustrix.yml (default: its default)"
        )
        parser.add_argument(
            "-d", "--detach", action="store_true", help="print the run id and do not wait"
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _run(arguments: argparse.Namespace) -> int:
    target = function_of(arguments)
    try:
        signature = inspect.signature(target.__clustrix_function__)
    except (TypeError, ValueError):
        signature = inspect.signature(lambda *_: None)  # a built-in one that has none
    positional, named = _arguments(arguments.arguments, signature)
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        options = any(word.startswith("--") for word in arguments.arguments)
        raise ConfigError(
            f"{arguments.function}: wrong arguments: {error}",
            hint="Options of cxc come before the function: what follows it are its arguments."
            if options
            else None,
        ) from error
    if arguments.dry_run:
        sys.stdout.write(target.preview(*positional, **named))
        return 0
    return _finish([target.submit(*positional, **named)], arguments)


def _rerun(arguments: argparse.Namespace) -> int:
    from clustrix_containers.runs.submit import rerun

    options = Options().but(**options_of(arguments))
    run = rerun(arguments.digest, options, trust=arguments.trust)
    return _finish(run.jobs, arguments, array=run.is_array)


def _finish(jobs: list[Job], arguments: argparse.Namespace, *, array: bool = False) -> int:
    """Print the run's id and, unless it is detached, wait for these jobs and print their results."""
    first = jobs[0]
    if arguments.detach:
        sys.stdout.write(f"{first.run}\n")
        return 0
    output.note(f"run {first.run}  image {first.image}")
    if first.how:
        output.note(first.how)
    if len(jobs) == 1:
        printer = threading.Thread(target=_print_logs, args=(first,), daemon=True)
        printer.start()
        try:
            concurrent.futures.wait(jobs)
        except KeyboardInterrupt:
            first.cancel()
            output.note(f"cancelled {first.run}")
            return 130
        printer.join(5)
    return print_results(jobs, array=array, as_json=arguments.json)


def _print_logs(job: Job) -> None:
    for line in job.logs(follow=True):
        sys.stderr.write(line)
        sys.stderr.flush()


def _arguments(words: list[str], signature: inspect.Signature) -> tuple[list[Any], dict[str, Any]]:
    parameters = signature.parameters
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
