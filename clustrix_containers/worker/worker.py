"""Runs one call inside the container: one file, the standard library only, Python 3.8 to 3.14.

The formats and paths are those of ``contract.py``, repeated here because nothing of ours
may be imported; a test compares the two.

Two processes. The *parent* is the container's main process (often pid 1). It forks before
anything of the user's is imported, so it stays small and outlives what kills the child: it
reaps orphans, forwards SIGTERM and SIGINT, enforces the time limit and writes the mark. The
*child* finds the function, runs it and writes the result; it tells the parent how that ended
through a pipe. A child that ends without having told (segmentation fault, ``os._exit``, the
kernel's out-of-memory killer) is reported as ``died``.

When the parent itself was told to end (SIGTERM, SIGINT) and the child leaves no outcome,
no mark is written: whoever ended it knows why, and may run the element again.

Exit codes: 0 the function returned; 1 it raised, or its result cannot be pickled;
124 time limit; 125 this worker or its image is at fault; 128+n ended by signal n; a child
that left with ``os._exit(n)`` gives n (1 for 0).
"""

from __future__ import annotations

import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

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

GIVEN_UP = "CXM4"

GRACE = 5.0
LINGER = 10.0
TEXT_LIMIT = 1 << 18
IN_BAND_LIMIT = 1 << 12
COPY_STEP = 1 << 20
PIPE_HEADER = 8

EXIT_ERROR, EXIT_TIMEOUT, EXIT_WORKER = 1, 124, 125


class Problem(Exception):
    """The image, the call or the results directory is not as the contract says."""


class Unpicklable(Exception):
    """The function's result cannot be pickled; the message says what in it and why."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


class Call:
    """What the environment says about this call."""

    def __init__(self, env: Any) -> None:
        self.root = env.get(ENV_ROOT, ROOT)
        self.run = env.get(ENV_RUN, "")
        self.element = _integer(env, ENV_ELEMENT, env.get("JOB_COMPLETION_INDEX", "0"))
        self.attempt = _integer(env, ENV_ATTEMPT, "0")
        self.timeout = _seconds(env, ENV_TIMEOUT)
        grace = _seconds(env, ENV_GRACE)
        self.grace = GRACE if grace is None else grace
        self.results = env.get(ENV_RESULTS, os.path.join(self.root, "results"))
        self.key_file = env.get(ENV_KEY, os.path.join(self.root, "run", "key"))
        self.deliver_file = env.get(ENV_DELIVER, os.path.join(self.root, "run", "deliver"))
        self.cancelled = os.path.join(os.path.dirname(self.key_file), "cancelled-%d" % self.element)
        self.recorded = bool(self.run or ENV_RESULTS in env or os.path.exists(self.key_file))

    def path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)


def _integer(env: Any, name: str, default: str) -> int:
    text = env.get(name) or default
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise Problem("%s is %r: not a whole number of at least 0" % (name, text))
    return value


def _seconds(env: Any, name: str) -> Optional[float]:
    text = env.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise Problem("%s is %r: not a number of seconds" % (name, text))
    return value


# --- the parent ---------------------------------------------------------------------------


def main() -> int:
    """The child's exit code; the parent leaves from within."""
    started = time.time()
    wake = _catch_signals()
    try:
        call = Call(os.environ)
        key = _read_key(call) if call.recorded else b""
    except Problem as problem:
        print("clustrix worker: %s" % problem, file=sys.stderr)
        return EXIT_WORKER
    if call.recorded and os.path.exists(call.cancelled):
        return _give_up(call)
    # Both sides need it: imported once.
    import json  # noqa: F401

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        del key
        os.close(reader)
        return work(call, writer)
    os.close(writer)
    # What the end needs, while the child is busy.
    import hashlib  # noqa: F401
    import hmac  # noqa: F401
    import resource  # noqa: F401

    watch = Watch(child, reader, wake, call)
    report = watch.until_report()
    code = _conclude(call, key, watch, report, started)
    watch.until_end()
    if call.recorded and os.path.exists(call.deliver_file):
        code = _deliver(call, key, watch, code)
    # Nothing here needs the interpreter's own long way out.
    sys.stderr.flush()
    os._exit(code)


def _give_up(call: Call) -> int:
    """What has made this element's container does not know that nobody wants it any more."""
    import json

    print("clustrix worker: element %d was cancelled" % call.element, file=sys.stderr)
    try:
        with open(call.deliver_file, encoding="utf-8") as file:
            message = json.load(file)["message"]
        with open(message, "w", encoding="utf-8") as file:
            file.write(GIVEN_UP)
    except (OSError, ValueError, KeyError):
        pass
    return 0


def _catch_signals() -> int:
    """Turn signals into bytes of a pipe; the reading end."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ignore)
    return reader


def _ignore(number: int, frame: Any) -> None:
    """A handler that does nothing: its number arrives through the wake-up pipe."""


def _read_key(call: Call) -> bytes:
    try:
        with open(call.key_file, "rb") as file:
            key = file.read(1 << 16)
    except OSError as error:
        raise Problem("the run's key cannot be read: %s" % error) from None
    if not key:
        raise Problem("the run's key %s is empty" % call.key_file)
    return key


class Watch:
    """The parent's view of its child: what it reported, and how it ended."""

    def __init__(self, child: int, pipe: int, wake: int, call: Call) -> None:
        self.child = child
        self.pipe = pipe
        self.wake = wake
        self.grace = call.grace
        self.deadline = None if call.timeout is None else time.monotonic() + call.timeout
        self.kill_at: Optional[float] = None
        self.status: Optional[int] = None
        self.timed_out = False
        self.told_to_end = 0
        self.received = bytearray()
        os.set_blocking(pipe, False)

    def until_report(self) -> Optional[Dict[str, Any]]:
        """Wait for the child's report; ``None`` if it ended, or was ended, without one."""
        while True:
            self._reap()
            self._drain()
            report = self._report()
            if report is not None and not self.timed_out:
                return report
            if self.status is not None:
                return None
            self._enforce()
            self._sleep([self.pipe, self.wake])

    def until_end(self) -> None:
        """Let the child finish its threads and exit handlers for a while, then end the tree."""
        self.deadline, self.kill_at = None, time.monotonic() + LINGER
        while self.status is None:
            self._reap()
            if self.status is None:
                self._enforce()
                self._sleep([self.wake])
        end_tree(self.child)

    def told(self, seconds: float) -> bool:
        """Wait for a signal to end, so many seconds at most; whether one has come."""
        import select

        select.select([self.wake], [], [], seconds)
        try:
            numbers = os.read(self.wake, 4096)
        except BlockingIOError:
            numbers = b""
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self.told_to_end = signal.SIGTERM
        return bool(self.told_to_end)

    def _enforce(self) -> None:
        now = time.monotonic()
        if self.deadline is not None and now >= self.deadline:
            self.timed_out, self.deadline, self.kill_at = True, None, now + self.grace
            _kill(self.child, signal.SIGTERM)
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = now + 1.0
            end_tree(self.child)

    def _sleep(self, files: List[int]) -> None:
        import select

        times = [at for at in (self.deadline, self.kill_at) if at is not None]
        wait = max(0.0, min(times) - time.monotonic()) if times else None
        ready, _, _ = select.select(files, [], [], None if wait is None else min(wait, 3600.0))
        if self.wake in ready:
            for number in os.read(self.wake, 4096):
                if number in (signal.SIGTERM, signal.SIGINT):
                    self.told_to_end = number
                    _kill(self.child, number)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.child:
                self.status = status

    def _drain(self) -> None:
        try:
            while True:
                data = os.read(self.pipe, 1 << 16)
                if not data:
                    return
                self.received += data
        except BlockingIOError:
            pass

    def _report(self) -> Optional[Dict[str, Any]]:
        """The report, once it is complete. A process that the user's code left behind may hold
        the pipe open, so its end says nothing."""
        if len(self.received) < PIPE_HEADER:
            return None
        size = int.from_bytes(self.received[:PIPE_HEADER], "little")
        if len(self.received) < PIPE_HEADER + size:
            return None
        import json

        report: Dict[str, Any] = json.loads(bytes(self.received[PIPE_HEADER : PIPE_HEADER + size]))
        return report


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def end_tree(child: int) -> None:
    """SIGKILL everything that the child started: all of a pid namespace, or its descendants."""
    if os.getpid() == 1:
        _kill(-1, signal.SIGKILL)
        return
    for pid in [child, *_descendants(child)]:
        _kill(pid, signal.SIGKILL)


def _descendants(root: int) -> List[int]:
    """Processes below ``root`` or in its session, from ``/proc``."""
    parents: Dict[int, Tuple[int, int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/stat" % name, "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        parents[int(name)] = (int(fields[1]), int(fields[3]))
    found = {root}
    while True:
        more = {
            pid
            for pid, (parent, session) in parents.items()
            if pid not in found and (parent in found or session == root)
        }
        if not more:
            return [pid for pid in found if pid != root]
        found |= more


def _conclude(
    call: Call, key: bytes, watch: Watch, report: Optional[Dict[str, Any]], started: float
) -> int:
    """Write the mark for how it ended; the exit code."""
    if report is None and watch.told_to_end and not watch.timed_out:
        return 128 + watch.told_to_end
    if report is None:
        report = _timeout(call) if watch.timed_out else _death(watch.status or 0)
    code = _exit_code(report)
    if not call.recorded:
        if report["outcome"] in ("timeout", "died"):
            print("clustrix worker: %s" % report["message"], file=sys.stderr)
        return code
    try:
        write_mark(call, key, report, started)
    except OSError as error:
        print("clustrix worker: the mark cannot be written: %s" % error, file=sys.stderr)
        return EXIT_WORKER
    return code


def _deliver(call: Call, key: bytes, watch: Watch, code: int) -> int:
    """Send the outcome to where the client looks for it; the exit code."""
    import json

    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import deliver  # type: ignore[import-not-found]

    if not os.path.exists(os.path.join(call.results, "%d.%d.mark" % (call.element, call.attempt))):
        return code
    try:
        with open(call.deliver_file, encoding="utf-8") as file:
            config = json.load(file)
        place = (call.results, call.element, call.attempt)
        deliver.deliver(config, *place, watch.told, lambda mark: _mac(key, mark))
    except (OSError, ValueError, KeyError, deliver.Undelivered) as error:
        print("clustrix worker: the outcome is not delivered: %s" % error, file=sys.stderr)
        return code or EXIT_WORKER
    return code


def _timeout(call: Call) -> Dict[str, Any]:
    return {
        "outcome": "timeout",
        "message": "ended at its time limit of %g s" % (call.timeout or 0.0),
        "exit_code": EXIT_TIMEOUT,
        "max_rss": _max_rss(),
    }


def _death(status: int) -> Dict[str, Any]:
    report: Dict[str, Any] = {"outcome": "died", "max_rss": _max_rss()}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        report["signal"] = number
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "signal %d" % number
        report["message"] = "the process was ended by %s" % name
        if number == signal.SIGKILL and _oom_kills():
            report["message"] += ", by the kernel: out of memory"
    else:
        report["exit_code"] = os.WEXITSTATUS(status)
        report["message"] = (
            "the process left with exit code %d before the function returned"
            % os.WEXITSTATUS(status)
        )
    return report


def _oom_kills() -> int:
    """How many out-of-memory kills the container's own cgroup counts, where it can see that."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            with open(path) as file:
                for line in file:
                    name, _, value = line.partition(" ")
                    if name == "oom_kill":
                        return int(value)
        except (OSError, ValueError):
            continue
    return 0


def _max_rss() -> int:
    """Bytes: the largest resident size of this process or of one it has waited for."""
    import resource

    return 1024 * max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def _exit_code(report: Dict[str, Any]) -> int:
    outcome = report["outcome"]
    if outcome == "ok":
        return 0
    if outcome in ("error", "unpicklable"):
        return EXIT_ERROR
    if report.get("signal"):
        return 128 + int(report["signal"])
    return int(report.get("exit_code") or EXIT_ERROR)


def write_mark(call: Call, key: bytes, report: Dict[str, Any], started: float) -> None:
    """Put the mark in place unless a valid one is there: the first one wins."""
    import json

    mark: Dict[str, Any] = {
        "version": 1,
        "run": call.run,
        "element": call.element,
        "attempt": call.attempt,
        "size": 0,
        "sha256": "",
        "message": "",
        "traceback": "",
        "type": "",
        "exit_code": None,
        "signal": None,
        "started": started,
        "ended": time.time(),
        "max_rss": 0,
    }
    mark.update(report)
    mark["mac"] = _mac(key, mark)
    path = os.path.join(call.results, "%d.%d.mark" % (call.element, call.attempt))
    temporary = _temporary(call)
    try:
        with open(temporary, "xb") as file:
            file.write(json.dumps(mark).encode())
            _sync(file)
        try:
            os.link(temporary, path)
        except FileExistsError:
            if not _valid(path, key, call):
                os.replace(temporary, path)
        except OSError:
            # A file system without hard links.
            if not _valid(path, key, call):
                os.replace(temporary, path)
    finally:
        _unlink(temporary)
    _sync_directory(call.results)


def _mac(key: bytes, mark: Dict[str, Any]) -> str:
    import hashlib
    import hmac

    def hashed(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    parts = [mark["run"], mark["element"], mark["attempt"], mark["outcome"], mark["size"]]
    parts += [mark["sha256"], hashed(mark["traceback"]), hashed(mark["message"])]
    return hmac.new(key, "\n".join(map(str, parts)).encode(), hashlib.sha256).hexdigest()


def _valid(path: str, key: bytes, call: Call) -> bool:
    import hmac
    import json

    try:
        with open(path, "rb") as file:
            mark = json.load(file)
        mine = (mark["run"], mark["element"], mark["attempt"])
        return mine == (call.run, call.element, call.attempt) and hmac.compare_digest(
            str(mark["mac"]), _mac(key, mark)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _temporary(call: Call) -> str:
    unique = "%d.%s" % (os.getpid(), os.urandom(6).hex())
    return os.path.join(call.results, ".%d.%d.%s.tmp" % (call.element, call.attempt, unique))


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _sync(file: Any) -> None:
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        import errno

        # Some file systems have no fsync; a full disk must be told.
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def _sync_directory(path: str) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


# --- the child ----------------------------------------------------------------------------


def work(call: Call, pipe: int) -> int:
    """Run the function and tell the parent how it ended; the child's exit code."""
    me = os.getpid()
    _become_child()
    try:
        _set_environment(call)
        value = invoke(call)
        report = _keep_value(call, value) if call.recorded else _show_value(value)
    except Problem as problem:
        report = _fault(str(problem))
    except Unpicklable as error:
        report = {"outcome": "unpicklable", "message": _text(str(error)), "type": error.name}
    except BaseException as error:
        report = _keep_error(call, error)
    if os.getpid() != me:
        # The user's code forked, and the copy came back here too.
        os._exit(0)
    report["max_rss"] = _max_rss()
    _flush()
    _send(pipe, report)
    return _exit_code(report)


def _become_child() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()


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
            raise Problem("%s is %r: not a number" % (ENV_CPUS, env[ENV_CPUS])) from None
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            env.setdefault(name, threads)
    sys.stdout = _unbuffered(1)
    sys.stderr = _unbuffered(2)
    set_path(call)


def _unbuffered(number: int) -> Any:
    import io

    # As python -u does it: what was printed is out, even if the process dies in C.
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


def read_entry(call: Call) -> Dict[str, Any]:
    import json

    path = call.path("code", *ENTRY.split("/"))
    try:
        with open(path, encoding="utf-8") as file:
            entry: Dict[str, Any] = json.load(file)
    except (OSError, ValueError) as error:
        raise Problem("the image does not say what to run: %s: %s" % (path, error)) from None
    if entry.get("version") != 1:
        raise Problem("%s has version %r; this worker reads 1" % (path, entry.get("version")))
    return entry


def invoke(call: Call) -> Any:
    """The function's value; a coroutine's result; the list of a generator's items."""
    function = find(call)
    args, kwargs = read_arguments(call)
    return settle(function(*args, **kwargs))


def find(call: Call) -> Callable[..., Any]:
    import importlib

    entry = read_entry(call)
    kind = entry.get("kind")
    target: Any
    if entry.get("script"):
        target = importlib.import_module(MAIN)
    elif kind == "module":
        target = importlib.import_module(entry["module"])
    if kind == "value":
        import pickle

        path = call.path("code", *FUNCTION.split("/"))
        with open(path, "rb") as file:
            target = pickle.load(file)
    elif kind in ("module", "script"):
        target = _walk(target, entry["qualname"])
    else:
        raise Problem("the image's entry has the kind %r, which this worker does not know" % kind)
    inner = getattr(target, "__clustrix_function__", None)
    if callable(inner):
        target = inner
    if not callable(target):
        raise Problem("%s is a %s: it cannot be called" % (entry["name"], _type_name(type(target))))
    found: Callable[..., Any] = target
    return found


def _walk(target: Any, qualname: str) -> Any:
    for name in qualname.split("."):
        try:
            target = getattr(target, name)
        except AttributeError:
            where = getattr(target, "__name__", type(target).__name__)
            raise Problem("there is no %r in %r in the image's code" % (name, where)) from None
    return target


def read_arguments(call: Call) -> Tuple[Any, Any]:
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
        raise Problem("element %d of a call with %d elements" % (call.element, count))
    offset, size = int.from_bytes(record[:8], "little"), int.from_bytes(record[8:], "little")
    with open(call.path("call", "data"), "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise Problem("the call's data ends within element %d" % call.element)
    import pickle

    args, kwargs = pickle.loads(data)
    return args, kwargs


def settle(result: Any) -> Any:
    from types import AsyncGeneratorType, CoroutineType, GeneratorType

    if isinstance(result, GeneratorType):
        return list(result)
    if isinstance(result, (CoroutineType, AsyncGeneratorType)):
        import asyncio

        coroutine = _items(result) if isinstance(result, AsyncGeneratorType) else result
        return asyncio.run(coroutine)
    return result


async def _items(generator: Any) -> List[Any]:
    return [item async for item in generator]


# --- what becomes of a value ---------------------------------------------------------------


def _show_value(value: Any) -> Dict[str, Any]:
    print(repr(value))
    return {"outcome": "ok"}


def _keep_value(call: Call, value: Any) -> Dict[str, Any]:
    try:
        chunks, buffers = dump(value)
    except MemoryError:
        raise
    except Exception as error:
        path, inside = culprit(value)
        what = "" if inside is value else "%s is a %s; " % (path, _type_name(type(inside)))
        name = _type_name(type(value))
        raise Unpicklable(
            "the result (%s) cannot be pickled: %s%s" % (name, what, _text_of(error)), name
        ) from None
    return _write_outcome(call, "ok", chunks, buffers)


def _write_outcome(
    call: Call, outcome: str, chunks: List[Any], buffers: List[Any]
) -> Dict[str, Any]:
    try:
        size, sha256 = write_result(call, chunks, buffers)
    except OSError as error:
        return _fault("the result cannot be written to %s: %s" % (call.results, error))
    return {"outcome": outcome, "size": size, "sha256": sha256}


def _fault(message: str) -> Dict[str, Any]:
    print("clustrix worker: %s" % message, file=sys.stderr)
    return {"outcome": "died", "exit_code": EXIT_WORKER, "message": _text(message)}


def dump(value: Any, errors: bool = False) -> Tuple[List[Any], List[Any]]:
    """A value's pickle in pieces, and its large buffers by reference.

    Plain pickle first; where that cannot, cloudpickle, if the image has it.
    """
    import pickle

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


def _dump(value: Any, pickler: Any) -> Tuple[List[Any], List[Any]]:
    chunks: List[Any] = []
    buffers: List[Any] = []

    def out_of_band(buffer: Any) -> bool:
        try:
            view = buffer.raw()
        except BufferError:
            return True
        if view.nbytes < IN_BAND_LIMIT:
            return True
        buffers.append(view)
        return False

    class Sink:
        # The pickler hands large bytes objects over as they are: keeping them is no copy.
        @staticmethod
        def write(data: Any) -> None:
            chunks.append(data)

    pickler(Sink, 5, buffer_callback=out_of_band).dump(value)
    return chunks, buffers


def _chaining(pickler: Any) -> Any:
    """A pickler that keeps ``__cause__``, ``__context__`` and the notes of exceptions."""

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
    """What pickles an exception together with those behind it.

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
        behind = getattr(error, name)
        if behind is not None and _portable(behind):
            state[name] = behind
    state["__suppress_context__"] = error.__suppress_context__
    return reduced[0], reduced[1], state


def _portable(error: BaseException) -> bool:
    """Whether this exception, without those behind it, can be pickled and loaded again."""
    import pickle

    try:
        try:
            data = pickle.dumps(error, 5)
        except Exception:
            import cloudpickle

            data = cloudpickle.dumps(error, 5)
        return type(pickle.loads(data)) is type(error)
    except Exception:
        return False


def culprit(value: Any, path: str = "result", depth: int = 8) -> Tuple[str, Any]:
    """The innermost part of a value that cannot be pickled, and how to get at it."""
    for label, part in _parts(value) if depth else ():
        try:
            dump(part)
        except MemoryError:
            raise
        except Exception:
            return culprit(part, path + label, depth - 1)
    return path, value


def _parts(value: Any) -> Iterator[Tuple[str, Any]]:
    from itertools import islice

    if isinstance(value, dict):
        for key, item in islice(value.items(), 1000):
            yield "[%.60r]" % (key,), item
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(islice(value, 1000)):
            yield "[%d]" % number, item
    elif isinstance(value, (set, frozenset)):
        for item in islice(value, 1000):
            yield "{%.60r}" % (item,), item
    else:
        names = getattr(getattr(value, "__code__", None), "co_freevars", ())
        for name, cell in zip(names, getattr(value, "__closure__", None) or ()):
            yield ".<closure>.%s" % name, cell.cell_contents
        inside = getattr(value, "__dict__", None)
        if isinstance(inside, dict) and not isinstance(value, type):
            for name, item in islice(inside.items(), 1000):
                yield ".%s" % name, item


def write_result(call: Call, chunks: List[Any], buffers: List[Any]) -> Tuple[int, str]:
    """Stream a pickle and its buffers to the result file; its size and sha256.

    The file's name carries its hash: two executions of one attempt never overwrite each other.
    """
    import hashlib

    sizes = [sum(memoryview(chunk).nbytes for chunk in chunks), *(view.nbytes for view in buffers)]
    header = RESULT_MAGIC + len(buffers).to_bytes(4, "little")
    header += b"".join(size.to_bytes(8, "little") for size in sizes)
    digest = hashlib.sha256()
    temporary = _temporary(call)
    try:
        with open(temporary, "xb", buffering=0) as file:
            size = 0
            for part in ([header], chunks, *([view] for view in buffers)):
                length = 0
                for piece in part:
                    length += _copy(piece, file, digest)
                padding = bytes(-length % RESULT_ALIGN)
                size += length + _copy(padding, file, digest)
            _sync(file)
        sha256 = digest.hexdigest()
        name = "%d.%d.%s.result" % (call.element, call.attempt, sha256[:16])
        os.replace(temporary, os.path.join(call.results, name))
    except BaseException:
        _unlink(temporary)
        raise
    return size, sha256


def _copy(piece: Any, file: Any, digest: Any) -> int:
    view = memoryview(piece).cast("B") if piece else memoryview(b"")
    for start in range(0, view.nbytes, COPY_STEP):
        step = view[start : start + COPY_STEP]
        digest.update(step)
        while step.nbytes:
            step = step[file.write(step) :]
    return view.nbytes


# --- what becomes of an exception -----------------------------------------------------------


def _keep_error(call: Call, error: BaseException) -> Dict[str, Any]:
    error.__traceback__ = _users_part(error.__traceback__)
    text = _format(error)
    report: Dict[str, Any] = {}
    if call.recorded:
        report = _pickle_error(call, error)
    else:
        print(text, end="", file=sys.stderr)
    if report.get("outcome") == "died":
        return report
    report.update(
        outcome="error", message=_message(error), type=_type_name(type(error)), traceback=text
    )
    return report


def _pickle_error(call: Call, error: BaseException) -> Dict[str, Any]:
    """The exception's own pickle, if it can be loaded again; else nothing."""
    if not _portable(error):
        return {}
    try:
        chunks, buffers = dump(error, errors=True)
    except Exception:
        return {}
    return _write_outcome(call, "error", chunks, buffers)


def _users_part(trace: Any) -> Any:
    """The traceback without the frames of this worker and of what it calls the function by."""
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
        lines = ["%s: %s\n" % (_type_name(type(error)), _text_of(second))]
    return _text("".join(lines))


def _message(error: BaseException) -> str:
    text = _text_of(error)
    name = getattr(error, "name", None)
    if isinstance(error, ModuleNotFoundError) and name and name not in text:
        text = "No module named %r: %s" % (name, text)
    return text


def _text_of(error: BaseException) -> str:
    try:
        return _text(str(error))
    except Exception:
        return "<its text cannot be made>"


def _text(text: str) -> str:
    """Text that UTF-8 can hold, cut in its middle where it is very long."""
    if len(text) > TEXT_LIMIT:
        half = TEXT_LIMIT // 2
        text = "%s\n[… %d characters …]\n%s" % (text[:half], len(text) - 2 * half, text[-half:])
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _type_name(cls: type) -> str:
    module, name = getattr(cls, "__module__", ""), getattr(cls, "__qualname__", cls.__name__)
    return str(name) if module in ("builtins", None, "") else "%s.%s" % (module, name)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def _send(pipe: int, report: Dict[str, Any]) -> None:
    import json

    data = json.dumps(report).encode()
    view = memoryview(len(data).to_bytes(PIPE_HEADER, "little") + data)
    while view.nbytes:
        view = view[os.write(pipe, view) :]


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__":
    # A process that multiprocessing started inside the container: it must find the script too.
    set_path(Call(os.environ))
