"""The running interpreter, packed as a base image: no network, no daemon, no registry.

The interpreter and its standard library are under ``/opt/python``; the shared libraries that it
needs and those that PEP 600 lets a wheel expect are where its loader searches by default; a
shell, certificates, time zones, users and mount points make it a root file system.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from clustrix_containers.errors import ImageError
from clustrix_containers.image.bytecode import bytecode_layer
from clustrix_containers.oci.archive import Entry, directory, link, write_layer
from clustrix_containers.oci.model import Image, Layer, Platform
from clustrix_containers.oci.store import cache_key, cached_layers
from clustrix_containers.worker.contract import LABEL_PYTHON, PYTHON_ROOT

from . import LABEL_GLIBC, LABEL_INTERPRETER, LIBRARIES, MINOR
from .libraries import MANYLINUX, SERVICES, Libraries, find_libraries

_STDLIB = Path(os.__file__).parent
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"

_EXCLUDED = frozenset(
    {
        "test", "tests", "idlelib", "turtledemo", "tkinter", "site-packages", "dist-packages",
        "__pycache__", "ensurepip",
    }
)  # fmt: skip
_EXCLUDED_EXTENSIONS = ("_tkinter.", "_test", "xxlimited", "_ctypes_test.", "_xx")
_COMMANDS = (
    "basename", "cat", "chmod", "cp", "cut", "date", "dirname", "echo", "env", "false", "grep",
    "head", "hostname", "id", "ln", "ls", "mkdir", "mktemp", "mv", "nproc", "printenv", "printf",
    "pwd", "readlink", "realpath", "rm", "rmdir", "sed", "sleep", "sort", "stat", "tail", "tee",
    "test", "touch", "tr", "true", "uname", "wc", "which", "whoami",
)  # fmt: skip
_CERTIFICATE_PATHS = (
    CERTIFICATES,
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_EMPTY_FILES = ("etc/localtime", "etc/resolv.conf", "etc/hosts", "etc/hostname")
_DIRECTORIES = ("proc", "dev", "sys", "run", "root", "home", "mnt", "srv", "var", "opt", "etc")
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n"
_GROUP = b"root:x:0:\nnogroup:x:65534:\n"
_NSSWITCH = b"passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"


def packed(cache: Path) -> Image:
    """The running interpreter as a base image of two layers, made once per interpreter.

    ImageError on another system than Linux, and for a needed library that cannot be found.
    """
    if sys.platform != "linux":
        raise ImageError(
            f"the running interpreter is for {sys.platform}: only one for Linux can be packed",
            hint="Name a base image: base='python:X.Y-slim@sha256:…'.",
        )
    executable = _executable()

    def make() -> Iterator[Layer]:
        title = f"Python {platform.python_version()}"
        entries, libraries = _root(executable)
        layer = write_layer(
            entries,
            cache=cache,
            form="isal",
            kind="base",
            title=title,
            owned=("",),
            annotations={LIBRARIES: " ".join(sorted(libraries.paths))},
        )
        stdlib = f"{PYTHON_ROOT[1:]}/{sys.platlibdir}/python{MINOR}"
        code = bytecode_layer(
            lambda: entries, stdlib, ["stdlib", layer.diff_id], title=title, cache=cache
        )
        yield from (layer, code) if code else (layer,)

    key = cache_key("packed", str(executable), sys.version, _fingerprint(executable))
    return Image(cached_layers(cache, key, make), Platform.host(), _settings())


def _settings() -> dict[str, Any]:
    labels = {
        LABEL_PYTHON: platform.python_version(),
        LABEL_INTERPRETER: f"{PYTHON_ROOT}/bin/python{MINOR}",
    }
    name, version = platform.libc_ver()
    if name == "glibc":
        labels[LABEL_GLIBC] = version
    env = [f"PATH={PYTHON_ROOT}/bin:/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"]
    if _certificates():
        env.append(f"SSL_CERT_FILE={CERTIFICATES}")
    return {"Env": env, "Labels": labels}


def _executable() -> Path:
    """The interpreter's own file: not a virtual environment's link, not a shim."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    for candidate in (Path(base), Path(sys.base_prefix, f"bin/python{MINOR}")):
        resolved = candidate.resolve()
        if resolved.is_file():
            return resolved
    raise ImageError(
        f"the running interpreter's file does not exist: {base!r}",
        hint="Name a base image: base=.",
    )


def _fingerprint(executable: Path) -> list[list[Any]]:
    library = sysconfig.get_config_var("LDLIBRARY") or ""
    paths = [
        executable,
        _STDLIB,
        _STDLIB / "os.py",
        _STDLIB / "lib-dynload",
        Path(sysconfig.get_config_var("LIBDIR") or "/nowhere", library),
        Path("/etc/ld.so.cache"),
        *(Path(path) for path in _CERTIFICATE_PATHS),
        Path("/usr/share/zoneinfo"),
    ]
    found: list[list[Any]] = []
    for path in paths:
        with suppress(OSError):
            stat = path.stat()
            found.append([str(path), stat.st_size, stat.st_mtime_ns])
    return found


def _root(executable: Path) -> tuple[list[Entry], Libraries]:
    entries = list(_python(executable))
    commands = {
        name: Path(path).resolve()
        for name in ("sh", *_COMMANDS)
        if (path := shutil.which(name, path="/bin:/usr/bin"))
    }
    binaries = [executable, *commands.values()]
    binaries += [
        entry.content
        for entry in entries
        if isinstance(entry.content, Path) and ".so" in entry.content.name
    ]
    needed = find_libraries(binaries, (*MANYLINUX, *SERVICES))
    libraries = {f"{needed.directory}/{name}": path for name, path in needed.paths.items()}
    libraries[needed.loader] = Path(needed.loader)
    entries += [Entry(name[1:], path.resolve(), 0o755) for name, path in libraries.items()]
    entries += [Entry(f"usr/bin/{name}", path, 0o755) for name, path in commands.items()]
    entries += [link("bin", "usr/bin"), *_system()]
    return entries, needed


def _python(executable: Path) -> Iterator[Entry]:
    root = PYTHON_ROOT[1:]
    yield Entry(f"{root}/bin/python{MINOR}", executable, 0o755)
    yield link(f"{root}/bin/python3", f"python{MINOR}")
    yield link(f"{root}/bin/python", f"python{MINOR}")
    yield link("usr/bin/python3", f"{PYTHON_ROOT}/bin/python{MINOR}")
    target = f"{root}/{sys.platlibdir}/python{MINOR}"
    yield directory(f"{target}/lib-dynload")
    yield directory(f"{target}/site-packages")
    trees = [(_STDLIB, Path())]
    dynload, usual = Path(sysconfig.get_config_var("DESTSHARED") or ""), _STDLIB / "lib-dynload"
    if dynload.name and dynload.is_dir() and dynload.resolve() != usual.resolve():
        trees.append((dynload, Path("lib-dynload")))
    for tree, name in trees:
        for path in walk(tree):
            relative = name / path.relative_to(tree)
            if _is_included(relative):
                # As in a wheel's tree: shared objects keep their modes.
                mode = 0o755 if os.access(path, os.X_OK) else 0o644
                yield Entry(f"{target}/{relative.as_posix()}", path.resolve(), mode)


def _is_included(relative: Path) -> bool:
    parts = relative.parts
    if _EXCLUDED.intersection(parts[:-1]) or parts[0].startswith("config-"):
        return False
    name = parts[-1]
    if parts[0] == "lib-dynload" and name.startswith(_EXCLUDED_EXTENSIONS):
        return False
    return not name.endswith((".pyc", ".a", ".o", ".exe"))


def walk(top: Path) -> Iterator[Path]:
    """All regular files below a directory and links to files, sorted within each directory."""
    for folder, folders, names in os.walk(top):
        folders.sort()
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file():
                yield path


def _certificates() -> Path | None:
    return next((path for p in _CERTIFICATE_PATHS if (path := Path(p)).is_file()), None)


def _system() -> Iterable[Entry]:
    yield from (directory(name) for name in _DIRECTORIES)
    yield directory("tmp", 0o1777)
    yield directory("var/tmp", 0o1777)
    yield from (Entry(name) for name in _EMPTY_FILES)
    yield Entry("etc/passwd", _PASSWD)
    yield Entry("etc/group", _GROUP)
    yield Entry("etc/nsswitch.conf", _NSSWITCH)
    if certificates := _certificates():
        yield Entry(CERTIFICATES[1:], certificates.resolve())
    for name in ("usr/share/zoneinfo", "usr/lib/locale/C.utf8"):
        # os.walk gives nothing for a directory that does not exist.
        for path in walk(Path("/", name)):
            relative = path.relative_to(f"/{name}")
            if relative.parts[0] not in ("right", "posix"):
                yield Entry(f"{name}/{relative.as_posix()}", path.resolve())
