"""The blobs of one image into a repository, several at a time, with the fewest requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from clustrix_containers.errors import RegistryError
from clustrix_containers.oci.model import Image, Layer, Reference
from clustrix_containers.worker import contract

from .download import RangeReader
from .transport import Transport
from .upload import Limits, Progress, Source, Uploads, from_bytes, from_file

_WORKERS = 6
_SMALL = 64 << 10
"""Bytes up to which sending a blob costs less than asking whether it is there."""


class Push:
    """What a push of ``image`` over ``transport`` has to send.

    ``mount_from``: repositories of the same registry that may hold blobs;
    ``neighbours(digest)``: those that are known to. ``origin(reference)``: the transport
    to read a layer by reference from.
    """

    def __init__(
        self,
        image: Image,
        transport: Transport,
        limits: Limits,
        *,
        mount_from: list[str],
        neighbours: Callable[[str], list[str]],
        origin: Callable[[Reference], Transport],
        progress: Progress | None,
    ) -> None:
        self._transport = transport
        self._mount_from = mount_from
        self._neighbours = neighbours
        self._origin = origin
        self._progress = progress
        self._stop = threading.Event()
        self._uploads = Uploads(transport, limits, progress, self._stop)
        config = Layer(image.config_descriptor, "", image.config)
        by_digest = {layer.digest: layer for layer in (config, *image.layers)}
        # The largest first: the others fit beside it.
        self._layers = sorted(by_digest.values(), key=lambda layer: -layer.size)

    @property
    def digests(self) -> list[str]:
        return [layer.digest for layer in self._layers]

    def blobs(self, known: set[str]) -> None:
        """Send all that is not ``known`` to be there; the first error ends the others."""
        self._report(layer for layer in self._layers if layer.digest in known)
        lacking = [layer for layer in self._layers if layer.digest not in known]
        if len(lacking) <= 1:
            for layer in lacking:
                self._blob(layer)
            return
        from concurrent.futures import ThreadPoolExecutor, as_completed

        with ThreadPoolExecutor(min(_WORKERS, len(lacking)), "push") as threads:
            futures = [threads.submit(self._blob, layer) for layer in lacking]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stop.set()
                for future in futures:
                    future.cancel()
                raise

    def _report(self, layers: Iterable[Layer]) -> None:
        if self._progress is not None:
            for layer in layers:
                self._progress(layer.descriptor, layer.size)

    def _blob(self, layer: Layer) -> None:
        # Opened first: a damaged file is an error before anything is asked.
        source = self._source(layer)
        uploads, session = self._uploads, None
        if not _is_new(layer):
            for repository in self._mounts(layer)[:1]:
                session = uploads.mount(layer.descriptor, repository)
                if session is None:
                    self._report([layer])
                    return
            if uploads.has(layer.digest):
                if session is not None:
                    uploads.cancel(session)
                self._report([layer])
                return
        uploads.put(source, session)

    def _mounts(self, layer: Layer) -> list[str]:
        """Repositories of this registry to take the blob over from, the surest first."""
        candidates = self._neighbours(layer.digest)
        if layer.origin is not None and layer.origin.registry == self._transport.host:
            candidates.insert(0, layer.origin.repository)
        candidates += self._mount_from
        return [name for name in candidates if name != self._transport.repository]

    def _source(self, layer: Layer) -> Source:
        if isinstance(layer.blob, bytes):
            return from_bytes(layer.descriptor, layer.blob)
        if layer.blob is not None:
            return from_file(layer.descriptor, layer.blob)
        origin = layer.origin
        if origin is None:
            raise RegistryError(
                f"the layer {layer.digest} is by reference and does not say to where",
                digest=layer.digest,
            )

        def start(offset: int) -> RangeReader:
            same = origin.registry == self._transport.host
            transport = self._transport.beside(origin.repository) if same else self._origin(origin)
            return RangeReader(transport, layer.descriptor, offset)

        return Source(layer.descriptor, start)


def _is_new(layer: Layer) -> bool:
    """Known to be new, or so small that asking costs as much as sending."""
    kind = layer.descriptor.annotations.get(contract.LAYER_KIND)
    return layer.blob is not None and (kind in ("code", "call") or layer.size <= _SMALL)
