"""Wheels, layers, bundles and locks for the tests of the build stage, made by hand."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from clustrix_containers.capture.bundle import Bundle, Entry, File
from clustrix_containers.image.layers import Packable
from clustrix_containers.image.runtime import cloudpickle_component, runtime
from clustrix_containers.oci.model import LAYER_GZIP, Descriptor, Layer, sha256
from clustrix_containers.packages.lock import Lock, Package, Wheel
from clustrix_containers.packages.wheels.wheelhouse import add_wheel

MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"


def record_hash(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def make_wheel(
    folder: Path,
    name: str,
    files: Mapping[str, bytes],
    *,
    version: str = "1.0",
    executable: Iterable[str] = (),
    stored: Iterable[str] = (),
    extra: Iterable[tuple[str, bytes]] = (),
    record: Mapping[str, str] | None = None,
    tag: str = "py3-none-any",
) -> Path:
    """A wheel with these files; ``extra`` are appended unrecorded, ``record`` overrides hashes."""
    info = f"{name}-{version}.dist-info"
    whole = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
        **files,
    }
    rows = [
        f'"{path}",{(record or {}).get(path, record_hash(data))},{len(data)}\n'
        for path, data in whole.items()
    ]
    whole[f"{info}/RECORD"] = ("".join(rows) + f"{info}/RECORD,,\n").encode()
    path = folder / f"{name}-{version}-{tag}.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in [*whole.items(), *extra]:
            item = zipfile.ZipInfo(entry)
            item.external_attr = (0o100755 if entry in executable else 0o100644) << 16
            item.compress_type = zipfile.ZIP_STORED if entry in stored else zipfile.ZIP_DEFLATED
            archive.writestr(item, data)
    return path


def package(path: Path, cache: Path) -> Package:
    """A locked package of a wheel, which is in the cache afterwards."""
    name, version = path.name.split("-")[:2]
    return Package(name.replace("_", "-"), version, add_wheel(path, cache=cache), None)


def packable(path: Path, version: str = "1.0") -> Packable:
    """A package of a wheel wherever that is; it need not be a valid one."""
    data = path.read_bytes()
    wheel = Wheel(path.name, hashlib.sha256(data).hexdigest(), len(data))
    return Packable(Package(path.name.split("-")[0], version, wheel, None), path)


def lock(*packages: Package) -> Lock:
    base = "packed:sha256:" + "0" * 64
    return Lock(
        MINOR, "linux/amd64", base, packages, runtime(), cloudpickle_component(), client="0.1.0"
    )


def bundle(**files: bytes) -> Bundle:
    """A bundle of modules, the first of which has the function ``f``."""
    modules = files or {"m": b"def f(x):\n    return x + 1\n"}
    first = next(iter(modules))
    return Bundle(
        Entry("module", first, "f", "f"),
        tuple(File(f"{name}.py", content, "a test") for name, content in modules.items()),
        (),
    )


def tar_layer(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> Layer:
    """A layer as some other tool might write it, with whatever is in ``members``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    plain = out.getvalue()
    blob = gzip.compress(plain, 1)
    return Layer(Descriptor(LAYER_GZIP, sha256(blob), len(blob)), sha256(plain), blob)


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tree(top: Path) -> dict[str, tuple[str, int, bytes | str]]:
    """Every file and link below a directory: kind, executable bits, content or target."""
    found: dict[str, tuple[str, int, bytes | str]] = {}
    for path in sorted(top.rglob("*")):
        name = path.relative_to(top).as_posix()
        if path.is_symlink():
            found[name] = ("link", 0, str(path.readlink()))
        elif path.is_file():
            found[name] = ("file", path.stat().st_mode & 0o111, path.read_bytes())
    return found


__all__ = [
    "Wheel",
    "bundle",
    "lock",
    "make_wheel",
    "member",
    "packable",
    "package",
    "tar_layer",
    "tree",
]
