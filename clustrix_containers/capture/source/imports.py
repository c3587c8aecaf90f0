"""The static walk: from the function's own files over every local module that they reach."""

from __future__ import annotations

import importlib.util
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path

from clustrix_containers.capture.bundle import File, Import, Note
from clustrix_containers.capture.secrets import refuse_secret
from clustrix_containers.errors import CaptureError, DependencyError
from clustrix_containers.oci.model import Platform
from clustrix_containers.worker import contract

from . import datafiles, modules, syntax
from .modules import Finder, Module, installed_path
from .syntax import Statement

_Chain = tuple[str, ...]

_MISSING_HINT = (
    "Install it here, or name its distribution with packages= (or the local module with "
    "modules=). If the function can run without it, import it inside try/except ImportError."
)
_DYNAMIC_HINT = (
    "If it can be a local module, name it with modules=; if it can be a third-party one, name "
    "its distribution with packages=."
)


@dataclass
class ImportWalk:
    """Collects the local files, third-party imports and notes of everything that is reached.

    Nothing is imported or executed. ``finish`` follows the queue and must be called once, last.
    """

    finder: Finder
    platform: Platform
    allow_secrets: bool = False
    files: dict[str, File] = field(default_factory=dict)
    imports: dict[str, Import] = field(default_factory=dict)
    notes: dict[tuple[str, str], Note] = field(default_factory=dict)
    _reached: dict[str, Module] = field(default_factory=dict)
    _queue: deque[tuple[Module, _Chain]] = field(default_factory=deque)
    _entry: list[tuple[str, range]] = field(default_factory=list)
    _all_reached: set[str] | None = field(default_factory=set)
    _used: set[str] = field(default_factory=set)
    _units: dict[str, list[set[str]]] = field(default_factory=dict)
    _waiting: dict[str, list[Callable[[], None]]] = field(default_factory=dict)

    def reach_all(self, *modules: str) -> None:
        """Treat all functions of these modules (of every module, if none is named) as reached."""
        if not modules:
            self._all_reached = None
        elif self._all_reached is not None:
            self._all_reached.update(modules)

    def use(self, names: Iterable[str]) -> None:
        """Mark names as used: the imports of the functions with these names are reached."""
        queue = [*names]
        while queue:
            name = queue.pop()
            if name not in self._used:
                self._used.add(name)
                for used in self._units.get(name, ()):
                    queue.extend(used)
                for reached in self._waiting.pop(name, ()):
                    reached()

    def add_entry_lines(self, path: str, lines: range) -> None:
        """The lines of the function itself: an unconditional import in them must resolve."""
        self._entry.append((path, lines))

    def finish(self) -> None:
        """Follow everything that is reached; check the data files."""
        while self._queue:
            module, chain = self._queue.popleft()
            if module.file is not None and module.file.suffix == ".py":
                # As it is in the image, whatever happens to the file here.
                source = syntax.parse(_bytes(self.files[module.path]), str(module.file))
                self._add_imports(source, module, module.path, chain)
        for file in datafiles.editable_metadata(list(self._reached.values())):
            self.add_file(file)
        datafiles.check(self.files.values(), allow_secrets=self.allow_secrets)

    def add_file(self, file: File) -> None:
        """Add one file of the code layer; a path with two different contents is an error."""
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

    def add_source(self, path: str, content: bytes, name: str, reason: str) -> None:
        """Add a source file, after a search for secrets."""
        if path not in self.files and not self.allow_secrets:
            refuse_secret(content, name)
        self.add_file(File(path, content, reason))

    def add_script(self, path: Path, reason: str) -> str:
        """The script at ``path``, with what it reaches; returns its path under the code root."""
        content = path.read_bytes()
        self.add_source(path.name, content, str(path), reason)
        # A script is a module of no package: relative imports in it fail anywhere.
        self._add_imports(syntax.parse(content, str(path)), Module("", "local"), path.name, ())
        return path.name

    def add_package(self, name: str, where: str) -> None:
        """A module that the user names; of a package, all local modules below it too."""
        self.reach_all(name)
        self.add_module(name, where, ())
        module = self.finder.find(name)
        for directory in module.directories if module.kind == "local" else ():
            for path in datafiles.files_below(directory):
                if path.suffix != ".py":
                    continue
                parts = path.relative_to(directory).with_suffix("").parts
                inner = ".".join(part for part in parts if part != "__init__")
                if inner and all(part.isidentifier() for part in parts):
                    self.reach_all(f"{name}.{inner}")
                    self.add_module(f"{name}.{inner}", where, ())

    def add_module(
        self, name: str, where: str, chain: _Chain, *, optional: bool = False, required: bool = True
    ) -> None:
        """Reach a module by name. ``required``: a missing module is an error, not a note."""
        found = self.finder.find(name)
        if found.kind == "missing":
            self._missing(name, where, chain, optional=optional, required=required)
        elif found.kind == "installed":
            self._third_party(Import(name, where, chain, optional))
        elif found.kind == "local":
            for outer in accumulate(name.split("."), "{}.{}".format):
                self._local(self.finder.find(outer), where, chain)

    def _add_imports(self, source: syntax.Source, module: Module, path: str, chain: _Chain) -> None:
        """What a file imports. ``path`` is the file's name in messages."""
        name = module.name or path
        whole = self._all_reached is None or (module.name or contract.MAIN) in self._all_reached
        for unit, used in source.units.items():
            self._units.setdefault(unit, []).append(used)
            if whole or unit in self._used:
                self.use((unit, *used))
        self.use(source.uses)
        for statement in source.imports:
            if not statement.guarded:
                self._when_used(
                    statement.unit,
                    partial(self.add_statement, statement, module, path, (*chain, name)),
                )
        for line, call, unit in source.dynamic:
            message = f"the name that {call} imports is known only at run time"
            self._when_used(unit, partial(self.add_note, f"{path}:{line}", message, _DYNAMIC_HINT))

    def _when_used(self, unit: str, reached: Callable[[], None]) -> None:
        if not unit or unit in self._used:
            reached()
        else:
            self._waiting.setdefault(unit, []).append(reached)

    def add_statement(self, statement: Statement, module: Module, path: str, chain: _Chain) -> None:
        """One import of ``module``."""
        where = f"{path}:{statement.line}"
        optional = statement.optional
        base = _resolve(statement, module)
        if base is None:
            name = "." * statement.level + statement.module
            self._missing(name, where, chain, optional=optional, required=True)
            return
        required = not statement.conditional and (
            not statement.deferred
            or any(path == file and statement.line in lines for file, lines in self._entry)
        )
        found = self.finder.find(base)
        if statement.resource:
            if found.kind == "local":
                self.add_module(base, where, chain, optional=True)
            return
        submodules = _submodules(statement, found)
        present = [name for name in submodules if self.finder.find(name).kind != "missing"]
        if not (present and found.file is None and found.kind == "installed"):
            self.add_module(base, where, chain, optional=optional, required=required)
        for name in present:
            self.add_module(name, where, chain, optional=optional)
        if found.kind == "local" and found.file is None:
            for name in sorted(set(submodules) - set(present)):
                self._missing(name, where, chain, optional=optional, required=required)

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
            if installed_path(directory) is not None:
                continue
            data = f"data of the package {module.name}"
            base = module.name.replace(".", "/")
            for file in datafiles.package_data(directory, base, data, deep=module.file is not None):
                # As importlib.resources: of several portions the first wins.
                self.files.setdefault(file.path, file)

    def _code(self, module: Module, file: Path, reason: str) -> None:
        if file.suffix == ".py":
            self.add_source(module.path, file.read_bytes(), str(file), reason)
            return
        if modules.is_extension(file):
            modules.check_extension(file, module.name, self.platform)
        self.add_file(File(module.path, file, reason))
        self.add_note(
            module.path,
            f"{module.name} is compiled: its imports are unknown",
            "Name what it needs with packages= or modules=.",
        )

    def _missing(
        self, name: str, where: str, chain: _Chain, *, optional: bool = False, required: bool
    ) -> None:
        outer = list(accumulate(name.split("."), "{}.{}".format))[-2::-1]
        present = (found for found in map(self.finder.find, outer) if found.kind != "missing")
        parent = next(present, None)
        if parent is not None and parent.kind == "installed":
            # Packages can create modules when they are imported.
            self._third_party(Import(name, where, chain, optional))
            return
        if optional:
            return
        if parent is not None:
            modules.refuse_other_builds(name, parent.directories, self.platform)
        if "." not in name:
            roots = {Path(entry) for entry in sys.path}
            roots.update(it.file.parent for it in self._reached.values() if it.file is not None)
            modules.refuse_other_builds(name, tuple(sorted(roots)), self.platform)
        through = f" (reached through {' > '.join(chain)})" if len(chain) > 1 else ""
        message = f"{where} imports {name}, which was not found{through}"
        if required:
            raise DependencyError(message, hint=_MISSING_HINT, module=name, where=where)
        self.add_note(where, message, _MISSING_HINT)

    def add_note(self, where: str, message: str, hint: str) -> None:
        """Add a note about what only the user can know."""
        self.notes.setdefault((where, message), Note(where, message, hint))


def _submodules(statement: Statement, package: Module) -> list[str]:
    """The full names of what a ``from`` import takes from a package and may be submodules."""
    if not package.package or (package.kind != "local" and package.file is not None):
        return []
    names = [name for name in statement.names if name != "*"]
    if package.kind == "local" and package.file is not None and package.file.suffix == ".py":
        source = syntax.parse(package.file.read_bytes(), str(package.file))
        names += source.exports if "*" in statement.names else ()
        names = [name for name in names if name not in source.bound]
    return [f"{package.name}.{name}" for name in names]


def _resolve(statement: Statement, module: Module) -> str | None:
    """The absolute name that an import starts from; ``None`` beyond the top-level package."""
    package = module.name if module.package else module.name.rpartition(".")[0]
    try:
        return importlib.util.resolve_name("." * statement.level + statement.module, package)
    except ImportError:
        return None


def _bytes(file: File) -> bytes:
    return file.content if isinstance(file.content, bytes) else file.content.read_bytes()
