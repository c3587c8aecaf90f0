"""The contract between the client and the image: paths, variables, formats.

``worker.py`` and ``deliver.py`` import nothing of ours, so they repeat what they need;
``tests/unit/test_contract.py`` compares them.

In the image
    ======================== =================================================
    ``/opt/python``          the packed interpreter, where the base is ours
    ``/opt/venv``            a virtual environment with the distributions
    ``/opt/clustrix/lib``    the runtime and cloudpickle, last on ``sys.path``
    ``/opt/clustrix/code``   the user's local modules, first on ``sys.path``;
                             also ``.clustrix/entry.json`` and ``.clustrix/function.pkl``
    ``/opt/clustrix/call``   the arguments: ``index`` and ``data``
    ``/opt/clustrix/results``  empty; the results directory is mounted here
    ``/opt/clustrix/run``    empty; the run's key is mounted here as ``key``
    ======================== =================================================

``entry.json``
    ``{"version": 1, "kind": "module"|"script"|"value", "module": str,
    "qualname": str, "script": str|null, "name": str}``. ``module``: import ``module``, then walk
    ``qualname``. ``script``: load the file ``script`` (relative to the code root) as module
    :data:`MAIN`, then walk ``qualname``. ``value``: unpickle ``.clustrix/function.pkl``.
    With any kind a ``script`` may be given too (arguments may be of its types): it is loaded as
    MAIN first.

``call/index`` and ``call/data``
    ``index`` is ``count`` records of two little-endian unsigned 64-bit integers:
    offset and size in ``data`` of element *i*'s pickle of ``(args, kwargs)``.

``{element}.{attempt}.{first 16 hex digits of its sha256}.result``
    The hash is in the name so that two executions of one attempt never overwrite each
    other's result; the mark's ``sha256`` says which one counts.
    ``b"CXR1"``, then a little-endian u32 ``n``, then ``n + 1`` u64 sizes, padding to a
    multiple of 64, then the pickle (protocol 5) and ``n`` out-of-band buffers, each part
    padded with zeros to a multiple of 64 bytes. Sizes are without padding. The pickle holds the value for
    outcome ``ok`` (for a generator: the list of its items), the exception for
    outcome ``error``; no file at all for the others.

``{element}.{attempt}.mark``
    JSON, written last, atomically, never over a valid one (the first valid mark wins). None
    is written when the worker itself received SIGTERM and there was no outcome::

        {"version": 1, "run": str, "element": int, "attempt": int,
         "outcome": "ok" | "error" | "unpicklable" | "timeout" | "died",
         "size": int, "sha256": hex, "mac": hex,
         "message": str, "traceback": str, "type": str,
         "exit_code": int|null, "signal": int|null,
         "started": float, "ended": float, "max_rss": int}

    ``size`` and ``sha256`` are of the result file (0 and "" without one). ``mac`` is HMAC-SHA256 by the run's key
    over the UTF-8 bytes of ``"\\n".join([run, element, attempt, outcome, size, sha256,
    sha256hex(traceback), sha256hex(message)])``.

``run/deliver``
    If it exists, outcomes also leave the container, as its JSON says::

        {"message": path, "limit": bytes, "store": null | {"kind": …, …}}

    ``message`` is the file that becomes the termination message (Kubernetes), which begins with

    * ``CXM1``: then base85 (RFC 1924, as Python's) of zlib of the mark's length (u32), mark and
      result: unpacked no more than 64 times ``limit``;
    * ``CXM2``: then JSON ``{"store": kind, "mark": name, "result": name|null}`` and, from a registry,
      ``"manifest"``: the digest of the artifact. The names are those in the store:
      ``{element}.{attempt}.{first 16 hex digits of the file's sha256}.mark`` or ``.result``;
    * ``CXM3``: then why the outcome could not be delivered;
    * ``CXM4`` alone: the element was cancelled before it began.

    ``run/cancelled-{element}`` beside it, if it exists, says that the element was cancelled: its
    worker then exits at once, with code 0 and without an outcome.

    If no store takes the outcome of a call that did *not* return, ``CXM1`` carries another mark of
    it: ``message``, ``traceback`` and ``type`` are cut in their middle (``[… n characters …]``), the
    exception's pickle is left out (``size`` 0) unless it fits, and ``mac`` is computed again.

    Stores, all with optional ``tries`` and ``timeout`` (seconds of one read or write):

    * ``hold`` (``port``, ``seconds``): the container waits, with the port open, until the client
      has taken the outcome through ``deliver.py give`` or ``deliver.py taken``, at most ``seconds``
      from the start or since the last piece was sent;
    * ``s3`` (``url``, ``fields``, ``prefix``, ``ca``): POST under a signed policy;
    * ``registry`` (``base``, ``repository``, ``token``, ``tag``, ``subject``, ``ca``): an OCI
      artifact under the tag ``{tag}-{attempt}-{element}``;
    * ``volume`` (``path``, ``claim``): files in the directory ``path``, created if need be, of the
      volume claim ``claim``.

    ``ca`` (PEM, or null) is trusted in addition to the image's own authorities.
"""

from __future__ import annotations

from functools import lru_cache

RUNTIME_VERSION = "1"
"""The version of what an image carries of ours; see ``image/runtime.py``."""

PYTHON_ROOT = "/opt/python"
VENV = "/opt/venv"
ROOT = "/opt/clustrix"
LIB = "/opt/clustrix/lib"
CODE = "/opt/clustrix/code"
CALL = "/opt/clustrix/call"
RESULTS = "/opt/clustrix/results"
RUN = "/opt/clustrix/run"
KEY = "/opt/clustrix/run/key"
DELIVER = "/opt/clustrix/run/deliver"
WORKER = "/opt/clustrix/worker.py"
DELIVER_SCRIPT = "/opt/clustrix/deliver.py"

ENTRY = ".clustrix/entry.json"
FUNCTION = ".clustrix/function.pkl"

MAIN = "__clustrix_main__"
"""The module name under which a script's functions and types travel."""

RESULT_MAGIC = b"CXR1"
RESULT_ALIGN = 64

INSIDE = "CLUSTRIX_INSIDE"
"""Set to ``1`` in every image of ours and by the worker."""

ENV_RUN = "CLUSTRIX_RUN"
ENV_ELEMENT = "CLUSTRIX_ELEMENT"
ENV_ATTEMPT = "CLUSTRIX_ATTEMPT"
ENV_TIMEOUT = "CLUSTRIX_TIMEOUT"
"""Seconds (decimal) that one element may run; the worker enforces it. Absent: no limit."""

ENV_GRACE = "CLUSTRIX_GRACE"
"""Seconds between SIGTERM and SIGKILL at the time limit; 5 if absent."""

ENV_CPUS = "CLUSTRIX_CPUS"
"""Cores of one element (decimal); sets the thread counts of OpenMP, MKL and OpenBLAS."""

ENV_ROOT = "CLUSTRIX_ROOT"
"""Instead of :data:`ROOT` (for running the worker without an image)."""

ENV_HOME = "CLUSTRIX_HOME"
"""HOME of the function, where the launcher cannot set HOME itself (Apptainer)."""

ENV_RESULTS = "CLUSTRIX_RESULTS"
"""Instead of :data:`RESULTS`."""

ENV_KEY = "CLUSTRIX_KEY_FILE"
"""The file with the run's key, instead of :data:`KEY`. The key itself is never a variable."""

ENV_DELIVER = "CLUSTRIX_DELIVER_FILE"
"""The file that says how outcomes leave the container, instead of :data:`DELIVER`."""

INLINE = "CXM1"
STORED = "CXM2"
FAILED = "CXM3"
CANCELLED_MESSAGE = "CXM4"
MESSAGE_LIMIT = 4096
PACKED_LIMIT = 64
"""How many times larger than the message its contents may be when unpacked."""

NO_OUTCOME = "no outcome to give"
"""Start of the error message of ``deliver.py give`` if there is no outcome."""

RESULT_ARTIFACT = "application/vnd.clustrix-containers.result.v1"

LAYER_KIND = "io.clustrix-containers.layer"
"""Annotation on a layer's descriptor: ``base``, ``wheel``, ``packages``, ``bytecode``, ``runtime``, ``code`` or ``call``."""

LAYER_TITLE = "io.clustrix-containers.title"
"""Annotation on a layer's descriptor: what a person would call it (``numpy 2.3.4``)."""

LABEL_FUNCTION = "io.clustrix-containers.function"
LABEL_COUNT = "io.clustrix-containers.count"
LABEL_ARRAY = "io.clustrix-containers.array"
LABEL_PYTHON = "io.clustrix-containers.python"


@lru_cache(maxsize=1)
def package_version() -> str:
    """The installed version of this package; inside an image, which has no metadata of it, the runtime's."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("clustrix-containers")
    except PackageNotFoundError:
        return f"runtime {RUNTIME_VERSION}"
