"""The running interpreter, packed as a base image: no network, no daemon, no registry.

Under ``/opt/python`` lies the interpreter with its standard library; where its loader looks by
itself lie the shared libraries that it needs and those that PEP 600 lets a wheel expect; a
shell, certificates, time zones, users and mount points make it a root file system.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.archive import Entry, directory, link, write_layer
from clustrix_containers.oci.model import Image, Platform
from clustrix_containers.oci.store import Progress, cache_key, recall, remember
from clustrix_containers.worker.contract import LABEL_PYTHON, PYTHON_ROOT

from .bytecode import bytecode_layer, sources
from .facts import LABEL_GLIBC, LABEL_INTERPRETER, LIBRARIES
from .libraries import PEP600, SERVICES, Closure, closure

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x"}
_WITHOUT = frozenset(
    {
        "test", "tests", "idlelib", "turtledemo", "tkinter", "site-packages", "dist-packages",
        "__pycache__", "ensurepip",
    }
)  # fmt: skip
_EXTENSIONS_WITHOUT = ("_tkinter.", "_test", "xxlimited", "_ctypes_test.", "_xx")
_COMMANDS = (
    "basename", "cat", "chmod", "cp", "cut", "date", "dirname", "echo", "env", "false", "grep",
    "head", "hostname", "id", "ln", "ls", "mkdir", "mktemp", "mv", "nproc", "printenv", "printf",
    "pwd", "readlink", "realpath", "rm", "rmdir", "sed", "sleep", "sort", "stat", "tail", "tee",
    "test", "touch", "tr", "true", "uname", "wc", "which", "whoami",
)  # fmt: skip
_CERTIFICATE_PLACES = (
    CERTIFICATES,
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_EMPTY_FILES = ("etc/localtime", "etc/resolv.conf", "etc/hosts", "etc/hostname")
_DIRECTORIES = ("proc", "dev", "sys", "run", "root", "home", "mnt", "srv", "var", "opt", "etc")
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n"
_GROUP = b"root:x:0:\nnogroup:x:65534:\n"
_SWITCH = b"passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"


def packed(cache: Path, *, progress: Progress | None = None) -> Image:
    """The running interpreter as a base image of two layers, made once per interpreter.

    ImageError where this is not Linux, or where a library that it needs cannot be found.
    """
    if sys.platform != "linux":
        raise ImageError(
            f"the running interpreter is one of {sys.platform}: only Linux's can be packed",
            hint="Name a base image: base='python:X.Y-slim@sha256:…'.",
        )
    executable = _executable()
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    key = cache_key("packed", str(executable), sys.version, _fingerprint(executable))
    layers = recall(cache, key)
    if layers is None:
        if progress:
            progress(f"packing {_title()}", 0, None)
        entries, found = _root(executable, minor)
        layer = write_layer(
            entries,
            cache=cache,
            form="isal",
            kind="base",
            title=_title(),
            owned=("",),
            notes={LIBRARIES: " ".join(sorted(found.libraries))},
        )
        stdlib = f"{PYTHON_ROOT[1:]}/{sys.platlibdir}/python{minor}"
        code = bytecode_layer(
            lambda: sources(entries, stdlib), ["stdlib", layer.diff_id], title=_title(), cache=cache
        )
        layers = (layer, code) if code else (layer,)
        remember(cache, key, layers)
        if progress:
            progress(f"packing {_title()}", 1, 1)
    machine = platform.machine()
    return Image(
        layers,
        Platform("linux", _MACHINES.get(machine, machine)),
        _settings(minor),
    )


def _title() -> str:
    return f"Python {platform.python_version()}"


def _settings(minor: str) -> dict[str, Any]:
    labels = {
        LABEL_PYTHON: platform.python_version(),
        LABEL_INTERPRETER: f"{PYTHON_ROOT}/bin/python{minor}",
    }
    if version := _glibc():
        labels[LABEL_GLIBC] = version
    env = [f"PATH={PYTHON_ROOT}/bin:/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"]
    if _certificates():
        env.append(f"SSL_CERT_FILE={CERTIFICATES}")
    return {"Env": env, "Labels": labels}


def _glibc() -> str | None:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        return None
    return version if name == "glibc" else None


def _executable() -> Path:
    """The interpreter itself: not a virtual environment's link, not a shim."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    minor = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for candidate in (Path(base), Path(sys.base_prefix, "bin", minor)):
        resolved = candidate.resolve()
        if resolved.is_file():
            return resolved
    raise ImageError(
        f"the running interpreter has no file: {base!r}", hint="Name a base image: base=."
    )


def _stdlib() -> Path:
    return Path(os.__file__).parent


def _fingerprint(executable: Path) -> list[list[Any]]:
    stdlib = _stdlib()
    library = sysconfig.get_config_var("LDLIBRARY") or ""
    places = [
        executable,
        stdlib,
        stdlib / "os.py",
        stdlib / "lib-dynload",
        Path(sysconfig.get_config_var("LIBDIR") or "/nowhere", library),
        Path("/etc/ld.so.cache"),
        *(Path(place) for place in _CERTIFICATE_PLACES),
        Path("/usr/share/zoneinfo"),
    ]
    return [[str(place), *_stat(place)] for place in places]


def _stat(place: Path) -> tuple[int, ...]:
    try:
        stat = place.stat()
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns


def _root(executable: Path, minor: str) -> tuple[list[Entry], Closure]:
    entries = list(_python(executable, minor))
    commands = {name: path for name in ("sh", *_COMMANDS) if (path := _command(name))}
    binaries = [executable, *commands.values()]
    binaries += [
        entry.content
        for entry in entries
        if isinstance(entry.content, Path) and ".so" in entry.content.name
    ]
    found = closure(binaries, (*PEP600, *SERVICES))
    entries.append(Entry(found.loader[1:], Path(found.loader).resolve(), 0o755))
    for name, path in found.libraries.items():
        entries.append(Entry(f"{found.directory[1:]}/{name}", path.resolve(), 0o755))
    for name, path in commands.items():
        entries.append(Entry(f"usr/bin/{name}", path, 0o755))
    entries.append(link("bin", "usr/bin"))
    entries.extend(_system())
    return entries, found


def _python(executable: Path, minor: str) -> Iterator[Entry]:
    root = PYTHON_ROOT[1:]
    yield Entry(f"{root}/bin/python{minor}", executable, 0o755)
    yield link(f"{root}/bin/python3", f"python{minor}")
    yield link(f"{root}/bin/python", f"python{minor}")
    yield link("usr/bin/python3", f"{PYTHON_ROOT}/bin/python{minor}")
    stdlib = _stdlib()
    target = f"{root}/{sys.platlibdir}/python{minor}"
    dynload = Path(sysconfig.get_config_var("DESTSHARED") or stdlib / "lib-dynload")
    yield directory(f"{target}/lib-dynload")
    yield directory(f"{target}/site-packages")
    for path in walk(stdlib):
        relative = path.relative_to(stdlib)
        if _wanted(relative):
            yield Entry(f"{target}/{relative.as_posix()}", path.resolve(), _mode(path))
    if dynload.is_dir() and dynload.resolve() != (stdlib / "lib-dynload").resolve():
        for path in walk(dynload):
            if _wanted(Path("lib-dynload", path.name)):
                yield Entry(f"{target}/lib-dynload/{path.name}", path.resolve(), _mode(path))


def _wanted(relative: Path) -> bool:
    parts = relative.parts
    if _WITHOUT.intersection(parts[:-1]) or parts[0].startswith("config-"):
        return False
    name = parts[-1]
    if parts[0] == "lib-dynload" and name.startswith(_EXTENSIONS_WITHOUT):
        return False
    return not name.endswith((".pyc", ".a", ".o", ".exe"))


def _mode(path: Path) -> int:
    # Shared objects keep what they have, so that a wheel's tree and ours look alike.
    return 0o755 if os.access(path, os.X_OK) else 0o644


def walk(top: Path) -> Iterator[Path]:
    """All regular files below a directory, those behind symbolic links included, in order."""
    for folder, folders, names in os.walk(top):
        folders.sort()
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file():
                yield path


def _command(name: str) -> Path | None:
    path = shutil.which(name, path="/bin:/usr/bin")
    return Path(path).resolve() if path else None


def _certificates() -> Path | None:
    return next((path for p in _CERTIFICATE_PLACES if (path := Path(p)).is_file()), None)


def _system() -> Iterable[Entry]:
    yield from (directory(name) for name in _DIRECTORIES)
    yield directory("tmp", 0o1777)
    yield directory("var/tmp", 0o1777)
    yield from (Entry(name) for name in _EMPTY_FILES)
    yield Entry("etc/passwd", _PASSWD)
    yield Entry("etc/group", _GROUP)
    yield Entry("etc/nsswitch.conf", _SWITCH)
    if certificates := _certificates():
        yield Entry(CERTIFICATES[1:], certificates.resolve())
    for place in ("usr/share/zoneinfo", "usr/lib/locale/C.utf8"):
        top = Path("/", place)
        if top.is_dir():
            for path in walk(top):
                relative = path.relative_to(top)
                if relative.parts[0] not in ("right", "posix"):
                    yield Entry(f"{place}/{relative.as_posix()}", path.resolve())
