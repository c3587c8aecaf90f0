"""The static walk: from the function's own files over every local module that they reach."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from clustrix_containers.errors import CaptureError, DependencyError
from clustrix_containers.oci.model import Platform
from clustrix_containers.worker import contract

from . import compiled, datafiles, editable, syntax
from .bundle import File, Import, Note
from .modules import Finder, Module
from .syntax import Statement

_Chain = tuple[str, ...]

_MISSING_HINT = (
    "Install it here, or name its distribution with packages= (or the local module with "
    "modules=). If the function can do without it, import it inside try/except ImportError."
)


@dataclass
class Walk:
    """Collects local files, third-party imports and notes, as things are reached.

    Nothing is imported or executed. ``finish`` follows what is still to follow and must be
    called once, last.
    """

    finder: Finder
    platform: Platform
    allow_secrets: bool = False
    files: dict[str, File] = field(default_factory=dict)
    imports: dict[str, Import] = field(default_factory=dict)
    notes: dict[tuple[str, str], Note] = field(default_factory=dict)
    _reached: dict[str, Module] = field(default_factory=dict)
    _queue: deque[tuple[Module, _Chain]] = field(default_factory=deque)
    _scripts: set[Path] = field(default_factory=set)
    _entry: list[tuple[str, range]] = field(default_factory=list)
    _whole: set[str] | None = field(default_factory=set)
    _used: set[str] = field(default_factory=set)
    _units: dict[str, list[frozenset[str]]] = field(default_factory=dict)
    _waiting: dict[str, list[Callable[[], None]]] = field(default_factory=dict)

    def whole(self, *modules: str) -> None:
        """Take all functions of these modules (of every module, if none is named) as reached."""
        if not modules:
            self._whole = None
        elif self._whole is not None:
            self._whole.update(modules)

    def use(self, names: Iterable[str]) -> None:
        """These names are used: what the functions of that name import is reached."""
        todo = [*names]
        while todo:
            name = todo.pop()
            if name in self._used:
                continue
            self._used.add(name)
            for used in self._units.get(name, ()):
                todo.extend(used)
            for reached in self._waiting.pop(name, ()):
                reached()

    def entry_lines(self, path: str, lines: range) -> None:
        """The lines of the function itself: a plain import in them must resolve."""
        self._entry.append((path, lines))

    def finish(self) -> None:
        """Follow everything that is reached; check the data files."""
        while self._queue:
            module, chain = self._queue.popleft()
            self._visit(module, chain)
        for file in editable.metadata_of(list(self._reached.values())):
            self.add(file)
        datafiles.check(self.files.values(), allow_secrets=self.allow_secrets)

    def add(self, file: File) -> None:
        """One file of the code layer; the same path twice with other content is an error."""
        known = self.files.get(file.path)
        if known is None:
            self.files[file.path] = file
        elif known.content != file.content and _bytes(known) != _bytes(file):
            raise CaptureError(
                f"two different files would be {file.path} in the image: "
                f"{known.reason}; {file.reason}",
                hint="Rename one of them.",
                path=file.path,
            )

    def source(self, path: str, content: bytes, name: str, reason: str) -> None:
        """A source file: searched for secrets, added."""
        if path not in self.files and not self.allow_secrets:
            datafiles.refuse_secret(content, name)
        self.add(File(path, content, reason))

    def script(self, path: Path, reason: str) -> str:
        """The script at ``path``, with what it reaches; gives its place under the code root."""
        place = path.name
        if path not in self._scripts:
            self._scripts.add(path)
            content = path.read_bytes()
            self.source(place, content, str(path), reason)
            # A script is a module of no package: relative imports in it fail anywhere.
            self.statements(syntax.parse(content, str(path)), Module("", "local"), place, ())
        return place

    def tree(self, name: str, where: str) -> None:
        """A module that the user names, and if it is a package, all local modules below it."""
        self.whole(name)
        self.module(name, where, ())
        module = self.finder.find(name)
        for directory in module.directories if module.kind == "local" else ():
            for path in datafiles.sources_of_package(directory):
                parts = path.relative_to(directory).with_suffix("").parts
                inner = ".".join(part for part in parts if part != "__init__")
                if inner and all(part.isidentifier() for part in parts):
                    self.whole(f"{name}.{inner}")
                    self.module(f"{name}.{inner}", where, ())

    def module(
        self, name: str, where: str, chain: _Chain, *, optional: bool = False, sure: bool = True
    ) -> None:
        """Reach a module by name. ``sure``: it is an error if there is no such module."""
        found = self.finder.find(name)
        if found.kind == "missing":
            self._missing(name, where, chain, optional=optional, sure=sure)
        elif found.kind == "installed":
            self._third_party(Import(name, where, chain, optional))
        elif found.kind == "local":
            parts = name.split(".")
            for length in range(1, len(parts) + 1):
                self._local(self.finder.find(".".join(parts[:length])), where, chain)

    def statements(self, source: syntax.Source, module: Module, path: str, chain: _Chain) -> None:
        """What a file imports. ``path`` is how messages name the file."""
        name = module.name or path
        whole = self._whole is None or (module.name or contract.MAIN) in self._whole
        for unit, used in source.units.items():
            self._units.setdefault(unit, []).append(used)
            if whole or unit in self._used:
                self.use((unit, *used))
        self.use(source.uses)
        for statement in source.imports:
            if not statement.guarded:
                self._when_used(
                    statement.unit,
                    partial(self.statement, statement, module, path, (*chain, name)),
                )
        for line, call, unit in source.dynamic:
            self._when_used(unit, partial(self._dynamic, f"{path}:{line}", call))

    def _when_used(self, unit: str, reached: Callable[[], None]) -> None:
        if not unit or unit in self._used:
            reached()
        else:
            self._waiting.setdefault(unit, []).append(reached)

    def _dynamic(self, where: str, call: str) -> None:
        self.note(
            where,
            f"{call} names what it imports only when it runs",
            "If it can be a local module, name that with modules=; if it can be a "
            "third-party one, name its distribution with packages=.",
        )

    def statement(self, statement: Statement, module: Module, path: str, chain: _Chain) -> None:
        """One import, as it stands in ``module``."""
        where = f"{path}:{statement.line}"
        base = _resolve(statement, module)
        if base is None:
            if not statement.optional:
                self._missing("." * statement.level + statement.module, where, chain, sure=True)
            return
        optional = statement.optional
        sure = not statement.conditional and (
            not statement.deferred or self._in_entry(path, statement.line)
        )
        found = self.finder.find(base)
        if statement.resource:
            if found.kind == "local":
                self.module(base, where, chain, optional=True)
            return
        submodules = [
            f"{base}.{name}" for name in self._candidates(statement, found) if _submodules(found)
        ]
        there = [name for name in submodules if self.finder.find(name).kind != "missing"]
        if not (there and found.file is None and found.kind == "installed"):
            self.module(base, where, chain, optional=optional, sure=sure)
        for name in there:
            self.module(name, where, chain, optional=optional)
        if found.kind == "local" and found.file is None:
            for name in sorted(set(submodules) - set(there)):
                self._missing(name, where, chain, optional=optional, sure=sure)

    def _candidates(self, statement: Statement, base: Module) -> tuple[str, ...]:
        """Names of a ``from`` import that may be submodules."""
        if base.kind != "local" or base.file is None or base.file.suffix != ".py":
            return tuple(name for name in statement.names if name != "*")
        source = syntax.parse(base.file.read_bytes(), str(base.file))
        names = [name for name in statement.names if name != "*"]
        if "*" in statement.names:
            names += source.exports
        return tuple(name for name in names if name not in source.bound)

    def _in_entry(self, path: str, line: int) -> bool:
        return any(path == place and line in lines for place, lines in self._entry)

    def _third_party(self, found: Import) -> None:
        known = self.imports.get(found.module)
        if known is None or (known.optional and not found.optional):
            self.imports[found.module] = found

    def _local(self, module: Module, where: str, chain: _Chain) -> None:
        if module.kind != "local" or module.name in self._reached:
            return
        self._reached[module.name] = module
        self._queue.append((module, chain))
        imported = f"{where} imports {module.name}"
        reason = imported if ":" in where else f"{module.name}, which {where} needs"
        if module.file is not None:
            self._code(module, module.file, reason)
        for directory in module.directories:
            if "site-packages" in directory.parts or "dist-packages" in directory.parts:
                continue
            data = f"data of the package {module.name}"
            base = module.name.replace(".", "/")
            for file in datafiles.of_package(directory, base, data, deep=module.file is not None):
                # As importlib.resources: of several portions the first wins.
                self.files.setdefault(file.path, file)

    def _code(self, module: Module, file: Path, reason: str) -> None:
        if file.suffix == ".py":
            self.source(module.path, file.read_bytes(), str(file), reason)
            return
        if compiled.is_extension(file):
            compiled.check(file, module.name, self.platform)
        self.add(File(module.path, file, reason))
        self.note(
            module.path,
            f"{module.name} is compiled: what it imports cannot be seen",
            "Name what it needs with packages= or modules=.",
        )

    def _visit(self, module: Module, chain: _Chain) -> None:
        if module.file is None or module.file.suffix != ".py":
            return
        content = self.files[module.path].content
        assert isinstance(content, bytes)
        self.statements(syntax.parse(content, str(module.file)), module, module.path, chain)

    def _missing(
        self, name: str, where: str, chain: _Chain, *, optional: bool = False, sure: bool
    ) -> None:
        parts = name.split(".")
        for length in range(len(parts) - 1, 0, -1):
            above = self.finder.find(".".join(parts[:length])) if parts[0] else None
            if above is None or above.kind == "missing":
                continue
            if above.kind == "installed":
                # Packages make modules up when they are imported.
                self._third_party(Import(name, where, chain, optional))
                return
            if not optional:
                compiled.refuse_other_builds(name, above.directories, self.platform)
            break
        if optional:
            return
        if "." not in name:
            compiled.refuse_other_builds(name, _roots(self._reached.values()), self.platform)
        through = f" (reached through {' > '.join(chain)})" if len(chain) > 1 else ""
        message = f"{where} imports {name}, which is not there{through}"
        if sure:
            raise DependencyError(message, hint=_MISSING_HINT, module=name, where=where)
        self.note(where, message, _MISSING_HINT)

    def note(self, where: str, message: str, hint: str) -> None:
        """Something that only the user can know."""
        self.notes.setdefault((where, message), Note(where, message, hint))


def _submodules(module: Module) -> bool:
    """Whether ``from module import x`` must be looked at for submodules."""
    return module.package and (module.kind == "local" or module.file is None)


def _resolve(statement: Statement, module: Module) -> str | None:
    """The absolute name that an import starts from, or ``None`` beyond the top."""
    if statement.level == 0:
        return statement.module
    parts = module.name.split(".") if module.name else []
    if not module.package:
        parts = parts[:-1]
    parts = parts[: len(parts) - statement.level + 1]
    if not parts:
        return None
    return ".".join([*parts, statement.module] if statement.module else parts)


def _roots(modules: Iterable[Module]) -> tuple[Path, ...]:
    roots = {Path(entry or ".") for entry in sys.path}
    roots.update(module.file.parent for module in modules if module.file is not None)
    return tuple(sorted(roots))


def _bytes(file: File) -> bytes:
    return file.content if isinstance(file.content, bytes) else file.content.read_bytes()
