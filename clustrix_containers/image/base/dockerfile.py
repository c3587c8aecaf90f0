"""A Dockerfile as a base: built by a Docker engine, saved, and imported into the cache.

For system packages and CUDA. The engine's own cache decides what is built again; layers are
recognised by their diff_id, so an unchanged one is neither compressed nor written again.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, cast

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.gzip import Isal
from clustrix_containers.oci.model import LAYER_GZIP, Descriptor, Image, Layer, Platform, created_by
from clustrix_containers.oci.reading import open_layer
from clustrix_containers.oci.store import BlobWriter, Spool, cache_key, cached_layers
from clustrix_containers.worker.contract import LAYER_KIND, LAYER_TITLE

from . import MINOR, as_base

_PROBE = (
    "import os,sys;"
    "print('%d.%d.%d' % sys.version_info[:3]);"
    "print(os.path.realpath(sys.executable));"
    "print(os.confstr('CS_GNU_LIBC_VERSION') if 'CS_GNU_LIBC_VERSION' in os.confstr_names else '')"
)
# What of an image config's ``config`` object is in the OCI specification.
_SETTINGS = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels",
    "StopSignal",
)  # fmt: skip


def from_dockerfile(path: Path, cache: Path, *, python: str | None = None) -> Image:
    """Build ``path`` (its directory is the context) and return the image as a base.

    ``python`` is the path of its Python, by default the first one on its PATH. The engine is the
    environment's. Raises ImageError without one, for a build that fails, and for an image without
    the running Python's minor version.
    """
    with closing(_client()) as client, Spool(cache) as archive:
        image = _build(client, path)
        found, version, glibc = _probe(client, image.id, path.name, python)
        for chunk in image.save():
            archive.write(chunk)
        saved = archive.content()
        assert isinstance(saved, Path)
        result = read_saved(saved, path.name, cache=cache)
    return as_base(result, path.name, python=found, version=version, glibc=glibc)


def read_saved(path: Path, name: str, *, cache: Path) -> Image:
    """The only image in an archive of ``docker save``; its layers are imported into the cache."""
    try:
        with tarfile.open(path) as archive:
            manifest = json.loads(_member(archive, "manifest.json").read())
            if len(manifest) != 1:
                raise ImageError(f"{path.name} contains {len(manifest)} images, expected one")
            config = json.loads(_member(archive, manifest[0]["Config"]).read())
            diff_ids = config["rootfs"]["diff_ids"]
            names = manifest[0]["Layers"]
            history = created_by(config, len(names))
            layers = tuple(
                _layer(archive, member, diff_id, command, name, cache)
                for member, diff_id, command in zip(names, diff_ids, history, strict=True)
            )
    except (tarfile.TarError, KeyError, ValueError, TypeError) as error:
        raise ImageError(f"{path.name} is not a docker save archive: {error}") from error
    settings = config.get("config") or {}
    platform = Platform(config.get("os", "linux"), config.get("architecture", "amd64"))
    return Image(layers, platform, {key: settings[key] for key in _SETTINGS if settings.get(key)})


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    return cast("IO[bytes]", archive.extractfile(name))


def _layer(
    archive: tarfile.TarFile, member: str, diff_id: str, command: str, name: str, cache: Path
) -> Layer:
    def make() -> Iterator[Layer]:
        plain = open_layer(_member(archive, member), member)
        with BlobWriter(cache) as blob:
            out = Isal(blob)
            while chunk := plain.read(1 << 20):
                out.write(chunk)
            out.close()
            if plain.digest != diff_id:
                raise ImageError(f"{member} of {name} does not have its image's diff_id {diff_id}")
            digest, content = blob.commit()
        annotations = {LAYER_KIND: "base", LAYER_TITLE: name}
        descriptor = Descriptor(LAYER_GZIP, digest, blob.size, annotations)
        yield Layer(descriptor, diff_id, content, None, command)

    (layer,) = cached_layers(cache, cache_key("saved", diff_id, command, name), make)
    return layer


def _client() -> Any:
    try:
        import docker
        from docker.errors import DockerException
    except ImportError:
        raise ImageError(
            "a Dockerfile as a base needs the docker package",
            hint="pip install 'clustrix-containers[docker]'",
        ) from None
    try:
        return docker.from_env()
    except DockerException as error:
        raise ImageError(
            f"cannot reach a Docker engine: {error}",
            hint="Start one, set DOCKER_HOST, or name a base image that is in a registry.",
        ) from error


def _build(client: Any, path: Path) -> Any:
    from docker.errors import APIError, BuildError

    try:
        image, _ = client.images.build(
            path=str(path.parent), dockerfile=path.name, rm=True, forcerm=True
        )
    except (BuildError, APIError, TypeError) as error:
        items = getattr(error, "build_log", ())
        log = "".join(str(item.get("stream", "")) for item in items)[-2000:]
        raise ImageError(f"{path} could not be built: {error}\n{log}".rstrip()) from error
    return image


def _probe(client: Any, image: str, name: str, python: str | None) -> tuple[str, str, str | None]:
    """Path, version and glibc of the image's Python, which reports them in a container."""
    from docker.errors import APIError, ContainerError

    for candidate in [python] if python else [f"python{MINOR}", "python3", "python"]:
        try:
            output = client.containers.run(
                image, ["-c", _PROBE], entrypoint=[candidate], remove=True, network_mode="none"
            )
        except (APIError, ContainerError):
            continue
        version, executable, libc = [*output.decode().split("\n"), "", "", ""][:3]
        kind, _, number = libc.partition(" ")
        return executable, version, number if kind == "glibc" else None
    raise ImageError(
        f"the image of {name} has no Python{' at ' + python if python else ''}",
        hint=f"Install Python {MINOR} in it, or name its path: python=.",
    )
