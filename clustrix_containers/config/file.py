"""``clustrix.yml`` and the environment variables that override it.

::

    default: local            # the target where none is named
    registry: registry.example.org/team/runs    # where images are pushed; absent: the local layout
    resources: {cpus: 1, memory: 2GiB, timeout: 30m}
    targets:
      local: {type: local, runtime: sandbox}    # auto | docker | apptainer | sandbox
      big:   {type: local, runtime: docker, cpus: 4}

The file is ``$CLUSTRIX_CONFIG``, else the nearest ``clustrix.yml`` from the current directory
upwards, else ``clustrix.yml`` in the user's configuration directory (``~/.config/clustrix-containers``).
``CLUSTRIX_TARGET`` and ``CLUSTRIX_REGISTRY`` override ``default`` and ``registry``.

:func:`load` reads it anew each time; a call of the user loads it once and passes the Config on.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustrix_containers.api.quantities import RESOURCES, parse_resource
from clustrix_containers.errors import ConfigError

from .paths import APP

if TYPE_CHECKING:
    import yaml

__all__ = ["Config", "Target", "load"]

_FILE = "clustrix.yml"
_KEYS = ("default", "lock", "registry", "resources", "targets")
_STRING = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True, slots=True)
class Target:
    """Where to run: its ``type`` selects the cluster, which checks the ``options`` itself.

    ``line`` is that of its name in ``path``, ``lines`` those of its keys (nested ones by
    dotted name); for a target that no file defines they are ``None`` and empty.
    """

    name: str
    type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    line: int | None = None
    path: Path | None = None
    lines: Mapping[str, int] = field(default_factory=dict)

    def error(self, key: str, message: str, hint: str | None = None) -> ConfigError:
        """A ConfigError about an option, with its file and line (the target's if it is not set)."""
        line = self.lines.get(key, self.line)
        return _error(f"target {self.name!r}: {message}", self.path, line, key, hint)


_LOCAL = Target("local", "local")


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration. There is always a target ``local``.

    ``resources`` are defaults by the names of the fields of ``api.options.Resources``, parsed:
    ``memory`` and ``shm`` in bytes, ``timeout`` in seconds. ``path`` is ``None`` without a file.
    """

    default: str = "local"
    registry: str | None = None
    targets: Mapping[str, Target] = field(default_factory=lambda: {"local": _LOCAL})
    resources: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    lock: Path | None = None
    """The lock file that every image is built by."""

    def target(self, name: str | None = None) -> Target:
        """A target by name (``None``: the default one); ConfigError lists those that exist."""
        wanted = self.default if name is None else name
        if wanted in self.targets:
            return self.targets[wanted]
        hint = _targets_hint(wanted, self.targets)
        raise _error(f"no such target: {wanted!r}", self.path, None, wanted, hint)


def load(path: Path | str | None = None) -> Config:
    """Read ``clustrix.yml`` (or the file at ``path``) and the environment's overrides.

    ConfigError has ``path``, ``line`` (from 1) and ``key`` of what is wrong.
    """
    file = Path(path) if path is not None else _find()
    config = _parse(file) if file is not None else Config()
    registry, target = os.environ.get("CLUSTRIX_REGISTRY"), os.environ.get("CLUSTRIX_TARGET")
    if registry:
        _check_registry(registry, None, None, "CLUSTRIX_REGISTRY")
    if target and target not in config.targets:
        message = f"CLUSTRIX_TARGET names {target!r}: no such target"
        hint = _targets_hint(target, config.targets)
        raise _error(message, None, None, "CLUSTRIX_TARGET", hint)
    return replace(config, default=target or config.default, registry=registry or config.registry)


def _find() -> Path | None:
    if named := os.environ.get("CLUSTRIX_CONFIG"):
        return Path(named).expanduser()
    here = Path.cwd()
    for file in (directory / _FILE for directory in (here, *here.parents)):
        # Not another user's file in a world-writable directory such as /tmp.
        if file.is_file() and (
            not file.parent.stat().st_mode & stat.S_IWOTH or file.stat().st_uid == os.geteuid()
        ):
            return file
    import platformdirs

    file = Path(platformdirs.user_config_dir(APP)) / _FILE
    return file if file.is_file() else None


def _parse(path: Path) -> Config:
    document = _Document(path)
    fields = document.mapping(_compose(path), "", _KEYS)
    targets = {"local": _LOCAL} | document.targets(fields.get("targets"))
    resources = document.resources(fields.get("resources"))
    default, registry, lock = (
        document.text(fields.get(key), key) for key in ("default", "registry", "lock")
    )
    default = default or "local"
    if default not in targets:
        message, hint = f"no such target: {default!r}", _targets_hint(default, targets)
        raise document.error(fields["default"], "default", message, hint)
    if registry is not None:
        _check_registry(registry, path, _line(fields["registry"]), "registry")
    lock_path = path.parent.absolute() / lock if lock else None
    return Config(default, registry, targets, resources, path, lock_path)


def _compose(path: Path) -> yaml.Node | None:
    import yaml

    try:
        text = path.read_text(encoding="utf-8-sig")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise _error(f"cannot be read: {error.strerror}", path, None, None) from error
    except UnicodeDecodeError as error:
        raise _error("is not UTF-8", path, None, None) from error
    except yaml.YAMLError as error:
        # Text that no YAML can have (a control character) has no mark.
        mark = getattr(error, "problem_mark", None)
        message = f"not YAML: {getattr(error, 'problem', error)}"
        hint = "Indent with spaces, not with tabs." if "'\\t'" in message else None
        raise _error(message, path, mark and mark.line + 1, None, hint) from error


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _kind(node: yaml.Node) -> str:
    """mapping, sequence or scalar."""
    return str(getattr(node, "id", ""))


@dataclass(frozen=True)
class _Document:
    """Reads YAML's node tree, which has the line numbers."""

    path: Path
    values: dict[int, Any] = field(default_factory=dict)

    def error(
        self, node: yaml.Node, key: str | None, message: str, hint: str | None = None
    ) -> ConfigError:
        return _error(message, self.path, _line(node), key, hint)

    def pairs(self, node: yaml.Node | None, key: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Name, key node and value node of each entry; the names are strings and unique."""
        if node is None or node.tag == _NULL:
            return
        if _kind(node) != "mapping":
            message = f"{key or 'the file'} is not a mapping"
            raise self.error(node, key or None, message, "Expected name: value.")
        seen: set[str] = set()
        for name, value in node.value:
            if name.tag != _STRING:
                spelled = str(name.value if _kind(name) == "scalar" else f"a {_kind(name)}")
                merge = "Merge keys (<<) are not supported."
                hint = merge if spelled == "<<" else f'Quote it: "{spelled}".'
                raise self.error(name, spelled, f"the key {spelled!r} is not a string", hint)
            if name.value in seen:
                raise self.error(name, name.value, f"duplicate key {name.value!r}")
            seen.add(name.value)
            yield name.value, name, value

    def mapping(
        self, node: yaml.Node | None, key: str, known: Collection[str]
    ) -> dict[str, yaml.Node]:
        """The entries with a value; a key that is not ``known`` is an error."""
        found = {}
        for name, where, value in self.pairs(node, key):
            if name not in known:
                raise self.error(
                    where,
                    f"{key}.{name}" if key else name,
                    f"unknown key {name!r}" + (f" in {key}" if key else ""),
                    f"{_similar(name, known)}The keys are: {', '.join(known)}.",
                )
            if value.tag != _NULL:
                found[name] = value
        return found

    def text(self, node: yaml.Node | None, key: str) -> str | None:
        if node is None:
            return None
        if node.tag != _STRING or not node.value.strip():
            shown = repr(node.value) if _kind(node) == "scalar" else f"a {_kind(node)}"
            raise self.error(node, key, f"{key}: expected a string, not {shown}", "Quote it.")
        return str(node.value)

    def value(self, node: yaml.Node, key: str, inside: tuple[yaml.Node, ...] = ()) -> Any:
        """Any plain value, as ``yaml.safe_load`` constructs it; aliases share theirs."""
        if any(node is outer for outer in inside):
            raise self.error(node, key, f"{key} contains itself")
        if id(node) not in self.values:
            self.values[id(node)] = self._construct(node, key, (*inside, node))
        return self.values[id(node)]

    def _construct(self, node: yaml.Node, key: str, inside: tuple[yaml.Node, ...]) -> Any:
        import yaml

        if node.tag == "tag:yaml.org,2002:map":
            pairs = self.pairs(node, key)
            return {name: self.value(value, f"{key}.{name}", inside) for name, _, value in pairs}
        if node.tag == "tag:yaml.org,2002:seq":
            return [self.value(item, key, inside) for item in node.value]
        constructor = yaml.SafeLoader("")
        try:
            return constructor.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            reason = getattr(error, "problem", None) or error
            raise self.error(node, key, f"{key}: {reason}") from error
        finally:
            constructor.dispose()

    def targets(self, node: yaml.Node | None) -> dict[str, Target]:
        found = {}
        for name, where, target in self.pairs(node, "targets"):
            key = f"targets.{name}"
            options = {option: value for option, _, value in self.pairs(target, key)}
            kind = self.text(options.pop("type", None), f"{key}.type")
            if kind is None:
                hint = "Add one, as in type: local."
                raise self.error(where, key, f"the target {name!r} has no type", hint)
            values = {it: self.value(value, f"{key}.{it}") for it, value in options.items()}
            lines = dict(self.lines(target, ""))
            found[name] = Target(name, kind, values, _line(where), self.path, lines)
        return found

    def lines(self, node: yaml.Node, prefix: str, depth: int = 3) -> Iterator[tuple[str, int]]:
        """The line of each key, nested ones by dotted name (to a limited depth: aliases can multiply)."""
        if depth and _kind(node) == "mapping":
            for name, value in node.value:
                yield f"{prefix}{name.value}", _line(name)
                yield from self.lines(value, f"{prefix}{name.value}.", depth - 1)

    def resources(self, node: yaml.Node | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in self.mapping(node, "resources", RESOURCES).items():
            key = f"resources.{name}"
            plain = self.value(value, key)
            try:
                found[name] = parse_resource(name, plain)
            except ConfigError as error:
                raise self.error(value, key, f"resources.{error.message}", error.hint) from None
        return found


def _error(
    message: str, path: Path | None, line: int | None, key: str | None, hint: str | None = None
) -> ConfigError:
    place = ":".join(str(part) for part in (path, line) if part is not None)
    return ConfigError(
        f"{place}: {message}" if place else message,
        hint=hint,
        path=path and str(path),
        line=line,
        key=key,
    )


def _similar(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {close[0]!r}? " if close else ""


def _targets_hint(name: str, targets: Iterable[str]) -> str:
    return f"{_similar(name, targets)}The targets are: {', '.join(sorted(targets))}."


def _check_registry(value: str, path: Path | None, line: int | None, key: str) -> None:
    if "://" in value or re.search(r"\s", value) or value.endswith("/"):
        raise _error(
            f"{key}: expected host[:port]/name, not {value!r}",
            path,
            line,
            key,
            "Write it without https://, as in registry.example.org/team/runs.",
        )
