"""An image layout directory: what it holds, what it refuses, and many writers at once."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from clustrix_containers.errors import DigestMismatch, ImageError
from clustrix_containers.oci.model import (
    INDEX,
    Descriptor,
    Image,
    Layer,
    Platform,
    canonical,
    sha256,
)
from clustrix_containers.registry import Layout, digest_tag
from tests.samples import image, layer, noise, read_all, tags


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "a 'lay\"out\n ü"


@pytest.fixture
def layout(directory: Path) -> Layout:
    return Layout(directory)


@pytest.fixture
def sample(tmp_path: Path) -> Image:
    return image(
        layer({"base": noise(50_000)}, "base", tmp_path / "cache"), layer({"code": b"x"}, "code")
    )


NOW = -1.0
"""A grace below which even what has just been written counts as old."""


def test_an_image_comes_back_as_it_went(layout: Layout, sample: Image) -> None:
    pushed = layout.push(sample, "v1")
    assert pushed == Descriptor(sample.media_type, sample.digest, len(sample.manifest))
    for reference in ("v1", sample.digest, digest_tag(sample.digest), f"v1@{sample.digest}"):
        back = layout.image(reference)
        assert (back.manifest, back.config) == (sample.manifest, sample.config)
        for mine in back.layers:
            assert isinstance(mine.blob, Path)
            assert sha256(mine.blob.read_bytes()) == mine.digest
    assert tags(layout) == sorted([digest_tag(sample.digest), "v1"])
    assert layout.has(sample.digest)
    assert layout.has(sample.layers[1].digest)
    assert not layout.has("sha256:" + "0" * 64)


def test_the_files_are_those_of_the_specification(layout: Layout, sample: Image) -> None:
    layout.push(sample)
    assert json.loads((layout.directory / "oci-layout").read_bytes()) == {
        "imageLayoutVersion": "1.0.0"
    }
    index = json.loads((layout.directory / "index.json").read_bytes())
    assert index["schemaVersion"] == 2
    assert [entry["digest"] for entry in index["manifests"]] == [sample.digest]
    parts = [sample.digest, sample.config_descriptor.digest, *(it.digest for it in sample.layers)]
    files = (layout.directory / "blobs" / "sha256").iterdir()
    assert sorted(f"sha256:{it.name}" for it in files) == sorted(parts)
    assert not list((layout.directory / ".tmp").iterdir())
    for path in layout.directory.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_blob_in_the_cache_is_linked_and_not_copied(layout: Layout, sample: Image) -> None:
    layout.push(sample)
    assert isinstance(sample.layers[0].blob, Path)
    assert layout.blob(sample.layers[0].digest).samefile(sample.layers[0].blob)


def test_a_blob_on_another_file_system_is_copied_and_verified(
    layout: Layout, tmp_path: Path
) -> None:
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.fail("/dev/shm is on the same file system as the tests' temporary directory")
    other = Path(f"/dev/shm/clustrix-{os.getpid()}")
    try:
        it = image(layer({"base": noise(50_000)}, "base", other))
        layout.push(it)
        read_all(layout, it.digest)
        assert isinstance(it.layers[0].blob, Path)
        it.layers[0].blob.write_bytes(bytes(it.layers[0].size))
        layout.prune([], grace=NOW)
        with pytest.raises(DigestMismatch) as caught:
            layout.push(it)
        assert caught.value.path == it.layers[0].blob
        assert not list((layout.directory / ".tmp").iterdir())
    finally:
        for path in other.iterdir():
            path.unlink()
        other.rmdir()


def test_a_tag_moves_and_the_image_that_had_it_stays(layout: Layout, sample: Image) -> None:
    other = sample.configure(Env=["A=1"])
    layout.push(sample, "latest")
    layout.push(other, "latest")
    assert layout.image("latest").digest == other.digest
    assert layout.image(sample.digest).digest == sample.digest


def test_a_layer_by_reference_is_refused_or_fetched(
    layout: Layout, sample: Image, tmp_path: Path
) -> None:
    far = replace(sample.layers[0], blob=None)
    it = replace(sample, layers=(far, *sample.layers[1:]))
    with pytest.raises(ImageError, match="known by reference only"):
        layout.push(it)
    assert not layout.directory.joinpath("index.json").exists()

    asked: list[Layer] = []

    def fetch(wanted: Layer) -> Path:
        asked.append(wanted)
        assert isinstance(sample.layers[0].blob, Path)
        return sample.layers[0].blob

    layout.push(it, fetch=fetch)
    layout.push(it.configure(Env=["A=1"]), fetch=fetch)
    layout.push(it)
    assert asked == [far]
    read_all(layout, it.digest)


def test_a_cached_blob_that_was_cut_short_is_named(layout: Layout, sample: Image) -> None:
    assert isinstance(sample.layers[0].blob, Path)
    sample.layers[0].blob.write_bytes(b"short")
    with pytest.raises(DigestMismatch, match="has 5 bytes") as caught:
        layout.push(sample)
    assert caught.value.path == sample.layers[0].blob
    assert not (layout.directory / "index.json").exists()


def test_a_cached_blob_that_is_gone_is_named(layout: Layout, sample: Image) -> None:
    assert isinstance(sample.layers[0].blob, Path)
    sample.layers[0].blob.unlink()
    with pytest.raises(ImageError, match=r"no longer exists at"):
        layout.push(sample)


def test_a_truncated_blob_is_thrown_away_and_the_next_push_makes_it_again(
    layout: Layout, sample: Image
) -> None:
    layout.push(sample, "v1")
    digest = sample.layers[1].digest
    path = layout.blob(digest)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ImageError, match=digest) as caught:
        layout.image("v1")
    assert "Build the image again" in str(caught.value)
    assert not layout.has(digest)
    layout.push(sample)
    read_all(layout, "v1")


def test_a_damaged_blob_is_found_when_it_is_read(layout: Layout, sample: Image) -> None:
    layout.push(sample, "v1")
    wanted = sample.layers[1]
    layout.blob(wanted.digest).write_bytes(bytes(wanted.size))
    stream = layout.open_blob(wanted.descriptor)
    with pytest.raises(DigestMismatch):
        stream.read(wanted.size)
    stream.close()
    assert not layout.has(wanted.digest)
    layout.push(sample)
    assert read_all(layout, "v1").digest == sample.digest


def test_a_damaged_blob_that_the_cache_shares_is_found_there_too(
    layout: Layout, sample: Image
) -> None:
    layout.push(sample, "v1")
    cached = sample.layers[0].blob
    assert isinstance(cached, Path)
    cached.write_bytes(bytes(sample.layers[0].size))
    with pytest.raises(DigestMismatch):
        read_all(layout, "v1")
    with pytest.raises(DigestMismatch, match="has 0 bytes") as caught:
        layout.push(sample)
    assert caught.value.path == cached


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"manifests": 3}', b"\xff"])
def test_a_broken_index_is_one_clear_error(layout: Layout, sample: Image, content: bytes) -> None:
    layout.push(sample)
    (layout.directory / "index.json").write_bytes(content)
    for use in (layout.prune, lambda: layout.image("v1"), lambda: layout.push(sample)):
        with pytest.raises(ImageError, match=r"index\.json is not an image index"):
            use()


def test_what_is_not_there_is_an_error(layout: Layout, sample: Image) -> None:
    for reference in ("v1", sample.digest):
        with pytest.raises(ImageError, match="no image"):
            layout.image(reference)
    with pytest.raises(ImageError):
        layout.blob(sample.digest)
    assert layout.find("sha256:") == []
    assert layout.prune() == 0


def test_a_digest_that_would_leave_the_directory_is_refused(layout: Layout) -> None:
    with pytest.raises(ImageError, match="not a sha256 digest"):
        layout.blob("sha256:../../../etc/passwd")


def test_an_index_gives_the_image_of_the_platform(layout: Layout, sample: Image) -> None:
    arm = replace(sample, platform=Platform("linux", "arm64"))
    entries = []
    for it in (sample, arm):
        pushed = layout.push(it)
        platform = {"os": it.platform.os, "architecture": it.platform.architecture}
        entries.append({**pushed.to_json(), "platform": platform})
    index = canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
    descriptor = Descriptor(INDEX, sha256(index), len(index))
    (layout.directory / "blobs/sha256" / descriptor.digest.removeprefix("sha256:")).write_bytes(
        index
    )
    top = json.loads((layout.directory / "index.json").read_bytes())
    named = {"org.opencontainers.image.ref.name": "multi"}
    top["manifests"].append({**descriptor.to_json(), "annotations": named})
    (layout.directory / "index.json").write_bytes(canonical(top))

    assert layout.image("multi", Platform("linux", "amd64")).digest == sample.digest
    assert layout.image("multi", Platform("linux", "arm64", "v8")).digest == arm.digest
    with pytest.raises(ImageError, match=r"no image for linux/riscv64\n.*linux/amd64, linux/arm64"):
        layout.image("multi", Platform("linux", "riscv64"))
    layout.prune(["multi"], grace=NOW)
    assert layout.image("multi", Platform("linux", "arm64")).digest == arm.digest


def test_prune_gives_back_what_nothing_needs(layout: Layout, tmp_path: Path) -> None:
    kept = image(layer({"a": noise(10_000, 1)}), layer({"shared": noise(10_000, 2)}))
    gone = image(layer({"b": noise(10_000, 3)}), layer({"shared": noise(10_000, 2)}))
    layout.push(kept, "kept")
    layout.push(gone, "gone")
    assert layout.prune(["kept"]) == 0
    assert layout.has(gone.layers[0].digest)

    freed = layout.prune(["kept"], grace=NOW)

    assert freed == gone.layers[0].size + len(gone.config) + len(gone.manifest)
    assert not layout.has(gone.digest)
    read_all(layout, "kept")


def test_prune_keeps_the_images_that_it_is_told_to(layout: Layout) -> None:
    first, second = image(layer({"a": b"1"})), image(layer({"a": b"2"}))
    layout.push(first, "first")
    layout.push(second, "second")
    layout.prune(["first"], grace=3600)
    assert layout.image("second").digest == second.digest
    layout.prune(["first"], grace=NOW)
    assert tags(layout) == sorted(["first", digest_tag(first.digest)])
    layout.prune([first.digest], grace=NOW)
    read_all(layout, "first")
    layout.prune([], grace=NOW)
    assert tags(layout) == []


def test_bytes_that_the_cache_still_holds_are_not_called_freed(
    layout: Layout, sample: Image
) -> None:
    layout.push(sample)
    small = len(sample.config) + len(sample.manifest) + sample.layers[1].size
    assert layout.prune([], grace=NOW) == small
    assert isinstance(sample.layers[0].blob, Path)
    assert sample.layers[0].blob.exists()


def test_a_push_renews_the_age_of_a_blob(layout: Layout, sample: Image) -> None:
    layout.push(sample)
    blob = layout.blob(sample.layers[0].digest)
    before = blob.stat()
    layout.push(sample)
    after = blob.stat()
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns


def test_left_over_temporary_files_go_with_time(layout: Layout, sample: Image) -> None:
    layout.push(sample)
    left = layout.directory / ".tmp" / "left"
    left.write_bytes(b"x" * 100)
    layout.prune(grace=NOW)
    assert left.exists()
    os.utime(left, (0, 0))
    assert layout.prune() == 100
    assert not left.exists()


_PUSHER = """
import sys
from pathlib import Path
from clustrix_containers.registry import Layout
from tests.samples import image, layer, noise
layout, number = Layout(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for i in range(10):
    layout.push(image(layer({"shared": noise(9000, 7)}), layer({"n": b"%d %d" % (number, i)})), f"t{number}-{i}")
"""


def test_many_processes_push_and_prune_at_once_and_nothing_is_lost(layout: Layout) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PUSHER, str(layout.directory), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    while any(process.poll() is None for process in processes):
        # No grace at all: only the look under the lock keeps the pushes whole.
        layout.prune(grace=NOW)
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    pushed = [f"t{number}-{i}" for number in range(4) for i in range(10)]
    assert [it for it in tags(layout) if not it.startswith("cx-")] == sorted(pushed)
    for tag in pushed:
        read_all(layout, tag)


def test_many_threads_push_at_once_and_nothing_is_lost(layout: Layout) -> None:
    def push(number: int) -> None:
        for i in range(5):
            layout.push(image(layer({"n": b"%d %d" % (number, i)})), f"t{number}-{i}")

    threads = [threading.Thread(target=push, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tags(layout)) == 80


_LIMITED = """
import sys
from clustrix_containers.errors import ImageError
from clustrix_containers.registry import Layout
from tests.samples import image, layer, noise
try:
    Layout(sys.argv[1]).push(image(layer({"large": noise(200_000)})))
except ImageError as error:
    print(error)
    sys.exit(3)
"""


def test_a_file_too_large_to_write_is_one_error_and_leaves_nothing(layout: Layout) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(layout.directory)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "File too large" in done.stdout
    assert not list((layout.directory / ".tmp").iterdir())
    assert not (layout.directory / "index.json").exists()


def test_a_directory_that_is_a_file_is_an_error(tmp_path: Path, sample: Image) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError, match="cannot write"):
        Layout(tmp_path / "file").push(sample)
