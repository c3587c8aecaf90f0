"""Takes an outcome out of a container that shares no directory with the client.

Runs beside ``worker.py`` inside the image: the standard library only, Python 3.8 to 3.14. The
formats are those of ``contract.py``, repeated here; a test compares the two.

What is small travels in the termination message. What is not goes into a *store*, and the
message names it there:

``hold``      the container lives on until the client has taken it (``give`` below);
``s3``        one form-encoded POST per file, under a policy that the client has signed;
``registry``  an OCI artifact that refers to the run's image;
``volume``    files in a directory that outlives the container.

How a call failed is told even if no store takes all of it: cut to the size of a message.

As a program, ``deliver.py give RESULTS ELEMENT ATTEMPT`` writes the mark's length (u32, little
endian), the mark and the result to standard output, and ends the hold when it then reads a line
``taken``; its exit code is 0 then, and 1 if it did not come to that. Where nobody reads for long
what it writes, or answers it, SIGALRM ends it. ``deliver.py taken RESULTS ELEMENT ATTEMPT`` ends
the hold for a client whose word has got lost. ``deliver.py read DIRECTORY ELEMENT ATTEMPT MARK
SIGN`` writes the same from a volume, where the mark is the file MARK (``-``: any), or the length 0
while it is not there, and touches SIGN as it goes; ``deliver.py wait SIGN SECONDS`` lives until
SIGN has not been touched for so long.
"""

from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    import ssl
    from typing import Any, BinaryIO, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

    Read = Callable[[], Iterable[bytes]]
    Told = Callable[[float], bool]

INLINE = "CXM1"
STORED = "CXM2"
FAILED = "CXM3"
NOTHING = "there is no outcome to give"
MESSAGE_LIMIT = 4096
PACKED_LIMIT = 64
ARTIFACT = "application/vnd.clustrix-containers.result.v1"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"

CHUNK = 1 << 18
TRIES = 12
LONGEST_WAIT = 20.0
TIMEOUT = 60.0
UNHEARD = 120
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
REDIRECTS = 3
# Where distributions keep what a Python that was built elsewhere does not find.
AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class Undelivered(Exception):
    """The store did not take it; the message says why. Nothing secret is in it."""


class Passing(Exception):
    """A failure that may pass. ``after``: how many seconds the server asks to wait."""

    def __init__(self, message: str, after: Optional[float] = None) -> None:
        super().__init__(message)
        self.after = after


def deliver(
    config: Dict[str, Any],
    results: str,
    element: int,
    attempt: int,
    told_to_end: Told,
    sign: Callable[[Dict[str, Any]], str],
) -> None:
    """Send the outcome of an element on its way; its mark lies in ``results``.

    ``told_to_end`` waits for a signal to end, so many seconds at most. ``sign`` gives the MAC
    of a mark. Raises :class:`Undelivered`, after the message has said so, or what went wrong.
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
        said = _store(config.get("store") or {}, outcome, told_to_end)
    except Undelivered as error:
        # What went wrong with the call matters more than what then went wrong with the store.
        _write(path, outcome.cut(limit, sign) or fit(FAILED + str(error), limit))
        raise
    _write(path, STORED + json.dumps(said))


def _store(config: Dict[str, Any], outcome: Outcome, told_to_end: Told) -> Dict[str, Any]:
    kind = config.get("kind")
    said = {"store": kind, "mark": outcome.mark_name, "result": outcome.result_name}
    try:
        if kind == "hold":
            _hold(config, outcome, told_to_end)
        elif kind == "s3":
            _post_all(Sender(config, told_to_end), outcome)
        elif kind == "registry":
            said["manifest"] = _push(Sender(config, told_to_end), outcome)
        elif kind == "volume":
            _keep(Sender(config, told_to_end), outcome)
        else:
            raise Undelivered(
                "the result has %d bytes, and the run has no store for what does not fit into"
                " a termination message" % outcome.size
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # Their texts may quote a secret: a token that is no valid header, say.
        what = str(error) if isinstance(error, KeyError) else type(error).__name__
        raise Undelivered("the settings of the store %s are wrong: %s" % (kind, what)) from None
    return said


class Outcome:
    """The files of one element's outcome."""

    def __init__(self, results: str, element: int, attempt: int, mark: str = "") -> None:
        import hashlib

        self.results, self.element, self.attempt = results, element, attempt
        self.mark_path = os.path.join(results, mark or "%d.%d.mark" % (element, attempt))
        with open(self.mark_path, "rb") as file:
            self.mark = file.read()
        self.said: Dict[str, Any] = json.loads(self.mark)
        self.result_name: Optional[str] = None
        self.size = 0
        self.sha256 = str(self.said["sha256"])
        if self.sha256:
            self.result_name = "%d.%d.%s.result" % (element, attempt, self.sha256[:16])
            self.size = int(self.said["size"])
        digest = hashlib.sha256(self.mark).hexdigest()
        # Two executions of one attempt never overwrite each other's.
        self.mark_name = "%d.%d.%s.mark" % (element, attempt, digest[:16])

    def side_path(self, word: str) -> str:
        """A file by which ``give`` and the hold tell each other how far they are."""
        return os.path.join(self.results, ".%s.%s" % (self.mark_name, word))

    def result(self) -> Iterator[bytes]:
        if self.result_name is None:
            return
        try:
            with open(os.path.join(self.results, self.result_name), "rb") as file:
                if os.fstat(file.fileno()).st_size != self.size:
                    raise Undelivered("the result file was changed after it was written")
                yield from _chunks(file)
        except OSError as error:
            # Not to be taken for an error of the network that it is on its way to.
            raise Undelivered("the result cannot be read: %s" % error) from None

    def inline(self, limit: int) -> Optional[str]:
        """The whole outcome as text, if that has no more than ``limit`` bytes."""
        if len(self.mark) + self.size > PACKED_LIMIT * limit:
            return None
        return _packed(self.mark, b"".join(self.result()), limit)

    def cut(self, limit: int, sign: Callable[[Dict[str, Any]], str]) -> Optional[str]:
        """How the call failed, in ``limit`` bytes: as much of the words as fits, signed anew.

        The exception itself travels along if that leaves room for its words. ``None`` for a
        call that returned a value: without it nothing is told.
        """
        if self.said["outcome"] == "ok":
            return None
        for whole in (True, False):
            if whole and self.size > limit:
                continue
            shorter = Shorter(self, b"".join(self.result()) if whole else b"", limit, sign)
            message = shorter.best(1000 if whole else 0)
            if message is not None:
                return message
        return None


class Shorter:
    """A mark whose words are cut until all fits into ``limit`` bytes."""

    def __init__(
        self, outcome: Outcome, result: bytes, limit: int, sign: Callable[[Dict[str, Any]], str]
    ) -> None:
        self.mark = dict(outcome.said, type=middle_cut(str(outcome.said["type"]), 200))
        if not result:
            self.mark.update(size=0, sha256="")
        self.trace, self.words = str(outcome.said["traceback"]), str(outcome.said["message"])
        self.result, self.limit, self.sign = result, limit, sign

    def best(self, least: int) -> Optional[str]:
        """The longest of all, with at least so many characters of the traceback or all of it."""
        for words in (1000, 250, 50, 0):
            wanted = min(max(least, 600 if words else 0), len(self.trace))
            found = self._try(words, wanted)
            if found is None:
                if least:
                    return None
                continue
            low, high = wanted, min(len(self.trace), PACKED_LIMIT * self.limit)
            while low < high:
                middle = (low + high + 1) // 2
                message = self._try(words, middle)
                if message is None:
                    high = middle - 1
                else:
                    low, found = middle, message
            return found
        return None

    def _try(self, words: int, trace: int) -> Optional[str]:
        mark = dict(
            self.mark,
            message=middle_cut(self.words, words),
            traceback=middle_cut(self.trace, trace),
        )
        mark["mac"] = self.sign(mark)
        data = json.dumps(mark, ensure_ascii=False).encode("utf-8", "backslashreplace")
        return _packed(data, self.result, self.limit)


def _packed(mark: bytes, result: bytes, limit: int) -> Optional[str]:
    """Mark and result as text, if that has no more than ``limit`` bytes."""
    import base64
    import zlib

    # What is unpacked is bounded, too. Nothing shrinks that much but what is empty.
    if len(mark) + len(result) > PACKED_LIMIT * limit:
        return None
    packed = zlib.compress(len(mark).to_bytes(4, "little") + mark + result, 9)
    if len(packed) > limit:
        return None
    text = INLINE + base64.b85encode(packed).decode("ascii")
    return text if len(text) <= limit else None


def middle_cut(text: str, length: int) -> str:
    """``text`` with no more than about ``length`` characters: the end says more than the start."""
    if len(text) <= length:
        return text
    head = length // 4
    tail = text[len(text) - (length - head) :]
    return "%s\n[… %d characters …]\n%s" % (text[:head], len(text) - length, tail)


def fit(text: str, limit: int) -> str:
    """The beginning of ``text`` that has no more than ``limit`` bytes in UTF-8."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > limit:
        data = data[: limit - 3].decode("utf-8", "ignore").encode() + "…".encode()
    return data.decode("utf-8")


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    data = file.read(CHUNK)
    while data:
        yield data
        data = file.read(CHUNK)


def _write(path: str, text: str) -> None:
    # Not atomically: the kubelet has mounted the file itself.
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


# --- hold -----------------------------------------------------------------------------------


def _hold(store: Dict[str, Any], outcome: Outcome, told_to_end: Told) -> None:
    """Wait until the client has taken the outcome. That a port answers says that it can be.

    Its time begins anew with each piece that goes out.
    """
    seconds = float(store["seconds"])
    try:
        listener = _listen(int(store["port"]))
    except OSError as error:
        raise Undelivered("the result cannot be offered: %s" % error) from error
    begun = time.monotonic()
    with listener:
        while True:
            told = told_to_end(0.05)
            if os.path.exists(outcome.side_path("taken")):
                return
            giving = _since(outcome.side_path("giving"))
            if told and giving > 5.0:
                raise Undelivered("it was told to end before anybody took the result")
            if min(giving, time.monotonic() - begun) > seconds:
                raise Undelivered("nobody took the result within %g s" % seconds)
            _greet(listener)


def _listen(port: int) -> socket.socket:
    import socket

    try:
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        address: Tuple[Any, ...] = ("::", port)
    except OSError:
        # A kernel without IPv6.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        address = ("", port)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _greet(listener: socket.socket) -> None:
    try:
        while True:
            listener.accept()[0].close()
    except OSError:
        pass


def _since(path: str) -> float:
    """Seconds since a file was touched."""
    try:
        return max(0.0, time.time() - os.stat(path).st_mtime)
    except OSError:
        return float("inf")


def give(outcome: Outcome) -> int:
    """Write an outcome to standard output, and take note when the other side has it."""
    _send(outcome, outcome.side_path("giving"))
    if sys.stdin.buffer.readline(100).strip() != b"taken":
        return 1
    return taken(outcome)


def taken(outcome: Outcome) -> int:
    """Let the container that holds the outcome end."""
    _touch(outcome.side_path("taken"))
    return 0


def _send(outcome: Outcome, sign: str) -> None:
    import signal

    out = sys.stdout.buffer
    # A container runtime keeps the pipe open though the connection behind it is gone: what waits
    # for it would do so as long as the container lives. Its default action ends this process.
    signal.alarm(UNHEARD)
    out.write(len(outcome.mark).to_bytes(4, "little") + outcome.mark)
    for data in outcome.result():
        _touch(sign)
        out.write(data)
        signal.alarm(UNHEARD)
    out.flush()
    _touch(sign)
    signal.alarm(UNHEARD)


def _touch(path: str) -> None:
    with open(path, "ab"):
        os.utime(path)


def main(arguments: List[str]) -> int:
    command, words = "".join(arguments[:1]), arguments[1:]
    try:
        if command in ("give", "taken") and len(words) == 3:
            outcome = Outcome(words[0], int(words[1]), int(words[2]))
            return give(outcome) if command == "give" else taken(outcome)
        if command == "read" and len(words) == 5:
            return read(words[0], int(words[1]), int(words[2]), words[3], words[4])
        if command == "wait" and len(words) == 2:
            return wait(words[0], float(words[1]))
        sys.stderr.write(
            "usage: deliver.py give|taken RESULTS ELEMENT ATTEMPT"
            " | read DIRECTORY ELEMENT ATTEMPT MARK SIGN | wait SIGN SECONDS\n"
        )
        return 2
    except BrokenPipeError:
        # Nobody listens any more: nor may the interpreter's own flush complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, KeyError, Undelivered) as error:
        sys.stderr.write("%s: %s\n" % (NOTHING, error))
        return 1


# --- volume ---------------------------------------------------------------------------------


def _keep(sender: Sender, outcome: Outcome) -> None:
    """Write the result and then the mark into the store's directory, which is made if need be.

    The names are of their contents: two containers of one element do not meet.
    """
    place, claim = str(sender.store["path"]), sender.store["claim"]
    # Who may read is said by the directory that all this lies in.
    os.umask(0)

    def once() -> None:
        import errno

        try:
            mode = _make(place)
            if outcome.result_name is not None:
                _put(os.path.join(place, outcome.result_name), outcome.result(), mode)
            _put(os.path.join(place, outcome.mark_name), [outcome.mark], mode)
        except OSError as error:
            said = (claim, os.getuid(), os.getgid(), error.strerror or error)
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise Undelivered(
                    "the volume claim %s cannot be written to by uid %d, gid %d: %s" % said
                ) from None
            text = "the volume claim %s did not take the result: %s" % (said[0], said[3])
            if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG):
                raise Undelivered(text) from None
            # A server that is away for a moment; a full volume that others are emptying.
            raise Passing(text) from None

    sender.insist(once)


def _make(path: str) -> int:
    """Make a directory, and what is missing above it; as open as what it lies in. Its mode."""
    if not os.path.isdir(path):
        mode = _make(os.path.dirname(path))
        try:
            os.mkdir(path, mode & 0o1777)
        except FileExistsError:
            pass
    return os.stat(path).st_mode


def _put(path: str, pieces: Iterable[bytes], mode: int) -> None:
    """Write a file that is there at once, and stays, or is not there at all."""
    directory, name = os.path.split(path)
    part = os.path.join(directory, ".%s.%s.part" % (name, os.urandom(6).hex()))
    try:
        with open(part, "xb", opener=lambda it, flags: os.open(it, flags, mode & 0o644)) as file:
            for data in pieces:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        try:
            os.unlink(part)
        except OSError:
            pass
        raise
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # not all file systems can
    finally:
        os.close(handle)


def read(directory: str, element: int, attempt: int, mark: str, sign: str) -> int:
    """Write an outcome of a volume to standard output, or that it is not there."""
    try:
        outcome = Outcome(directory, element, attempt, _mark(directory, element, attempt, mark))
        if outcome.result_name is not None:
            os.stat(os.path.join(directory, outcome.result_name))
    except OSError as error:
        import errno

        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        _touch(sign)
        sys.stdout.buffer.write(bytes(4))
        return 0
    _send(outcome, sign)
    return 0


def _mark(directory: str, element: int, attempt: int, mark: str) -> str:
    if mark != "-":
        return mark
    start = "%d.%d." % (element, attempt)
    names = [it for it in os.listdir(directory) if it.startswith(start) and it.endswith(".mark")]
    if not names:
        return "none"

    def order(name: str) -> Tuple[bool, float]:
        # One that failed was tried again.
        outcome = Outcome(directory, element, attempt, name)
        return outcome.said["outcome"] != "ok", os.stat(outcome.mark_path).st_mtime

    return min(names, key=order)


def wait(sign: str, seconds: float) -> int:
    """Live until ``sign`` has not been touched for so many seconds, or SIGTERM comes."""
    import signal

    # The first process of a container hears of no signal that it has not asked for.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    _touch(sign)
    while _since(sign) < seconds:
        if signal.sigtimedwait([signal.SIGTERM], 1.0):
            break
    return 0


# --- http -----------------------------------------------------------------------------------


class Answer:
    """Status, headers (names in lower case) and the beginning of the body."""

    def __init__(self, status: int, headers: Dict[str, str], text: str) -> None:
        self.status, self.headers, self.text = status, headers, text


class Sender:
    """Requests to one store, tried again while that may help."""

    def __init__(self, store: Dict[str, Any], told_to_end: Told) -> None:
        self.store = store
        self._told = told_to_end
        self._tries = int(store.get("tries") or TRIES)
        self._timeout = float(store.get("timeout") or TIMEOUT)
        self._context: Optional[ssl.SSLContext] = None

    def insist(self, action: Callable[[], Any]) -> Any:
        """``action()`` until it works, fails for good, or has failed too often."""
        import random

        for number in range(1, self._tries + 1):
            try:
                return action()
            except Passing as failure:
                if number == self._tries:
                    raise Undelivered(
                        "%s (tried %d times)" % (failure, number) if number > 1 else str(failure)
                    ) from None
                longest = min(LONGEST_WAIT, 0.5 * 2**number)
                wait = random.uniform(0.5, 1.0) * longest  # noqa: S311
                if failure.after is not None:
                    wait = min(failure.after, LONGEST_WAIT)
                if self._wait(wait):
                    raise Undelivered("%s; then it was told to end" % failure) from None
        raise AssertionError

    def _wait(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            if self._told(max(0.0, left)):
                return True
            if left <= 0:
                return False

    def request(
        self,
        method: str,
        url: str,
        headers: Dict[str, str],
        body: Optional[Read] = None,
        fine: Tuple[int, ...] = (200, 201, 202, 204),
    ) -> Answer:
        """The answer, whose status is one of ``fine``; else Passing, or Undelivered."""
        import ssl

        host = host_of(url)
        try:
            answer = self._once(method, url, headers, body)
        except ssl.SSLCertVerificationError as error:
            why = getattr(error, "verify_message", "") or error.reason
            raise Undelivered("the certificate of %s is not trusted: %s" % (host, why)) from None
        except OSError as error:
            text = error.strerror or str(error)
            raise Passing("%s did not answer: %s" % (host, text or type(error).__name__)) from None
        if answer.status in fine:
            return answer
        said = ("%s %s" % (answer.status, self._plain(answer.text))).strip()
        problem = "%s did not take the result: %s" % (host, said)
        if answer.status in TRANSIENT:
            raise Passing(problem, _retry_after(answer))
        raise Undelivered(problem)

    def _once(self, method: str, url: str, headers: Dict[str, str], body: Optional[Read]) -> Answer:
        import http.client

        connection = self._connection(url)
        try:
            path = url.split("://", 1)[1].partition("/")
            try:
                # The length is known, so chunks must not be announced.
                connection.request(method, "/" + path[2], body() if body else None, headers)
            except (BrokenPipeError, ConnectionResetError):
                # It may have said why, before it had read it all.
                try:
                    return _answer(connection)
                except http.client.HTTPException:
                    pass
                raise
            return _answer(connection)
        except http.client.HTTPException as error:
            # Not its text: it may quote what was sent.
            raise OSError("the answer is no HTTP (%s)" % type(error).__name__) from None
        finally:
            connection.close()

    def _connection(self, url: str) -> Any:
        import http.client
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if not host or parts.scheme not in ("http", "https"):
            raise Undelivered("the store is at no web address")
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._timeout)
        return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._trust())

    def _trust(self) -> ssl.SSLContext:
        """The image's authorities, and the store's own."""
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
                    raise Undelivered("the store's own authority is no certificate") from None
            self._context = context
        return self._context

    def _plain(self, body: str) -> str:
        """What an error's body says, without what it quotes of ours."""
        import re

        found = re.findall(r"<(?:Code|Message)>([^<]*)<", body)[:2]
        try:
            errors = json.loads(body)["errors"][:3]
            found = ["%s %s" % (it.get("code"), it.get("message")) for it in errors]
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        text = ": ".join(found) if found else re.sub(r"<[^>]*>", " ", body)
        for secret in _secrets(self.store):
            text = text.replace(secret, "[…]")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text[:300]


def _answer(connection: Any) -> Answer:
    answer = connection.getresponse()
    text = answer.read(4000).decode("utf-8", "replace")
    return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, text)


def _secrets(store: Dict[str, Any]) -> List[str]:
    fields = store.get("fields") or {}
    public = ("key", "acl", "bucket", "content-type", "success_action_status", "x-amz-algorithm")
    found = [str(value) for name, value in fields.items() if str(name).lower() not in public]
    return [it for it in [str(store.get("token") or ""), *found] if it]


def _retry_after(answer: Answer) -> Optional[float]:
    try:
        return max(0.0, float(answer.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _origin(url: str) -> Tuple[str, Optional[str], Optional[int]]:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def host_of(url: str) -> str:
    """``host[:port]``, without a user's name or password."""
    from urllib.parse import urlsplit

    return urlsplit(url).netloc.rpartition("@")[2].lower()


# --- s3 -------------------------------------------------------------------------------------


def _post_all(sender: Sender, outcome: Outcome) -> None:
    """The result first, so that whoever sees the mark finds it.

    https://docs.aws.amazon.com/AmazonS3/latest/API/RESTObjectPOST.html
    """
    if outcome.result_name is not None:
        _post(sender, outcome.result_name, outcome.size, outcome.result)
    _post(sender, outcome.mark_name, len(outcome.mark), lambda: [outcome.mark])


def _post(sender: Sender, name: str, size: int, read: Read) -> None:
    store = sender.store
    boundary = os.urandom(16).hex()
    fields = dict(store["fields"], key=store["prefix"] + name)
    text = "".join(
        '--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (boundary, key, value)
        for key, value in fields.items()
    )
    text += (
        '--%s\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n" % (boundary, name)
    )
    head, tail = text.encode(), ("\r\n--%s--\r\n" % boundary).encode()

    def body() -> Iterator[bytes]:
        yield head
        yield from read()
        yield tail

    headers = {
        "Content-Type": "multipart/form-data; boundary=%s" % boundary,
        "Content-Length": str(len(head) + size + len(tail)),
    }

    def once() -> None:
        # A young bucket's name leads to the wrong region for a while: S3 says 307 then.
        url = store["url"]
        for _ in range(REDIRECTS):
            answer = sender.request("POST", url, headers, body, (200, 201, 204, 307, 308))
            if answer.status < 300:
                return
            url = _next(url, answer)
        raise Undelivered("%s redirects round in circles" % host_of(store["url"]))

    sender.insist(once)


def _next(url: str, answer: Answer) -> str:
    """Where an answer points to; never from https to http."""
    from urllib.parse import urljoin, urlsplit

    where = urljoin(url, answer.headers.get("location", ""))
    own, other = urlsplit(url), urlsplit(where)
    if own.scheme == "https" and other.scheme != "https":
        if other.hostname != own.hostname or other.port not in (None, own.port):
            raise Undelivered("%s sends the result to where there is no TLS" % host_of(url))
        # A service behind a TLS proxy that does not know of it.
        where = other._replace(scheme=own.scheme, netloc=own.netloc).geturl()
    return where


# --- registry -------------------------------------------------------------------------------


def _push(sender: Sender, outcome: Outcome) -> str:
    """Push the outcome as an artifact that refers to the image; its manifest's digest.

    https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pushing-blobs and
    https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md
    """
    import hashlib

    layers: List[Dict[str, Any]] = []
    for name, digest, size, read in _blobs(outcome):
        _push_blob(sender, digest, size, read)
        title = {"org.opencontainers.image.title": name}
        kind = ARTIFACT + (".mark+json" if name == outcome.mark_name else "")
        layers.append({"mediaType": kind, "digest": digest, "size": size, "annotations": title})
    empty = "sha256:" + hashlib.sha256(b"{}").hexdigest()
    _push_blob(sender, empty, 2, lambda: [b"{}"])
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": {"mediaType": EMPTY, "digest": empty, "size": 2},
        "layers": layers,
        "subject": sender.store["subject"],
    }
    data = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    tag = "%s-%d-%d" % (sender.store["tag"], outcome.attempt, outcome.element)
    headers = {"Content-Type": MANIFEST, "Content-Length": str(len(data)), **_bearer(sender)}
    url = "%s/manifests/%s" % (_api(sender), tag)
    sender.insist(lambda: sender.request("PUT", url, headers, lambda: [data]))
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _blobs(outcome: Outcome) -> Iterator[Tuple[str, str, int, Read]]:
    import hashlib

    if outcome.result_name is not None:
        yield outcome.result_name, "sha256:" + outcome.sha256, outcome.size, outcome.result
    digest = "sha256:" + hashlib.sha256(outcome.mark).hexdigest()
    yield outcome.mark_name, digest, len(outcome.mark), lambda: [outcome.mark]


def _push_blob(sender: Sender, digest: str, size: int, read: Read) -> None:
    sent: List[bool] = []

    def once() -> None:
        # The answer may have been lost, and not what it answered.
        if sent and _holds(sender, digest):
            return
        start = "%s/blobs/uploads/" % _api(sender)
        found = sender.request("POST", start, {"Content-Length": "0", **_bearer(sender)})
        where = _next(start, found)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        if _origin(where) == _origin(start):
            headers.update(_bearer(sender))
        url = "%s%sdigest=%s" % (where, "&" if "?" in where else "?", digest)
        sent.append(True)
        answer = sender.request("PUT", url, headers, read, (200, 201, 202, 204, 404))
        if answer.status == 404:
            raise Passing("%s has forgotten an upload that it had begun" % host_of(start))

    sender.insist(once)


def _holds(sender: Sender, digest: str) -> bool:
    url = "%s/blobs/%s" % (_api(sender), digest)
    try:
        return sender.request("HEAD", url, _bearer(sender), fine=(200, 404)).status == 200
    except Passing:
        # What is sent anyway tells more of what is wrong than this answer, which has no body.
        return False


def _api(sender: Sender) -> str:
    return "%s/v2/%s" % (sender.store["base"], sender.store["repository"])


def _bearer(sender: Sender) -> Dict[str, str]:
    token = sender.store.get("token")
    return {"Authorization": "Bearer " + token} if token else {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
