"""Runs one call inside the container: one file, the standard library only, Python 3.10 and later.

The formats and paths are those of ``contract.py``, repeated here because nothing of ours
may be imported; a test compares the two.

Two processes. The *parent* is the container's main process (often pid 1). It forks before
anything of the user's is imported, so it stays small and outlives what kills the child: it
reaps orphans, forwards SIGTERM and SIGINT, enforces the time limit and writes the mark. The
*child* finds the function, runs it and writes the result; it reports how that ended through a
pipe. A child that ends without a report (segmentation fault, ``os._exit``, the kernel's
out-of-memory killer) counts as ``died``.

When the parent itself receives SIGTERM or SIGINT and the child leaves no outcome, no mark is
written: whoever ended it knows why, and may run the element again.

Exit codes: 0 the function returned; 1 it raised, or its result cannot be pickled;
124 time limit; 125 an error of this worker or its image; 128+n ended by signal n; a child
that left with ``os._exit(n)`` gives n (1 for 0).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import os
import pickle
import resource
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

ROOT = "/opt/clustrix"
ENTRY = ".clustrix/entry.json"
FUNCTION = ".clustrix/function.pkl"
MAIN = "__clustrix_main__"
RESULT_MAGIC = b"CXR1"
RESULT_ALIGN = 64
INSIDE = "CLUSTRIX_INSIDE"
ENV_ROOT = "CLUSTRIX_ROOT"
ENV_RUN = "CLUSTRIX_RUN"
ENV_ELEMENT = "CLUSTRIX_ELEMENT"
ENV_ATTEMPT = "CLUSTRIX_ATTEMPT"
ENV_TIMEOUT = "CLUSTRIX_TIMEOUT"
ENV_GRACE = "CLUSTRIX_GRACE"
ENV_CPUS = "CLUSTRIX_CPUS"
ENV_HOME = "CLUSTRIX_HOME"
ENV_RESULTS = "CLUSTRIX_RESULTS"
ENV_KEY = "CLUSTRIX_KEY_FILE"
ENV_DELIVER = "CLUSTRIX_DELIVER_FILE"

CANCELLED_MESSAGE = "CXM4"

GRACE = 5.0
LINGER = 10.0
TEXT_LIMIT = 1 << 18
IN_BAND_LIMIT = 1 << 12
COPY_STEP = 1 << 20
PIPE_HEADER = 8

EXIT_ERROR, EXIT_TIMEOUT, EXIT_WORKER = 1, 124, 125
WHOLE, SECONDS = "a whole number of at least 0", "a number of seconds"


class ContractError(Exception):
    """The image, the call or the results directory is not as the contract says."""


class Call:
    """This call, as the environment describes it."""

    def __init__(self, env: Any) -> None:
        self.root = env.get(ENV_ROOT, ROOT)
        self.run = env.get(ENV_RUN, "")
        index = _number(env, "JOB_COMPLETION_INDEX", 0, int, WHOLE)
        self.element: int = _number(env, ENV_ELEMENT, index, int, WHOLE)
        self.attempt: int = _number(env, ENV_ATTEMPT, 0, int, WHOLE)
        self.timeout: float | None = _number(env, ENV_TIMEOUT, None, float, SECONDS)
        self.grace: float = _number(env, ENV_GRACE, GRACE, float, SECONDS)
        self.results = env.get(ENV_RESULTS, os.path.join(self.root, "results"))
        self.key_file = env.get(ENV_KEY, os.path.join(self.root, "run", "key"))
        self.deliver_file = env.get(ENV_DELIVER, os.path.join(self.root, "run", "deliver"))
        self.cancelled = os.path.join(os.path.dirname(self.key_file), f"cancelled-{self.element}")
        self.mark = os.path.join(self.results, f"{self.element}.{self.attempt}.mark")
        self.recorded = bool(self.run or ENV_RESULTS in env or os.path.exists(self.key_file))

    def path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)


def _number(env: Any, name: str, default: Any, kind: Any, what: str) -> Any:
    text = env.get(name)
    if not text:
        return default
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise ContractError(f"{name} is {text!r}: not {what}")
    return value


# --- the parent ---------------------------------------------------------------------------


def main() -> int:
    """The child's exit code; the parent leaves from within."""
    started = time.time()
    wake_up = _catch_signals()
    try:
        call = Call(os.environ)
        key = _read_key(call) if call.recorded else b""
    except ContractError as problem:
        print(f"clustrix worker: {problem}", file=sys.stderr)
        return EXIT_WORKER
    if call.recorded and os.path.exists(call.cancelled):
        return _report_cancelled(call)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        del key
        os.close(reader)
        return run_child(call, writer)
    os.close(writer)
    child = Child(pid, reader, wake_up, call)
    code = _conclude(call, key, child, child.wait_for_report(), started)
    child.wait_for_end()
    if call.recorded and os.path.exists(call.deliver_file):
        code = _deliver(call, key, child, code)
    # Nothing here needs the interpreter's own finalization, which takes time.
    sys.stderr.flush()
    os._exit(code)


def _report_cancelled(call: Call) -> int:
    """The container was made before the element was cancelled: nothing is to be run."""
    print(f"clustrix worker: element {call.element} was cancelled", file=sys.stderr)
    with contextlib.suppress(OSError, ValueError, KeyError):
        with open(call.deliver_file, encoding="utf-8") as file:
            message = json.load(file)["message"]
        with open(message, "w", encoding="utf-8") as file:
            file.write(CANCELLED_MESSAGE)
    return 0


def _catch_signals() -> int:
    """Turn signals into bytes of a pipe; the reading end."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        # Only a signal with a handler arrives through the pipe.
        signal.signal(number, lambda _number, _frame: None)
    return reader


def _read_key(call: Call) -> bytes:
    try:
        with open(call.key_file, "rb") as file:
            key = file.read()
    except OSError as error:
        raise ContractError(f"the run's key cannot be read: {error}") from None
    if not key:
        raise ContractError(f"the run's key {call.key_file} is empty")
    return key


class Child:
    """The parent's view of its child: what it reported, and how it ended."""

    def __init__(self, pid: int, pipe: int, wake_up: int, call: Call) -> None:
        self.pid = pid
        self.pipe = pipe
        self.wake_up = wake_up
        self.grace = call.grace
        self.deadline = None if call.timeout is None else time.monotonic() + call.timeout
        self.kill_at: float | None = None
        self.status: int | None = None
        self.timed_out = False
        self.stop_signal = 0
        self.received = bytearray()
        os.set_blocking(pipe, False)

    def wait_for_report(self) -> dict[str, Any] | None:
        """Wait for the child's report; ``None`` if it ended, or was ended, without one."""
        while True:
            self._reap()
            report = self._report()
            if report is not None and not self.timed_out:
                return report
            if self.status is not None:
                return None
            self._enforce()
            self._sleep([self.pipe, self.wake_up])

    def wait_for_end(self) -> None:
        """Let the child finish its threads and exit handlers for a while, then kill the tree."""
        self.deadline, self.kill_at = None, time.monotonic() + LINGER
        while self.status is None:
            self._reap()
            if self.status is None:
                self._enforce()
                self._sleep([self.wake_up])
        kill_tree(self.pid)

    def stop_requested(self, seconds: float) -> bool:
        """Whether SIGTERM or SIGINT has arrived; waits for one for at most ``seconds``."""
        select.select([self.wake_up], [], [], seconds)
        numbers = b""
        with contextlib.suppress(BlockingIOError):
            numbers = os.read(self.wake_up, 4096)
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self.stop_signal = signal.SIGTERM
        return bool(self.stop_signal)

    def _enforce(self) -> None:
        now = time.monotonic()
        if self.deadline is not None and now >= self.deadline:
            self.timed_out, self.deadline, self.kill_at = True, None, now + self.grace
            _kill(self.pid, signal.SIGTERM)
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = now + 1.0
            kill_tree(self.pid)

    def _sleep(self, files: list[int]) -> None:
        times = [at for at in (self.deadline, self.kill_at) if at is not None]
        wait = max(0.0, min(times) - time.monotonic()) if times else None
        ready, _, _ = select.select(files, [], [], None if wait is None else min(wait, 3600.0))
        if self.wake_up in ready:
            for number in os.read(self.wake_up, 4096):
                if number in (signal.SIGTERM, signal.SIGINT):
                    self.stop_signal = number
                    _kill(self.pid, number)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.pid:
                    self.status = ended[1]

    def _report(self) -> dict[str, Any] | None:
        """The report, once it is complete. A process that the user's code left behind may hold
        the pipe open, so end of file means nothing."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.pipe, 1 << 16):
                self.received += data
        end = PIPE_HEADER + int.from_bytes(self.received[:PIPE_HEADER], "little")
        if len(self.received) < end or end == PIPE_HEADER:
            return None
        return json.loads(self.received[PIPE_HEADER:end])  # type: ignore[no-any-return]


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_tree(child: int) -> None:
    """SIGKILL all of a pid namespace, or the child, its descendants and its session."""
    if os.getpid() == 1:
        _kill(-1, signal.SIGKILL)
        return
    parents: dict[int, tuple[int, int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                parents[int(name)] = (int(fields[1]), int(fields[3]))
    found = {child}
    while more := {
        pid
        for pid, (parent, session) in parents.items()
        if pid not in found and (parent in found or session == child)
    }:
        found |= more
    for pid in found:
        _kill(pid, signal.SIGKILL)


def _conclude(
    call: Call, key: bytes, child: Child, report: dict[str, Any] | None, started: float
) -> int:
    """Write the mark for how it ended; the exit code."""
    if report is None:
        if child.stop_signal and not child.timed_out:
            return 128 + child.stop_signal
        report = _death_report(child.status or 0)
        if child.timed_out:
            message = f"ended at its time limit of {call.timeout:g} s"
            report = {"outcome": "timeout", "message": message, "exit_code": EXIT_TIMEOUT}
        report["max_rss"] = _max_rss()
    code = _exit_code(report)
    if not call.recorded:
        if report["outcome"] in ("timeout", "died"):
            print(f"clustrix worker: {report['message']}", file=sys.stderr)
        return code
    try:
        write_mark(call, key, report, started)
    except OSError as error:
        print(f"clustrix worker: the mark cannot be written: {error}", file=sys.stderr)
        return EXIT_WORKER
    return code


def _deliver(call: Call, key: bytes, child: Child, code: int) -> int:
    """Send the outcome to where the client looks for it; the exit code."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import deliver  # type: ignore[import-not-found]

    if not os.path.exists(call.mark):
        return code
    try:
        with open(call.deliver_file, encoding="utf-8") as file:
            config = json.load(file)
        place = (call.results, call.element, call.attempt)
        deliver.deliver(config, *place, child.stop_requested, lambda mark: _mac(key, mark))
    except (OSError, ValueError, KeyError, deliver.Undelivered) as error:
        print(f"clustrix worker: the outcome was not delivered: {error}", file=sys.stderr)
        return code or EXIT_WORKER
    return code


def _death_report(status: int) -> dict[str, Any]:
    if not os.WIFSIGNALED(status):
        code = os.WEXITSTATUS(status)
        message = f"the process exited with code {code} before the function returned"
        return {"outcome": "died", "exit_code": code, "message": message}
    number = os.WTERMSIG(status)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    cause = ", by the kernel: out of memory" if number == signal.SIGKILL and _oom_kills() else ""
    message = f"the process was ended by {name}{cause}"
    return {"outcome": "died", "signal": number, "message": message}


def _oom_kills() -> int:
    """The out-of-memory kills that the container's own cgroup counts, where that is visible."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return 0


def _max_rss() -> int:
    """Bytes: the largest resident size of this process or of one it has waited for."""
    return 1024 * max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def _exit_code(report: dict[str, Any]) -> int:
    if report["outcome"] == "ok":
        return 0
    if report.get("signal"):
        return 128 + int(report["signal"])
    return report.get("exit_code") or EXIT_ERROR


def write_mark(call: Call, key: bytes, report: dict[str, Any], started: float) -> None:
    """Put the mark in place unless a valid one exists: the first one wins."""
    mark = {"version": 1, "run": call.run, "element": call.element, "attempt": call.attempt}
    mark |= {"size": 0, "sha256": "", "message": "", "traceback": "", "type": ""}
    mark |= {"exit_code": None, "signal": None, "started": started, "ended": time.time()}
    mark |= report
    mark["mac"] = _mac(key, mark)
    with _temporary_file(call) as file:
        file.write(json.dumps(mark).encode())
        _sync(file)
        try:
            os.link(file.name, call.mark)
        except OSError:
            # One is there, or the file system has no hard links.
            if not _is_valid(call.mark, key, call):
                os.replace(file.name, call.mark)
    with contextlib.suppress(OSError):
        handle = os.open(call.results, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _mac(key: bytes, mark: dict[str, Any]) -> str:
    def hashed(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    parts = [mark["run"], mark["element"], mark["attempt"], mark["outcome"], mark["size"]]
    parts += [mark["sha256"], hashed(mark["traceback"]), hashed(mark["message"])]
    return hmac.new(key, "\n".join(map(str, parts)).encode(), hashlib.sha256).hexdigest()


def _is_valid(path: str, key: bytes, call: Call) -> bool:
    try:
        with open(path, "rb") as file:
            mark = json.load(file)
        mine = (mark["run"], mark["element"], mark["attempt"])
        return mine == (call.run, call.element, call.attempt) and hmac.compare_digest(
            str(mark["mac"]), _mac(key, mark)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextlib.contextmanager
def _temporary_file(call: Call) -> Iterator[Any]:
    """A new file among the results; removed in the end unless it was renamed."""
    unique = f"{os.getpid()}.{os.urandom(6).hex()}"
    path = os.path.join(call.results, f".{call.element}.{call.attempt}.{unique}.tmp")
    try:
        with open(path, "xb") as file:
            yield file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _sync(file: Any) -> None:
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        # Some file systems have no fsync; a full disk must be reported.
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


# --- the child ----------------------------------------------------------------------------


def run_child(call: Call, pipe: int) -> int:
    """Run the function and report how it ended; the child's exit code."""
    own_pid = os.getpid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    try:
        _set_environment(call)
        value = invoke(call)
        report: dict[str, Any] = {"outcome": "ok"}
        if call.recorded:
            report = _save_value(call, value)
        else:
            print(repr(value))
    except ContractError as problem:
        report = _worker_error(str(problem))
    except BaseException as error:
        report = _save_error(call, error)
    if os.getpid() != own_pid:
        # The user's code forked, and the copy returned here, too.
        os._exit(0)
    report["max_rss"] = _max_rss()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    data = json.dumps(report).encode()
    with open(pipe, "wb", closefd=False) as file:
        file.write(len(data).to_bytes(PIPE_HEADER, "little") + data)
    return _exit_code(report)


def _set_environment(call: Call) -> None:
    env = os.environ
    env[INSIDE] = "1"
    env.setdefault("PYTHONUNBUFFERED", "1")
    env.pop(ENV_KEY, None)
    if ENV_HOME in env:
        env["HOME"] = env.pop(ENV_HOME)
    if env.get(ENV_CPUS):
        try:
            threads = str(max(1, int(float(env[ENV_CPUS]))))
        except ValueError:
            raise ContractError(f"{ENV_CPUS} is {env[ENV_CPUS]!r}: not a number") from None
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            env.setdefault(name, threads)
    sys.stdout = _unbuffered(1)
    sys.stderr = _unbuffered(2)
    set_path(call)


def _unbuffered(number: int) -> Any:
    import io

    # As with python -u: what was printed is not lost if the process dies in C.
    try:
        raw = io.FileIO(number, "wb", closefd=False)
    except OSError:
        return sys.stdout if number == 1 else sys.stderr
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


def set_path(call: Call) -> None:
    """The user's code first, our library last, this file's own directory nowhere."""
    own = os.path.dirname(os.path.abspath(__file__))
    rest = [entry for entry in sys.path if entry and os.path.abspath(entry) != own]
    code, lib = call.path("code"), call.path("lib")
    sys.path[:] = [code, *(entry for entry in rest if entry not in (code, lib)), lib]
    sys.meta_path.append(MainFinder(call))


class MainFinder:
    """Finds a script's module under the name :data:`MAIN`, also in processes started by spawn."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Any:
        if name != MAIN:
            return None
        from importlib.util import spec_from_file_location

        script = read_entry(self.call).get("script")
        return spec_from_file_location(MAIN, self.call.path("code", script)) if script else None


def read_entry(call: Call) -> dict[str, Any]:
    path = call.path("code", *ENTRY.split("/"))
    try:
        with open(path, encoding="utf-8") as file:
            entry: dict[str, Any] = json.load(file)
    except (OSError, ValueError) as error:
        raise ContractError(f"the image's entry cannot be read: {path}: {error}") from None
    if (version := entry.get("version")) != 1:
        raise ContractError(f"{path} has version {version!r}; this worker reads 1")
    return entry


def invoke(call: Call) -> Any:
    """The function's value; a coroutine's result; the list of a generator's items."""
    from types import AsyncGeneratorType, CoroutineType, GeneratorType

    function = find_function(call)
    args, kwargs = read_arguments(call)
    result = function(*args, **kwargs)
    if isinstance(result, GeneratorType):
        return list(result)
    if isinstance(result, (CoroutineType, AsyncGeneratorType)):
        import asyncio

        return asyncio.run(_items(result) if isinstance(result, AsyncGeneratorType) else result)
    return result


async def _items(generator: Any) -> list[Any]:
    return [item async for item in generator]


def find_function(call: Call) -> Callable[..., Any]:
    import importlib

    entry = read_entry(call)
    kind = entry.get("kind")
    target: Any
    if entry.get("script"):
        target = importlib.import_module(MAIN)
    elif kind == "module":
        target = importlib.import_module(entry["module"])
    if kind == "value":
        with open(call.path("code", *FUNCTION.split("/")), "rb") as file:
            target = pickle.load(file)
    elif kind in ("module", "script"):
        target = _walk(target, entry["qualname"])
    else:
        raise ContractError(f"unknown kind {kind!r} in the image's entry")
    inner = getattr(target, "__clustrix_function__", None)
    if callable(inner):
        return inner  # type: ignore[no-any-return]
    if not callable(target):
        kind = _type_name(type(target))
        raise ContractError(f"{entry['name']} is a {kind}: it cannot be called")
    return target  # type: ignore[no-any-return]


def _walk(target: Any, qualname: str) -> Any:
    for name in qualname.split("."):
        try:
            target = getattr(target, name)
        except AttributeError:
            where = getattr(target, "__name__", type(target).__name__)
            raise ContractError(f"{where!r} in the image's code has no {name!r}") from None
    return target


def read_arguments(call: Call) -> tuple[Any, Any]:
    """This element's arguments: only its own slice of the call layer is read."""
    index = call.path("call", "index")
    try:
        with open(index, "rb") as file:
            file.seek(16 * call.element)
            record = file.read(16)
            count = os.fstat(file.fileno()).st_size // 16
    except FileNotFoundError:
        return (), {}
    if len(record) < 16:
        raise ContractError(f"the call has {count} elements, and no element {call.element}")
    offset, size = int.from_bytes(record[:8], "little"), int.from_bytes(record[8:], "little")
    with open(call.path("call", "data"), "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise ContractError(f"the call's data is truncated within element {call.element}")
    args, kwargs = pickle.loads(data)
    return args, kwargs


# --- values -------------------------------------------------------------------------------


def _save_value(call: Call, value: Any) -> dict[str, Any]:
    try:
        chunks, buffers = dump(value)
    except MemoryError:
        raise
    except Exception as error:
        path, inside = find_unpicklable(value)
        what = "" if inside is value else f"{path} is a {_type_name(type(inside))}; "
        name = _type_name(type(value))
        message = _clip(f"the result ({name}) cannot be pickled: {what}{_safe_str(error)}")
        return {"outcome": "unpicklable", "message": message, "type": name}
    return _write_outcome(call, "ok", chunks, buffers)


def _write_outcome(
    call: Call, outcome: str, chunks: list[Any], buffers: list[Any]
) -> dict[str, Any]:
    try:
        size, sha256 = write_result(call, chunks, buffers)
    except OSError as error:
        return _worker_error(f"the result cannot be written to {call.results}: {error}")
    return {"outcome": outcome, "size": size, "sha256": sha256}


def _worker_error(message: str) -> dict[str, Any]:
    print(f"clustrix worker: {message}", file=sys.stderr)
    return {"outcome": "died", "exit_code": EXIT_WORKER, "message": _clip(message)}


def dump(value: Any, errors: bool = False) -> tuple[list[Any], list[Any]]:
    """A value's pickle in pieces, and its large buffers by reference.

    Plain pickle first; where that cannot, cloudpickle, if the image has it.
    """
    try:
        return _dump(value, _chaining(pickle.Pickler) if errors else pickle.Pickler)
    except MemoryError:
        raise
    except Exception:
        try:
            import cloudpickle
        except ImportError:
            pass
        else:
            return _dump(value, _chaining(cloudpickle.Pickler) if errors else cloudpickle.Pickler)
        raise


def _dump(value: Any, pickler: Any) -> tuple[list[Any], list[Any]]:
    chunks: list[Any] = []
    buffers: list[Any] = []

    def in_band(buffer: Any) -> bool:
        with contextlib.suppress(BufferError):
            view = buffer.raw()
            if view.nbytes >= IN_BAND_LIMIT:
                buffers.append(view)
                return False
        return True

    class Sink:
        # The pickler passes large bytes objects without a copy.
        write = chunks.append

    pickler(Sink, 5, buffer_callback=in_band).dump(value)
    return chunks, buffers


def _chaining(pickler: Any) -> Any:
    """A pickler that preserves ``__cause__``, ``__context__`` and the notes of exceptions."""

    class Chaining(pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, BaseException):
                reduced = _reduce_error(obj)
                if reduced is not None:
                    return reduced
            parent = getattr(super(), "reducer_override", None)
            return NotImplemented if parent is None else parent(obj)

    return Chaining


def _reduce_error(error: BaseException) -> Any:
    """What pickles an exception together with those that it was raised from.

    ``BaseException.__setstate__`` sets every item of its dict as an attribute, so the chain
    can travel in the state and plain pickle can load it.
    """
    reduced = error.__reduce_ex__(5)
    if not isinstance(reduced, tuple) or not 2 <= len(reduced) <= 3:
        return None
    if type(error).__setstate__ is not BaseException.__setstate__:
        return None
    state = dict(reduced[2] or {}) if len(reduced) == 3 else {}
    for name in ("__cause__", "__context__"):
        origin = getattr(error, name)
        if origin is not None and _can_be_unpickled(origin):
            state[name] = origin
    state["__suppress_context__"] = error.__suppress_context__
    return reduced[0], reduced[1], state


def _can_be_unpickled(error: BaseException) -> bool:
    """Whether this exception, without its causes, can be pickled and loaded again."""
    try:
        chunks, buffers = dump(error)
        return type(pickle.loads(b"".join(chunks), buffers=buffers)) is type(error)
    except Exception:
        return False


def find_unpicklable(value: Any, path: str = "result", depth: int = 8) -> tuple[str, Any]:
    """The innermost part of a value that cannot be pickled, and the expression that reaches it."""
    for label, part in _parts(value) if depth else ():
        try:
            dump(part)
        except MemoryError:
            raise
        except Exception:
            return find_unpicklable(part, path + label, depth - 1)
    return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    from itertools import islice

    if isinstance(value, (dict, list, tuple)):
        for key, item in islice(
            value.items() if isinstance(value, dict) else enumerate(value), 1000
        ):
            yield f"[{key!r:.60}]", item
    elif isinstance(value, (set, frozenset)):
        for item in islice(value, 1000):
            yield f"{{{item!r:.60}}}", item
    else:
        names = getattr(getattr(value, "__code__", None), "co_freevars", ())
        for name, cell in zip(names, getattr(value, "__closure__", None) or (), strict=False):
            yield f".<closure>.{name}", cell.cell_contents
        inside = getattr(value, "__dict__", None)
        if isinstance(inside, dict) and not isinstance(value, type):
            for name, item in islice(inside.items(), 1000):
                yield f".{name}", item


def write_result(call: Call, chunks: list[Any], buffers: list[Any]) -> tuple[int, str]:
    """Stream a pickle and its buffers to the result file; its size and sha256.

    The file's name carries its hash: two executions of one attempt never overwrite each other.
    """
    sizes = [sum(memoryview(chunk).nbytes for chunk in chunks), *(view.nbytes for view in buffers)]
    header = RESULT_MAGIC + len(buffers).to_bytes(4, "little")
    header += b"".join(size.to_bytes(8, "little") for size in sizes)
    digest = hashlib.sha256()
    size = 0
    with _temporary_file(call) as file:
        for part in ([header], chunks, *([view] for view in buffers)):
            length = sum(_copy(piece, file, digest) for piece in part)
            size += length + _copy(bytes(-length % RESULT_ALIGN), file, digest)
        _sync(file)
        sha256 = digest.hexdigest()
        name = f"{call.element}.{call.attempt}.{sha256[:16]}.result"
        os.replace(file.name, os.path.join(call.results, name))
    return size, sha256


def _copy(piece: Any, file: Any, digest: Any) -> int:
    view = memoryview(piece).cast("B") if piece else memoryview(b"")
    for start in range(0, view.nbytes, COPY_STEP):
        step = view[start : start + COPY_STEP]
        digest.update(step)
        file.write(step)
    return view.nbytes


# --- exceptions ---------------------------------------------------------------------------


def _save_error(call: Call, error: BaseException) -> dict[str, Any]:
    error.__traceback__ = _user_frames(error.__traceback__)
    text = _format(error)
    report: dict[str, Any] = {}
    if not call.recorded:
        print(text, end="", file=sys.stderr)
    elif _can_be_unpickled(error):
        with contextlib.suppress(Exception):
            report = _write_outcome(call, "error", *dump(error, errors=True))
    if report.get("outcome") == "died":
        return report
    message = _safe_str(error)
    name = getattr(error, "name", None)
    if isinstance(error, ModuleNotFoundError) and name and name not in message:
        message = f"No module named {name!r}: {message}"
    report.update(outcome="error", message=message, type=_type_name(type(error)), traceback=text)
    return report


def _user_frames(trace: Any) -> Any:
    """The traceback without the frames of this worker, asyncio and importlib."""
    callers = [sys.modules[name] for name in ("asyncio", "importlib") if name in sys.modules]
    inside = [os.path.join(os.path.dirname(str(module.__file__)), "") for module in callers]
    skipped = (os.path.abspath(__file__), "<frozen importlib", *inside)
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(skipped):
        trace = trace.tb_next
    return trace


def _format(error: BaseException) -> str:
    import traceback

    try:
        lines = traceback.format_exception(type(error), error, error.__traceback__)
    except Exception as second:
        lines = [f"{_type_name(type(error))}: {_safe_str(second)}\n"]
    return _clip("".join(lines))


def _safe_str(error: BaseException) -> str:
    try:
        return _clip(str(error))
    except Exception:
        return "<its str() failed>"


def _clip(text: str) -> str:
    """Text that UTF-8 can encode, cut in its middle if it is very long."""
    if len(text) > TEXT_LIMIT:
        half = TEXT_LIMIT // 2
        text = f"{text[:half]}\n[… {len(text) - 2 * half} characters …]\n{text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _type_name(cls: type) -> str:
    module, name = getattr(cls, "__module__", ""), getattr(cls, "__qualname__", cls.__name__)
    return str(name) if module in ("builtins", None, "") else f"{module}.{name}"


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__":
    # A process that multiprocessing started inside the container: it must find the script too.
    set_path(Call(os.environ))
