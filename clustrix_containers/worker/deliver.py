"""Takes an outcome out of a container that shares no directory with the client.

Runs beside ``worker.py`` inside the image: the standard library only, Python 3.10 and later. The
formats are those of ``contract.py``, repeated here; a test compares the two.

A small outcome travels in the termination message. A larger one goes into a *store*, and the
message names it there:

``hold``      the container stays up until the client has taken it (``give`` below);
``s3``        one form-encoded POST per file, under a policy that the client has signed;
``registry``  an OCI artifact that refers to the run's image;
``volume``    files in a directory that outlives the container.

How a call failed is reported even if no store takes all of it: cut to the size of a message.

As a program:

``deliver.py give RESULTS ELEMENT ATTEMPT`` writes the mark's length (u32, little endian), the mark
and the result to standard output, and ends the hold when it then reads a line ``taken``; its exit
code is 0 then, else 1. SIGALRM ends it if its output is not read, or not acknowledged, for long.
``deliver.py taken RESULTS ELEMENT ATTEMPT`` ends the hold for a client whose ``taken`` was lost.
``deliver.py read DIRECTORY ELEMENT ATTEMPT MARK HEARTBEAT`` writes the same from a volume, where
the mark is the file MARK (``-``: any), or the length 0 while there is none, and touches HEARTBEAT.
``deliver.py wait HEARTBEAT SECONDS`` runs until HEARTBEAT has not been touched for that long.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import signal
import sys
import time
from urllib.parse import urljoin, urlsplit

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator
    from http.client import HTTPResponse
    from typing import Any

    Read = Callable[[], Iterable[bytes]]
    StopRequested = Callable[[float], bool]

INLINE = "CXM1"
STORED = "CXM2"
FAILED = "CXM3"
NO_OUTCOME = "no outcome to give"
MESSAGE_LIMIT = 4096
PACKED_LIMIT = 64
ARTIFACT = "application/vnd.clustrix-containers.result.v1"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"

CHUNK = 1 << 18
TRIES = 12
MAX_WAIT = 20.0
TIMEOUT = 60.0
READ_TIMEOUT = 120
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
MAX_REDIRECTS = 3
# Where distributions keep what a Python that was built elsewhere does not find.
AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class Undelivered(Exception):
    """The store did not accept the outcome; the message says why, without secrets."""


class TemporaryError(Exception):
    """A failure that may go away. ``after``: the server's Retry-After, in seconds."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


def deliver(
    config: dict[str, Any],
    results: str,
    element: int,
    attempt: int,
    stop_requested: StopRequested,
    sign: Callable[[dict[str, Any]], str],
) -> None:
    """Deliver the outcome of an element, whose mark is in the directory ``results``.

    ``stop_requested(seconds)`` waits for SIGTERM at most that long. ``sign`` gives the MAC of a
    mark. Raises :class:`Undelivered`, after the termination message says so, or how the call failed.
    """
    outcome = Outcome(results, element, attempt)
    limit = int(config.get("limit") or MESSAGE_LIMIT)
    path = config.get("message") or os.devnull
    message = outcome.inline(limit)
    if message is None and not config.get("store"):
        message = outcome.cut(limit, sign)
    if message is not None:
        _write(path, message)
        return
    try:
        stored = _store(config.get("store") or {}, outcome, stop_requested)
    except Undelivered as error:
        # How the call failed matters more than how the store did.
        _write(path, outcome.cut(limit, sign) or fit(FAILED + str(error), limit))
        raise
    _write(path, STORED + json.dumps(stored))


def _store(
    config: dict[str, Any], outcome: Outcome, stop_requested: StopRequested
) -> dict[str, Any]:
    kind = config.get("kind")
    stored = {"store": kind, "mark": outcome.mark_name, "result": outcome.result_name}
    try:
        if kind == "hold":
            _hold(config, outcome, stop_requested)
        elif kind == "s3":
            uploader = Uploader(config, stop_requested)
            for name, _, size, contents in outcome.files():
                _post(uploader, name, size, contents)
        elif kind == "registry":
            stored["manifest"] = _push(Uploader(config, stop_requested), outcome)
        elif kind == "volume":
            _save_to_volume(Uploader(config, stop_requested), outcome)
        else:
            raise Undelivered(
                f"the result has {outcome.size} bytes, and the run has no store for what does not"
                " fit into a termination message"
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # Their messages may quote a secret, such as a token that is not a valid header.
        what = str(error) if isinstance(error, KeyError) else type(error).__name__
        raise Undelivered(f"the settings of the store {kind} are wrong: {what}") from None
    return stored


class Outcome:
    """The files of one element's outcome."""

    def __init__(self, results: str, element: int, attempt: int, mark: str = "") -> None:
        self.results, self.element, self.attempt = results, element, attempt
        self.mark_path = os.path.join(results, mark or f"{element}.{attempt}.mark")
        with open(self.mark_path, "rb") as file:
            self.mark = file.read()
        self.fields: dict[str, Any] = json.loads(self.mark)
        self.result_name: str | None = None
        self.size = 0
        self.sha256 = str(self.fields["sha256"])
        if self.sha256:
            self.result_name = f"{element}.{attempt}.{self.sha256[:16]}.result"
            self.size = int(self.fields["size"])
        self.mark_sha256 = hashlib.sha256(self.mark).hexdigest()
        # Two executions of one attempt never overwrite each other's.
        self.mark_name = f"{element}.{attempt}.{self.mark_sha256[:16]}.mark"

    def files(self) -> Iterator[tuple[str, str, int, Read]]:
        """Name, sha256, size and contents of each: the mark last, so that who sees it finds all."""
        if self.result_name is not None:
            yield self.result_name, self.sha256, self.size, self.result
        yield self.mark_name, self.mark_sha256, len(self.mark), lambda: [self.mark]

    def side_path(self, word: str) -> str:
        """A file through which ``give`` and the hold signal their progress to each other."""
        return os.path.join(self.results, f".{self.mark_name}.{word}")

    def result(self) -> Iterator[bytes]:
        if self.result_name is None:
            return
        try:
            with open(os.path.join(self.results, self.result_name), "rb") as file:
                if os.fstat(file.fileno()).st_size != self.size:
                    raise Undelivered("the result file was changed after it was written")
                yield from iter(lambda: file.read(CHUNK), b"")
        except OSError as error:
            # Not to be mistaken for an error of the network.
            raise Undelivered(f"the result cannot be read: {error}") from None

    def inline(self, limit: int) -> str | None:
        """The whole outcome as text, if that has no more than ``limit`` bytes."""
        if len(self.mark) + self.size > PACKED_LIMIT * limit:
            return None
        return _packed(self.mark, b"".join(self.result()), limit)

    def cut(self, limit: int, sign: Callable[[dict[str, Any]], str]) -> str | None:
        """How the call failed, in ``limit`` bytes: as much of the text as fits, signed anew.

        The pickled exception is included if enough space is left for the text. ``None`` for a
        call that returned: without the value nothing can be reported.
        """
        if self.fields["outcome"] == "ok":
            return None
        type_name, trace = cut_middle(str(self.fields["type"]), 200), str(self.fields["traceback"])

        def packed(result: bytes, length: int, trace_length: int) -> str | None:
            mark = dict(
                self.fields,
                type=type_name,
                message=cut_middle(str(self.fields["message"]), length),
                traceback=cut_middle(trace, trace_length),
            )
            if not result:
                mark.update(size=0, sha256="")
            mark["mac"] = sign(mark)
            data = json.dumps(mark, ensure_ascii=False).encode("utf-8", "backslashreplace")
            return _packed(data, result, limit)

        # Result, length of the message, least length of the traceback: the first that fits.
        choices = [(b"", 1000, 600), (b"", 250, 600), (b"", 50, 600), (b"", 0, 0)]
        if 0 < self.size <= limit:
            choices.insert(0, (b"".join(self.result()), 1000, 1000))
        for result, length, least in choices:
            low, high = min(least, len(trace)), min(len(trace), PACKED_LIMIT * limit)
            found = packed(result, length, low)
            if found is None:
                continue
            while low < high:
                middle = (low + high + 1) // 2
                message = packed(result, length, middle)
                if message is None:
                    high = middle - 1
                else:
                    low, found = middle, message
            return found
        return None


def _packed(mark: bytes, result: bytes, limit: int) -> str | None:
    """Mark and result as text, if that has no more than ``limit`` bytes."""
    import base64
    import zlib

    # What is unpacked is bounded, too; only empty data compresses further than that.
    if len(mark) + len(result) > PACKED_LIMIT * limit:
        return None
    packed = zlib.compress(len(mark).to_bytes(4, "little") + mark + result, 9)
    if len(packed) > limit:
        return None
    text = INLINE + base64.b85encode(packed).decode("ascii")
    return text if len(text) <= limit else None


def cut_middle(text: str, length: int) -> str:
    """``text`` with no more than about ``length`` characters: the end says more than the start."""
    if len(text) <= length:
        return text
    head = length // 4
    tail = text[len(text) - (length - head) :]
    return f"{text[:head]}\n[… {len(text) - length} characters …]\n{tail}"


def fit(text: str, limit: int) -> str:
    """The beginning of ``text`` that has no more than ``limit`` bytes in UTF-8."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > limit:
        data = data[: limit - 3].decode("utf-8", "ignore").encode() + "…".encode()
    return data.decode("utf-8")


def _write(path: str, text: str) -> None:
    # Not atomically: the kubelet has mounted the file itself.
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


# --- hold -----------------------------------------------------------------------------------


def _hold(store: dict[str, Any], outcome: Outcome, stop_requested: StopRequested) -> None:
    """Wait until the client has taken the outcome. The open port shows that it can.

    Its time starts again with each piece that is sent.
    """
    import socket

    seconds, address = float(store["seconds"]), ("", int(store["port"]))
    try:
        # A kernel may be without IPv6.
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(address, family=family, backlog=64, dualstack_ipv6=both)
    except OSError as error:
        raise Undelivered(f"cannot listen for the client: {error}") from error
    listener.setblocking(False)
    begun = time.monotonic()
    with listener:
        while True:
            stopped = stop_requested(0.05)
            if os.path.exists(outcome.side_path("taken")):
                return
            giving = _age(outcome.side_path("giving"))
            if stopped and giving > 5.0:
                raise Undelivered("stopped before the client took the result")
            if min(giving, time.monotonic() - begun) > seconds:
                raise Undelivered(f"the client did not take the result within {seconds:g} s")
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()


def _age(path: str) -> float:
    """Seconds since a file was touched."""
    try:
        return max(0.0, time.time() - os.stat(path).st_mtime)
    except OSError:
        return float("inf")


def give(outcome: Outcome) -> int:
    """Write an outcome to standard output, and end the hold once the client acknowledges it."""
    _write_outcome(outcome, outcome.side_path("giving"))
    if sys.stdin.buffer.readline(100).strip() != b"taken":
        return 1
    _touch(outcome.side_path("taken"))
    return 0


def _write_outcome(outcome: Outcome, heartbeat: str) -> None:
    out = sys.stdout.buffer
    # A container runtime keeps the pipe open after the connection behind it is gone: a write would
    # block for as long as the container lives. SIGALRM's default action ends this process.
    signal.alarm(READ_TIMEOUT)
    out.write(len(outcome.mark).to_bytes(4, "little") + outcome.mark)
    for data in outcome.result():
        _touch(heartbeat)
        out.write(data)
        signal.alarm(READ_TIMEOUT)
    out.flush()
    _touch(heartbeat)
    signal.alarm(READ_TIMEOUT)


def _touch(path: str) -> None:
    with open(path, "ab"):
        os.utime(path)


def main(arguments: list[str]) -> int:
    command, words = "".join(arguments[:1]), arguments[1:]
    try:
        if command in ("give", "taken") and len(words) == 3:
            outcome = Outcome(words[0], int(words[1]), int(words[2]))
            if command == "give":
                return give(outcome)
            _touch(outcome.side_path("taken"))
            return 0
        if command == "read" and len(words) == 5:
            return read(words[0], int(words[1]), int(words[2]), words[3], words[4])
        if command == "wait" and len(words) == 2:
            return wait(words[0], float(words[1]))
        sys.stderr.write(
            "usage: deliver.py give|taken RESULTS ELEMENT ATTEMPT"
            " | read DIRECTORY ELEMENT ATTEMPT MARK HEARTBEAT | wait HEARTBEAT SECONDS\n"
        )
        return 2
    except BrokenPipeError:
        # Nobody reads any more, and the interpreter's own flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, KeyError, Undelivered) as error:
        sys.stderr.write(f"{NO_OUTCOME}: {error}\n")
        return 1


# --- volume ---------------------------------------------------------------------------------


def _save_to_volume(uploader: Uploader, outcome: Outcome) -> None:
    """Write the result and then the mark into the store's directory, which is made if need be.

    The names contain the hash of the contents: two containers of one element do not conflict.
    """
    place, claim = str(uploader.store["path"]), uploader.store["claim"]
    # The mode of the directory above decides who may read.
    os.umask(0)

    def once() -> None:
        try:
            mode = _make(place)
            for name, _, _, contents in outcome.files():
                _put(os.path.join(place, name), contents(), mode)
        except OSError as error:
            reason = error.strerror or error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                who = f"uid {os.getuid()}, gid {os.getgid()}"
                raise Undelivered(
                    f"the volume claim {claim} cannot be written to by {who}: {reason}"
                ) from None
            text = f"the volume claim {claim} cannot store the result: {reason}"
            if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG):
                raise Undelivered(text) from None
            # A file server may come back, a full volume may be emptied.
            raise TemporaryError(text) from None

    uploader.retry(once)


def _make(path: str) -> int:
    """Create a directory and its parents with the mode of the one above; gives its mode."""
    if not os.path.isdir(path):
        mode = _make(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, mode & 0o1777)
    return os.stat(path).st_mode


def _put(path: str, pieces: Iterable[bytes], mode: int) -> None:
    """Write a file atomically and durably."""
    directory, name = os.path.split(path)
    part = os.path.join(directory, f".{name}.{os.urandom(6).hex()}.part")
    try:
        with open(part, "xb", opener=lambda it, flags: os.open(it, flags, mode & 0o644)) as file:
            for data in pieces:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    handle = os.open(directory, os.O_RDONLY)
    with contextlib.suppress(OSError):  # not all file systems can
        os.fsync(handle)
    os.close(handle)


def read(directory: str, element: int, attempt: int, mark: str, heartbeat: str) -> int:
    """Write an outcome of a volume to standard output, or that it is not there."""
    try:
        outcome = Outcome(
            directory, element, attempt, _find_mark(directory, element, attempt, mark)
        )
        if outcome.result_name is not None:
            os.stat(os.path.join(directory, outcome.result_name))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        _touch(heartbeat)
        sys.stdout.buffer.write(bytes(4))
        return 0
    _write_outcome(outcome, heartbeat)
    return 0


def _find_mark(directory: str, element: int, attempt: int, mark: str) -> str:
    if mark != "-":
        return mark
    start = f"{element}.{attempt}."

    def order(name: str) -> tuple[bool, float]:
        # One that failed was tried again.
        outcome = Outcome(directory, element, attempt, name)
        return outcome.fields["outcome"] != "ok", os.stat(outcome.mark_path).st_mtime

    names = (name for name in os.listdir(directory) if name.startswith(start))
    return min((name for name in names if name.endswith(".mark")), key=order, default="none")


def wait(heartbeat: str, seconds: float) -> int:
    """Run until ``heartbeat`` has not been touched for ``seconds``, or SIGTERM arrives."""
    # The kernel delivers to pid 1 only signals that it handles or waits for.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    _touch(heartbeat)
    while _age(heartbeat) < seconds:
        if signal.sigtimedwait([signal.SIGTERM], 1.0):
            break
    return 0


# --- http -----------------------------------------------------------------------------------


class Uploader:
    """Requests to one store, retried while that may help."""

    def __init__(self, store: dict[str, Any], stop_requested: StopRequested) -> None:
        self.store = store
        self._stop_requested = stop_requested
        self._tries = int(store.get("tries") or TRIES)
        self._timeout = float(store.get("timeout") or TIMEOUT)
        self._context: ssl.SSLContext | None = None

    def retry(self, action: Callable[[], Any]) -> Any:
        """``action()`` until it succeeds, fails permanently, or has failed ``tries`` times."""
        import random

        for number in range(1, self._tries + 1):
            try:
                return action()
            except TemporaryError as failure:
                if number == self._tries:
                    raise Undelivered(
                        f"{failure} (tried {number} times)" if number > 1 else str(failure)
                    ) from None
                longest = min(MAX_WAIT, 0.5 * 2**number)
                wait = random.uniform(0.5, 1.0) * longest  # noqa: S311
                if failure.after is not None:
                    wait = min(failure.after, MAX_WAIT)
                # Other signals end the wait for this one early.
                deadline, left = time.monotonic() + wait, wait
                while left >= 0:
                    if self._stop_requested(left):
                        raise Undelivered(f"{failure}; stopped before the next try") from None
                    left = deadline - time.monotonic()
        raise AssertionError

    def request(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: Read | None = None,
        fine: tuple[int, ...] = (200, 201, 202, 204),
    ) -> HTTPResponse:
        """The response, whose status is one of ``fine``; else TemporaryError, or Undelivered."""
        import ssl

        host = host_of(url)
        try:
            response, text = self._once(method, url, headers, body)
        except ssl.SSLCertVerificationError as error:
            why = getattr(error, "verify_message", "") or error.reason
            raise Undelivered(f"the certificate of {host} is not trusted: {why}") from None
        except OSError as error:
            why = error.strerror or str(error) or type(error).__name__
            raise TemporaryError(f"{host} did not respond: {why}") from None
        if response.status in fine:
            return response
        reason = f"{response.status} {self._error_text(text)}".strip()
        problem = f"{host} rejected the result: {reason}"
        if response.status not in TRANSIENT:
            raise Undelivered(problem)
        after = None
        with contextlib.suppress(ValueError):
            after = max(0.0, float(response.headers.get("Retry-After", "")))
        raise TemporaryError(problem, after)

    def _once(
        self, method: str, url: str, headers: dict[str, str], body: Read | None
    ) -> tuple[HTTPResponse, str]:
        """The response and the beginning of its body."""
        import http.client

        connection = self._connection(url)
        reset = None
        try:
            path = url.split("://", 1)[1].partition("/")
            try:
                # The length is known: no chunked transfer encoding.
                connection.request(method, "/" + path[2], body() if body else None, headers)
            except (BrokenPipeError, ConnectionResetError) as error:
                # It may have responded before it had read everything.
                reset = error
            try:
                response = connection.getresponse()
                return response, response.read(4000).decode("utf-8", "replace")
            except http.client.HTTPException:
                if reset:
                    raise reset from None
                raise
        except http.client.HTTPException as error:
            # Not its message, which may quote what was sent.
            raise OSError(f"not an HTTP response ({type(error).__name__})") from None
        finally:
            connection.close()

    def _connection(self, url: str) -> Any:
        import http.client

        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if not host or parts.scheme not in ("http", "https"):
            raise Undelivered("the store's URL is not http or https")
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._timeout)
        return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._trust())

    def _trust(self) -> ssl.SSLContext:
        """The image's certificate authorities, and the store's own."""
        import ssl

        if self._context is None:
            context = ssl.create_default_context()
            paths = ssl.get_default_verify_paths()
            if paths.cafile is None and paths.capath is None:
                for path in filter(os.path.exists, AUTHORITIES):
                    context.load_verify_locations(path)
            if self.store.get("ca"):
                try:
                    context.load_verify_locations(cadata=self.store["ca"])
                except ssl.SSLError:
                    raise Undelivered("the store's CA is not a PEM certificate") from None
            self._context = context
        return self._context

    def _error_text(self, body: str) -> str:
        """The message in the body of an error, without the secrets that it may quote."""
        found = re.findall(r"<(?:Code|Message)>([^<]*)<", body)[:2]
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            errors = json.loads(body)["errors"][:3]
            found = [f"{it.get('code')} {it.get('message')}" for it in errors]
        text = ": ".join(found) if found else re.sub(r"<[^>]*>", " ", body)
        public = (
            "key",
            "acl",
            "bucket",
            "content-type",
            "success_action_status",
            "x-amz-algorithm",
        )
        fields = self.store.get("fields") or {}
        secrets = [value for name, value in fields.items() if str(name).lower() not in public]
        for secret in map(str, (self.store.get("token") or "", *secrets)):
            text = text.replace(secret, "[…]") if secret else text
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text[:300]


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def host_of(url: str) -> str:
    """``host[:port]``, without a user's name or password."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()


# --- s3 -------------------------------------------------------------------------------------


def _post(uploader: Uploader, name: str, size: int, read: Read) -> None:
    """https://docs.aws.amazon.com/AmazonS3/latest/API/RESTObjectPOST.html"""
    store = uploader.store
    boundary = os.urandom(16).hex()
    fields = dict(store["fields"], key=store["prefix"] + name)
    text = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        for key, value in fields.items()
    )
    text += (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    head, tail = text.encode(), f"\r\n--{boundary}--\r\n".encode()

    def body() -> Iterator[bytes]:
        yield head
        yield from read()
        yield tail

    headers = {
        "Content-Type": f"multipart/form-data; boundary={boundary}",
        "Content-Length": str(len(head) + size + len(tail)),
    }

    def once() -> None:
        # The name of a new bucket resolves to the wrong region for a while: S3 responds 307.
        url = store["url"]
        for _ in range(MAX_REDIRECTS):
            response = uploader.request("POST", url, headers, body, (200, 201, 204, 307, 308))
            if response.status < 300:
                return
            url = _redirect_target(url, response)
        raise Undelivered(f"redirect loop at {host_of(store['url'])}")

    uploader.retry(once)


def _redirect_target(url: str, response: HTTPResponse) -> str:
    """Where a response points to; never from https to http."""
    where = urljoin(url, response.headers.get("Location", ""))
    own, other = urlsplit(url), urlsplit(where)
    if own.scheme == "https" and other.scheme != "https":
        if other.hostname != own.hostname or other.port not in (None, own.port):
            raise Undelivered(f"{host_of(url)} redirects from https to http")
        # A service that does not know of the TLS proxy in front of it.
        where = other._replace(scheme=own.scheme, netloc=own.netloc).geturl()
    return where


# --- registry -------------------------------------------------------------------------------


def _push(uploader: Uploader, outcome: Outcome) -> str:
    """Push the outcome as an artifact that refers to the image; its manifest's digest.

    https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pushing-blobs and
    https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md
    """
    layers: list[dict[str, Any]] = []
    for name, sha256, size, contents in outcome.files():
        digest = "sha256:" + sha256
        _push_blob(uploader, digest, size, contents)
        title = {"org.opencontainers.image.title": name}
        kind = ARTIFACT + (".mark+json" if name == outcome.mark_name else "")
        layers.append({"mediaType": kind, "digest": digest, "size": size, "annotations": title})
    empty = "sha256:" + hashlib.sha256(b"{}").hexdigest()
    _push_blob(uploader, empty, 2, lambda: [b"{}"])
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": {"mediaType": EMPTY, "digest": empty, "size": 2},
        "layers": layers,
        "subject": uploader.store["subject"],
    }
    data = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    tag = f"{uploader.store['tag']}-{outcome.attempt}-{outcome.element}"
    headers = {"Content-Type": MANIFEST, "Content-Length": str(len(data)), **_bearer(uploader)}
    url = f"{_api(uploader)}/manifests/{tag}"
    uploader.retry(lambda: uploader.request("PUT", url, headers, lambda: [data]))
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _push_blob(uploader: Uploader, digest: str, size: int, read: Read) -> None:
    sent: list[bool] = []

    def once() -> None:
        # Only the response may have been lost.
        if sent and _has_blob(uploader, digest):
            return
        start = f"{_api(uploader)}/blobs/uploads/"
        found = uploader.request("POST", start, {"Content-Length": "0", **_bearer(uploader)})
        where = _redirect_target(start, found)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        if _origin(where) == _origin(start):
            headers.update(_bearer(uploader))
        url = f"{where}{'&' if '?' in where else '?'}digest={digest}"
        sent.append(True)
        response = uploader.request("PUT", url, headers, read, (200, 201, 202, 204, 404))
        if response.status == 404:
            raise TemporaryError(f"{host_of(start)} no longer knows the upload that it started")

    uploader.retry(once)


def _has_blob(uploader: Uploader, digest: str) -> bool:
    url = f"{_api(uploader)}/blobs/{digest}"
    try:
        return uploader.request("HEAD", url, _bearer(uploader), fine=(200, 404)).status == 200
    except TemporaryError:
        # The upload that follows fails with more to say: a response to HEAD has no body.
        return False


def _api(uploader: Uploader) -> str:
    return f"{uploader.store['base']}/v2/{uploader.store['repository']}"


def _bearer(uploader: Uploader) -> dict[str, str]:
    token = uploader.store.get("token")
    return {"Authorization": "Bearer " + token} if token else {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
