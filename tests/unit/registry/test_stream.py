"""A verified stream never hands out the last byte of a wrong blob."""

from __future__ import annotations

import hashlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustrix_containers.errors import DigestMismatch
from clustrix_containers.oci.model import Descriptor, sha256
from clustrix_containers.registry.blobs import verified


def read(data: bytes, descriptor: Descriptor, sizes: list[int]) -> bytes:
    out = b""
    with verified(io.BytesIO(data), descriptor, "here") as stream:
        for size in sizes:
            out += stream.read(size)
        return out + stream.read()


@given(st.binary(max_size=200), st.lists(st.integers(0, 50)))
def test_right_bytes_come_through_however_they_are_read(data: bytes, sizes: list[int]) -> None:
    assert read(data, Descriptor("x", sha256(data), len(data)), sizes) == data


@given(st.binary(max_size=200), st.binary(max_size=200), st.lists(st.integers(0, 50)))
def test_other_bytes_never_do(data: bytes, other: bytes, sizes: list[int]) -> None:
    if data == other:
        return
    with pytest.raises(DigestMismatch):
        read(other, Descriptor("x", sha256(data), len(data)), sizes)


def test_reading_exactly_its_size_is_enough_to_be_told() -> None:
    wanted = Descriptor("x", sha256(b"right"), 5)
    for wrong in (b"wrong", b"right and more", b"righ"):
        stream = verified(io.BytesIO(wrong), wanted, "here")
        with pytest.raises(DigestMismatch, match="from here"):
            stream.read(5)
        stream.close()


def test_a_large_blob_is_not_held_in_memory() -> None:
    class Zeros:
        left = 1 << 26

        def read(self, size: int, /) -> bytes:
            size = min(size, self.left)
            self.left -= size
            return bytes(size)

        def close(self) -> None: ...

    import tracemalloc

    digest = hashlib.sha256()
    for _ in range(1 << 6):
        digest.update(bytes(1 << 20))
    blob = Descriptor("x", f"sha256:{digest.hexdigest()}", 1 << 26)
    tracemalloc.start()
    with verified(Zeros(), blob, "here") as stream:
        while stream.read(1 << 20):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
