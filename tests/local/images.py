"""A tiny image of the running interpreter and a hand-made function, as an image layout."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle

import clustrix_containers
from clustrix_containers.oci import model as oci
from clustrix_containers.oci.model import Descriptor, Image, Layer
from clustrix_containers.worker import contract

PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
LEFT_OUT = re.compile(
    r"^(test|idlelib|tkinter|lib2to3|ensurepip|turtledemo|site-packages|config-.*)$"
)
PROGRAMS = ("sh", "sleep", "cat", "id", "ls")


class Tar:
    """A layer in the making: names are absolute paths in the image."""

    def __init__(self) -> None:
        self.data = io.BytesIO()
        self.archive = tarfile.open(fileobj=self.data, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self.names: set[str] = set()

    def add(self, name: str, content: bytes, mode: int = 0o644, mtime: int = 0) -> None:
        if name not in self.names:
            self.names.add(name)
            info = tarfile.TarInfo(name.lstrip("/"))
            info.size, info.mode, info.mtime = len(content), mode, mtime
            self.archive.addfile(info, io.BytesIO(content))

    def file(self, name: str, source: Path) -> None:
        mode = 0o755 if os.access(source, os.X_OK) else 0o644
        self.add(name, source.read_bytes(), mode, int(source.stat().st_mtime))

    def link(self, name: str, target: str) -> None:
        info = tarfile.TarInfo(name.lstrip("/"))
        info.type, info.linkname = tarfile.SYMTYPE, target
        self.archive.addfile(info)

    def layer(self, kind: str | None) -> tuple[Layer, bytes]:
        self.archive.close()
        tar = self.data.getvalue()
        annotations = {contract.LAYER_KIND: kind} if kind else {}
        digest = oci.sha256(tar)
        # Not compressed: another user's Python, which has none of our dependencies, unpacks it too.
        return Layer(Descriptor(oci.LAYER_TAR, digest, len(tar), annotations), digest), tar


def base_layer() -> Tar:
    """The interpreter under ``/opt/python``, a shell, and the libraries that they need."""
    tar = Tar()
    home = Path(sys.base_prefix)
    interpreter = Path(os.path.realpath(sys.executable))
    tar.file(f"/opt/python/bin/{PYTHON}", interpreter)
    library = home / "lib" / PYTHON
    for folder, names, files in os.walk(library):
        names[:] = sorted(name for name in names if not LEFT_OUT.match(name))
        for name in sorted(files):
            source = Path(folder, name)
            tar.file(f"/opt/python/lib/{PYTHON}/{source.relative_to(library)}", source)
    programs = [Path(os.path.realpath(shutil.which(name) or name)) for name in PROGRAMS]
    for name, program in zip(PROGRAMS, programs, strict=True):
        tar.file(f"/usr/bin/{name}", program)
    extensions = list((library / "lib-dynload").glob("*.so"))
    for needed in sorted(libraries([interpreter, *programs, *extensions])):
        if "libpython" in needed:
            tar.file(f"/opt/python/lib/{Path(needed).name}", Path(needed))
        else:
            tar.file(needed, Path(needed))
    tar.link("/bin", "usr/bin")
    tar.add("/etc/passwd", b"root:x:0:0::/root:/bin/sh\n")
    tar.link("/etc/resolv.conf", "/run/nowhere/resolv.conf")
    return tar


def libraries(files: Sequence[Path]) -> set[str]:
    done = subprocess.run(["ldd", *files], capture_output=True, text=True, check=False)
    return set(re.findall(r"(/\S+\.so\S*) \(0x", done.stdout))


def runtime_layer() -> Tar:
    tar = Tar()
    tar.file(contract.WORKER, Path(clustrix_containers.__file__).parent / "worker/worker.py")
    package = Path(cloudpickle.__file__).parent
    for source in sorted(package.glob("*.py")):
        tar.file(f"{contract.LIB}/cloudpickle/{source.name}", source)
    return tar


def code_layer(files: Mapping[str, str], qualname: str = "f") -> Tar:
    tar = Tar()
    for name, text in files.items():
        tar.add(f"{contract.CODE}/{name}", text.encode())
    entry = {"version": 1, "kind": "module", "module": "m", "qualname": qualname}
    data = json.dumps({**entry, "script": None, "name": qualname}).encode()
    tar.add(f"{contract.CODE}/{contract.ENTRY}", data)
    return tar


def call_layer(calls: Sequence[tuple[Any, ...]]) -> Tar:
    tar, index, data = Tar(), b"", bytearray()
    for call in calls:
        pickled = pickle.dumps((call, {}), 4)
        index += struct.pack("<QQ", len(data), len(pickled))
        data += pickled
    tar.add(f"{contract.CALL}/index", index)
    tar.add(f"{contract.CALL}/data", bytes(data))
    return tar


class Layout:
    """An image layout that grows: the base and runtime layers are made once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "blobs/sha256").mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.base = (self.put(base_layer(), "base"), self.put(runtime_layer(), "runtime"))

    def put(self, tar: Tar, kind: str | None) -> Layer:
        layer, blob = tar.layer(kind)
        self.blob(blob)
        return layer

    def blob(self, data: bytes) -> None:
        (self.directory / "blobs/sha256" / oci.sha256(data)[7:]).write_bytes(data)

    def image(
        self,
        code: str | Mapping[str, str],
        calls: Sequence[tuple[Any, ...]] = ((),),
        *,
        annotated: bool = True,
        env: Sequence[str] = (),
    ) -> str:
        """The reference of an image of this code (module ``m``, function ``f``)."""
        files = {"m.py": code} if isinstance(code, str) else code
        layers: tuple[Layer, ...] = (
            *self.base,
            self.put(code_layer(files), "code"),
            self.put(call_layer(calls), "call"),
        )
        if not annotated:
            layers = tuple(
                replace(layer, descriptor=replace(layer.descriptor, annotations={}))
                for layer in layers
            )
        return self.add(
            Image(
                layers,
                settings={
                    "Entrypoint": [f"/opt/python/bin/{PYTHON}", contract.WORKER],
                    "Env": ["LD_LIBRARY_PATH=/opt/python/lib", "FROM_IMAGE=1", *env],
                },
            )
        )

    def add(self, image: Image) -> str:
        self.blob(image.config)
        self.blob(image.manifest)
        return f"oci:{self.directory}@{image.digest}"
