"""Every rule that an image must keep, checked on its actual bytes: for every image that a test makes."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.archive import OWNED, EntryType, check_name, header
from clustrix_containers.oci.model import (
    DOCKER_MANIFEST,
    LAYER_GZIP,
    LAYER_TAR,
    LAYER_ZSTD,
    MANIFEST,
    Image,
    Layer,
    canonical,
)
from clustrix_containers.oci.reading import HashingReader, open_blob, open_layer
from clustrix_containers.registry import Layout
from clustrix_containers.worker.contract import LAYER_KIND, LAYER_TITLE

MAX_LAYERS = 127
"""The limit of overlayfs."""

_OURS = ("wheel", "packages", "bytecode", "runtime", "code", "call")
_MEDIA = {MANIFEST: (LAYER_GZIP, LAYER_TAR, LAYER_ZSTD)}

BlobReader = Callable[[Layer], "IO[bytes]"]


def validate(image: Image, blob_reader: BlobReader | None = None) -> None:
    """Raise an ImageError with every rule that the image breaks (``problems`` is the list).

    ``blob_reader`` opens the blob of a layer that is not on this machine; without it the bytes of
    such a layer are not looked at.
    """
    problems = [*_documents(image), *_layers(image, blob_reader)]
    if problems:
        raise ImageError(
            f"image {image.digest} breaks {len(problems)} rules: " + "; ".join(problems[:20]),
            problems=problems,
        )


def _documents(image: Image) -> Iterator[str]:
    manifest, config = json.loads(image.manifest), json.loads(image.config)
    descriptor = manifest["config"]
    if descriptor["digest"] != "sha256:" + hashlib.sha256(image.config).hexdigest():
        yield "the manifest names another config"
    if descriptor["size"] != len(image.config):
        yield "the manifest has another size for the config"
    if image.raw_manifest is None and image.manifest != canonical(manifest):
        yield "the manifest is not canonical JSON"
    if image.raw_config is None and image.config != canonical(config):
        yield "the config is not canonical JSON"
    if [layer["digest"] for layer in manifest["layers"]] != [
        layer.digest for layer in image.layers
    ]:
        yield "the manifest names other layers"
    if config["rootfs"]["diff_ids"] != [layer.diff_id for layer in image.layers]:
        yield "the config has other diff_ids"
    history = [item for item in config.get("history") or [] if not item.get("empty_layer")]
    if len(history) not in (0, len(image.layers)):
        yield f"the config's history lists {len(history)} layers, not {len(image.layers)}"
    if len(image.layers) > MAX_LAYERS:
        yield f"there are {len(image.layers)} layers, the maximum is {MAX_LAYERS}"
    if image.media_type not in (MANIFEST, DOCKER_MANIFEST):
        yield f"the manifest is of the unknown type {image.media_type!r}"
    names = [item.partition("=")[0] for item in image.settings.get("Env") or []]
    if len(names) != len(set(names)):
        yield "a variable is set twice"


def _layers(image: Image, reader: BlobReader | None) -> Iterator[str]:
    kinds: dict[str, bool] = {}
    for number, layer in enumerate(image.layers):
        name = f"layer {number} ({layer.created_by or layer.digest})"
        expected = _MEDIA.get(image.media_type)
        if expected and layer.descriptor.media_type not in expected:
            yield f"{name} is of the type {layer.descriptor.media_type!r}"
        if layer.blob is None and reader is None:
            continue
        for problem in _layer(layer, reader, kinds):
            yield f"{name}: {problem}"


def _layer(layer: Layer, reader: BlobReader | None, kinds: dict[str, bool]) -> Iterator[str]:
    with open_blob(layer) if layer.blob is not None or reader is None else reader(layer) as raw:
        source = HashingReader(raw, layer.digest)
        plain = open_layer(source, layer.digest)
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", plain), mode="r|") as archive:
                yield from _entries(archive, layer, kinds)
            while plain.read(1 << 20):
                pass
        except (tarfile.TarError, ImageError, OSError) as error:
            yield f"it cannot be read: {error}"
            return
        while source.read(1 << 20):
            pass
        if source.digest != layer.digest:
            yield f"its blob is {source.digest}"
        if source.size != layer.size:
            yield f"its blob has {source.size} bytes, not {layer.size}"
        if plain.digest != layer.diff_id:
            yield f"its tar is {plain.digest}, not {layer.diff_id}"


def _entries(archive: tarfile.TarFile, layer: Layer, kinds: dict[str, bool]) -> Iterator[str]:
    notes = layer.descriptor.annotations
    kind = notes.get(LAYER_KIND)
    # A layer of ours that came back through an engine, as a part of another base, has its title.
    packed = layer.created_by == f"clustrix: {notes.get(LAYER_TITLE)}"
    ours = kind in _OURS or (kind == "base" and packed)
    owned = ("",) if kind == "base" else OWNED
    seen: set[str] = set()
    last = b""
    for member in archive:
        name = member.name.removeprefix("./").rstrip("/")
        if kinds.get(name, member.isdir()) != member.isdir():
            yield f"{name!r} is a directory in one layer and none in another"
        kinds[name] = member.isdir()
        if not ours:
            continue
        if name.encode() <= last:
            yield f"{name!r} is not in order, or comes twice"
        last = name.encode()
        yield from _entry(member, name, owned)
        folder = name.rpartition("/")[0]
        if folder and folder not in seen and _is_owned(folder, owned):
            yield f"{name!r} comes without its directory"
        if member.isdir():
            seen.add(name)


def _entry(member: tarfile.TarInfo, name: str, owned: tuple[str, ...]) -> Iterator[str]:
    try:
        check_name(name)
    except ImageError as error:
        yield error.message
    if not _is_owned(name, owned):
        yield f"{name!r} is outside the directories that are ours"
    if (member.mtime, member.uid, member.gid, member.uname, member.gname) != (0, 0, 0, "", ""):
        yield f"{name!r} has a time or an owner"
    types = {
        tarfile.REGTYPE: EntryType.FILE,
        tarfile.SYMTYPE: EntryType.LINK,
        tarfile.DIRTYPE: EntryType.DIRECTORY,
    }
    if member.type not in types:
        yield f"{name!r} is of the type {member.type!r}"
        return
    modes = (0o755,) if not member.isreg() else (0o644, 0o755)
    if member.mode not in modes and not (member.isdir() and member.mode == 0o1777):
        yield f"{name!r} has the mode {member.mode:o}"
    needs = len(header(name, 0o644, member.size, types[member.type], member.linkname)) > 512
    if bool(member.pax_headers) != needs:
        yield f"{name!r} has pax records where ustar would do, or the other way round"


def _is_owned(name: str, owned: tuple[str, ...]) -> bool:
    return any(not top or name == top or name.startswith(top + "/") for top in owned)


_seen: set[str] = set()
"""Digests of layers that this process has read already."""


def validate_layout(directory: Path) -> int:
    """Validate all images of a layout; how many there are. A layer's bytes are read once."""
    index = directory / "index.json"
    if not index.exists():
        return 0
    digests = {entry["digest"] for entry in json.loads(index.read_text())["manifests"]}
    layout = Layout(directory)
    for digest in sorted(digests):
        image = layout.image(digest)
        layers = tuple(
            replace(layer, blob=None) if layer.digest in _seen else layer for layer in image.layers
        )
        validate(replace(image, layers=layers))
        _seen.update(layer.digest for layer in image.layers)
    return len(digests)
