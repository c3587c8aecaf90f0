"""Takes an outcome out of a container that shares no directory with the client.

Runs beside ``worker.py`` inside the image: the standard library only, Python 3.8 to 3.14. The
formats are those of ``contract.py``, repeated here; a test compares the two.

What is small travels in the termination message. What is not goes into a *store*, and the
message names it there:

``hold``      the container lives on until the client has taken it (``give`` below);
``s3``        one form-encoded POST per file, under a policy that the client has signed;
``registry``  an OCI artifact that refers to the run's image;
``volume``    the results directory is on a volume that the client has other ways to read.

As a program, ``deliver.py give RESULTS ELEMENT ATTEMPT`` writes the mark's length (u32, little
endian), the mark and the result to standard output, and ends the hold when it then reads a line
``taken``.
"""

from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

    Read = Callable[[], Iterable[bytes]]

INLINE = "CXM1"
STORED = "CXM2"
FAILED = "CXM3"
MESSAGE_LIMIT = 4096
CHUNK = 1 << 20
TRIES = 6
ARTIFACT = "application/vnd.clustrix-containers.result.v1"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"


class Undelivered(Exception):
    """The store did not take it; the message says why. Nothing secret is in it."""


def deliver(
    config: Dict[str, Any],
    results: str,
    element: int,
    attempt: int,
    told_to_end: Callable[[float], bool],
) -> None:
    """Send the outcome of an element on its way; its mark lies in ``results``.

    ``told_to_end`` waits for a signal to end, so many seconds at most. Raises
    :class:`Undelivered`, after the message has said so.
    """
    outcome = Outcome(results, element, attempt)
    limit = int(config.get("limit", MESSAGE_LIMIT))
    path = config.get("message") or os.devnull
    inline = outcome.inline(limit)
    if inline is not None:
        _write(path, inline)
        return
    store = config.get("store") or {}
    kind = store.get("kind")
    said = {"store": kind, "mark": outcome.mark_name, "result": outcome.result_name}
    try:
        if kind == "hold":
            _hold(store, outcome, told_to_end)
        elif kind == "s3":
            _post_all(store, outcome)
        elif kind == "registry":
            said["manifest"] = _push(store, outcome)
        elif kind != "volume":
            raise Undelivered(
                "the result has %d bytes, and the run has no store for what does not fit into"
                " a termination message" % outcome.size
            )
    except Undelivered as error:
        _write(path, (FAILED + str(error))[: limit // 4])
        raise
    _write(path, STORED + json.dumps(said))


class Outcome:
    """The files of one element's outcome."""

    def __init__(self, results: str, element: int, attempt: int) -> None:
        import hashlib

        self.results, self.element, self.attempt = results, element, attempt
        with open(self.mark_path, "rb") as file:
            self.mark = file.read()
        said = json.loads(self.mark)
        self.result_name: Optional[str] = None
        self.size = 0
        if said["sha256"]:
            self.result_name = "%d.%d.%s.result" % (element, attempt, said["sha256"][:16])
            self.size = int(said["size"])
        self.sha256 = str(said["sha256"])
        digest = hashlib.sha256(self.mark).hexdigest()
        # Two executions of one attempt never overwrite each other's.
        self.mark_name = "%d.%d.%s.mark" % (element, attempt, digest[:16])

    @property
    def mark_path(self) -> str:
        return os.path.join(self.results, "%d.%d.mark" % (self.element, self.attempt))

    @property
    def taken_path(self) -> str:
        return os.path.join(self.results, ".%d.%d.taken" % (self.element, self.attempt))

    def result(self) -> Iterator[bytes]:
        if self.result_name is not None:
            with open(os.path.join(self.results, self.result_name), "rb") as file:
                yield from _chunks(file)

    def inline(self, limit: int) -> Optional[str]:
        """The whole outcome as text, if that has no more than ``limit`` bytes."""
        # Nothing compresses a hundredfold but what is empty, and that is quick to try.
        if len(self.mark) + self.size > 64 * limit:
            return None
        import base64
        import zlib

        parts = (len(self.mark).to_bytes(4, "little"), self.mark, *self.result())
        text = INLINE + base64.b85encode(zlib.compress(b"".join(parts), 9)).decode("ascii")
        return text if len(text) <= limit else None


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while True:
        data = file.read(CHUNK)
        if not data:
            return
        yield data


def _write(path: str, text: str) -> None:
    # Not atomically: the kubelet has mounted the file itself.
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


# --- hold -----------------------------------------------------------------------------------


def _hold(store: Dict[str, Any], outcome: Outcome, told_to_end: Callable[[float], bool]) -> None:
    """Wait until the client has taken the outcome. That a port answers says that it can be."""
    import socket
    import threading

    seconds = float(store["seconds"])
    deadline = time.monotonic() + seconds
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", int(store["port"])))
        listener.listen(8)
        threading.Thread(target=_greet, args=(listener,), daemon=True).start()
        while not os.path.exists(outcome.taken_path):
            if time.monotonic() > deadline:
                raise Undelivered("nobody took the result within %g s" % seconds)
            if told_to_end(0.1):
                raise Undelivered("ended before anybody took the result")
    except OSError as error:
        raise Undelivered("the result cannot be offered: %s" % error) from error
    finally:
        listener.close()


def _greet(listener: Any) -> None:
    while True:
        try:
            connection, _ = listener.accept()
            connection.close()
        except OSError:
            return


def give(results: str, element: int, attempt: int) -> int:
    """Write an outcome to standard output, and take note when the other side has it."""
    outcome = Outcome(results, element, attempt)
    out = sys.stdout.buffer
    out.write(len(outcome.mark).to_bytes(4, "little") + outcome.mark)
    for data in outcome.result():
        out.write(data)
    out.flush()
    if sys.stdin.readline().strip() == "taken":
        with open(outcome.taken_path, "w", encoding="utf-8"):
            pass
    return 0


# --- http -----------------------------------------------------------------------------------


def _request(
    store: Dict[str, Any],
    method: str,
    url: str,
    headers: Dict[str, str],
    body: Optional[Read] = None,
    fine: Tuple[int, ...] = (200, 201, 202, 204),
) -> Tuple[int, Dict[str, str]]:
    """Status and headers of an answer; tried again, with growing pauses, while that may help."""
    import random

    problem = ""
    for number in range(TRIES):
        if number:
            time.sleep(random.uniform(0.5, 1.0) * min(30.0, 0.5 * 2**number))  # noqa: S311
        try:
            status, found, text = _once(store, method, url, headers, body)
        except OSError as error:
            problem = "%s: %s" % (type(error).__name__, error)
            continue
        if status in fine:
            return status, found
        problem = "%s %d %s" % (method, status, text)
        if status not in (408, 425, 429, 500, 502, 503, 504):
            break
    raise Undelivered("%s did not take the result: %s" % (_host(url), problem))


def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).netloc


def _once(
    store: Dict[str, Any], method: str, url: str, headers: Dict[str, str], body: Optional[Read]
) -> Tuple[int, Dict[str, str], str]:
    import http.client
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "https":
        import ssl

        context = ssl.create_default_context(cadata=store.get("ca") or None)
        connection: Any = http.client.HTTPSConnection(host, port, timeout=60, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        path = parts.path + ("?" + parts.query if parts.query else "")
        # The length is known, so chunks must not be announced.
        connection.request(method, path, body() if body else None, headers)
        answer = connection.getresponse()
        text = answer.read(2000).decode("utf-8", "replace")
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, text
    except http.client.HTTPException as error:
        raise OSError(str(error) or type(error).__name__) from error
    finally:
        connection.close()


# --- s3 -------------------------------------------------------------------------------------


def _post_all(store: Dict[str, Any], outcome: Outcome) -> None:
    """The result first, so that whoever sees the mark finds it.

    https://docs.aws.amazon.com/AmazonS3/latest/API/RESTObjectPOST.html
    """
    if outcome.result_name is not None:
        _post(store, outcome.result_name, outcome.size, outcome.result)
    _post(store, outcome.mark_name, len(outcome.mark), lambda: [outcome.mark])


def _post(store: Dict[str, Any], name: str, size: int, read: Read) -> None:
    boundary = os.urandom(16).hex()
    fields = dict(store["fields"], key=store["prefix"] + name)
    head = "".join(
        '--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (boundary, key, value)
        for key, value in fields.items()
    )
    head += (
        '--%s\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n" % (boundary, name)
    )
    tail = "\r\n--%s--\r\n" % boundary

    def body() -> Iterator[bytes]:
        yield head.encode()
        yield from read()
        yield tail.encode()

    headers = {
        "Content-Type": "multipart/form-data; boundary=%s" % boundary,
        "Content-Length": str(len(head.encode()) + size + len(tail)),
    }
    _request(store, "POST", store["url"], headers, body)


# --- registry -------------------------------------------------------------------------------


def _push(store: Dict[str, Any], outcome: Outcome) -> str:
    """Push the outcome as an artifact that refers to the image; its manifest's digest.

    https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pushing-blobs and
    https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md
    """
    import hashlib

    layers: List[Dict[str, Any]] = []
    for name, digest, size, read in _blobs(outcome):
        _push_blob(store, digest, size, read)
        title = {"org.opencontainers.image.title": name}
        kind = ARTIFACT + (".mark+json" if name == outcome.mark_name else "")
        layers.append({"mediaType": kind, "digest": digest, "size": size, "annotations": title})
    empty = "sha256:" + hashlib.sha256(b"{}").hexdigest()
    _push_blob(store, empty, 2, lambda: [b"{}"])
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": {"mediaType": EMPTY, "digest": empty, "size": 2},
        "layers": layers,
        "subject": store["subject"],
    }
    data = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    tag = "%s-%d-%d" % (store["tag"], outcome.attempt, outcome.element)
    headers = {"Content-Type": MANIFEST, "Content-Length": str(len(data)), **_bearer(store)}
    _request(store, "PUT", "%s/manifests/%s" % (_api(store), tag), headers, lambda: [data])
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _blobs(outcome: Outcome) -> Iterator[Tuple[str, str, int, Read]]:
    import hashlib

    if outcome.result_name is not None:
        yield outcome.result_name, "sha256:" + outcome.sha256, outcome.size, outcome.result
    digest = "sha256:" + hashlib.sha256(outcome.mark).hexdigest()
    yield outcome.mark_name, digest, len(outcome.mark), lambda: [outcome.mark]


def _push_blob(store: Dict[str, Any], digest: str, size: int, read: Read) -> None:
    from urllib.parse import urljoin

    start = "%s/blobs/uploads/" % _api(store)
    _, found = _request(store, "POST", start, {"Content-Length": "0", **_bearer(store)})
    where = urljoin(start, found.get("location", ""))
    if _host(where) != _host(start):
        raise Undelivered("the registry sends uploads to another host, which gets no credential")
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(size),
        **_bearer(store),
    }
    url = "%s%sdigest=%s" % (where, "&" if "?" in where else "?", digest)
    _request(store, "PUT", url, headers, read)


def _api(store: Dict[str, Any]) -> str:
    return "%s/v2/%s" % (store["base"], store["repository"])


def _bearer(store: Dict[str, Any]) -> Dict[str, str]:
    return {"Authorization": "Bearer " + store["token"]} if store.get("token") else {}


if __name__ == "__main__":
    if len(sys.argv) != 5 or sys.argv[1] != "give":
        sys.exit("usage: deliver.py give RESULTS ELEMENT ATTEMPT")
    sys.exit(give(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
