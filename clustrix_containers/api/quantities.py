"""How sizes, durations and the other resources of an element are written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from clustrix_containers.errors import ConfigError

_SIZE = re.compile(
    r"(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<exponent>e[+-]?\d{1,3})?\s*(?P<unit>[a-z]*)",
    re.IGNORECASE | re.ASCII,
)
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtpe", 1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}b": 1000**_power}
    _UNITS |= {f"{_letter}i": 1024**_power, f"{_letter}ib": 1024**_power}

_SIZE_HINT = "Expected a size such as 512MiB or 2GiB."


def parse_size(value: object) -> int:
    """A size in bytes: a number, or text like ``2GiB``, ``512M``, ``1.5Gi``.

    The suffixes mean what they mean in Kubernetes: ``Ki``, ``Mi``, ``Gi`` (with or without
    ``B``) are powers of 1024; ``k``, ``M``, ``G`` and ``kB``, ``MB``, ``GB`` are powers of
    1000 (what docker calls ``2g`` is ``2GiB`` here). Upper and lower case are the same,
    but for a lone ``m``, which is Kubernetes' milli and is refused. Fractions of a byte
    are rounded up. ConfigError: nonsense, zero or less, 2^63 or more.
    """
    text = _text(value, "a size", _SIZE_HINT)
    match = _SIZE.fullmatch(text)
    if match is None or match["unit"].lower() not in _UNITS:
        raise ConfigError(f"not a size: {value!r}", hint=_SIZE_HINT)
    if match["unit"] == "m":
        number = text[:-1].strip()
        raise ConfigError(
            f"not a size: {value!r}",
            hint=f"m is a thousandth in Kubernetes: write {number}MiB or {number}MB.",
        )
    size = math.ceil(
        Fraction(match["number"] + (match["exponent"] or "")) * _UNITS[match["unit"].lower()]
    )
    if not 0 < size < 1 << 63:
        raise ConfigError(
            f"not a size: {value!r}", hint="Expected at least one byte, and less than 8 EiB."
        )
    return size


_PART = r"(?P<{0}>\d+(?:\.\d*)?)\s*{1}\s*"
_NUMBER = re.compile(r"(?P<s>\d+(?:\.\d*)?)", re.ASCII)
_CLOCK = re.compile(r"(?:(?:(?P<d>\d+)-)?(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+(?:\.\d+)?)", re.ASCII)
_SPELLED = re.compile(
    "".join(
        f"(?:{_PART.format(unit, spelling)})?"
        for unit, spelling in (("d", "d"), ("h", "h"), ("m", "m(?:in)?"), ("s", "s(?:ec)?"))
    ),
    re.IGNORECASE | re.ASCII,
)
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_LIMITS = {"s": 60, "m": 60, "h": 24}
_DURATION_HINT = "Expected a duration such as 90s, 30m, 1h30m, 1:30:00 or 2-00:00:00."


def parse_duration(value: object) -> float:
    """A time in seconds: a number, or text like ``90s``, ``30m``, ``1h30m``, ``1:30:00``, ``2-00:00:00``.

    A clock reads ``[[days-]hours:]minutes:seconds``. ConfigError: nonsense, zero or less.
    """
    text = _text(value, "a time", _DURATION_HINT)
    clock = _CLOCK.fullmatch(text)
    match = clock or _NUMBER.fullmatch(text) or _SPELLED.fullmatch(text)
    parts = (
        {unit: Fraction(part) for unit, part in match.groupdict().items() if part} if match else {}
    )
    seconds = sum(part * _SECONDS[unit] for unit, part in parts.items())
    if not 0 < seconds < 1 << 53 or (clock and not _is_clock(parts)):
        raise ConfigError(f"not a time: {value!r}", hint=_DURATION_HINT)
    return float(seconds)


def _is_clock(parts: Mapping[str, Fraction]) -> bool:
    """Whether each place but the first is below what makes one of the place before it."""
    first = next(unit for unit in "dhms" if unit in parts)
    return all(part < _LIMITS[unit] for unit, part in parts.items() if unit != first)


def _text(value: object, what: str, hint: str) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1 << 63:
        huge = isinstance(value, int) and abs(value) >= 1 << 63
        raise ConfigError(f"not {what}: {'too large' if huge else repr(value)}", hint=hint)
    return format(value, ".9f") if isinstance(value, float) else str(value)


def parse_cpus(value: object) -> float:
    """A number of cores, whole or not."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < float(str(value)) < 1 << 20:
        raise ConfigError(
            f"expected a number of cores, not {value!r}", hint="For example 2 or 0.5."
        )
    return float(str(value))


def parse_gpus(value: object) -> int:
    """A number of GPUs."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 20:
        raise ConfigError(
            f"expected a number of GPUs, not {value!r}", hint="For example 0, 1 or 2."
        )
    return value


def parse_env(value: object) -> dict[str, str]:
    """Environment variables."""
    if not isinstance(value, Mapping) or not all(
        isinstance(item, str) for pair in value.items() for item in pair
    ):
        raise ConfigError(
            "expected a mapping of names to strings", hint='Quote numbers: {OMP_NUM_THREADS: "1"}.'
        )
    return dict(value)


RESOURCES: Mapping[str, Callable[[object], Any]] = {
    "cpus": parse_cpus,
    "memory": parse_size,
    "timeout": parse_duration,
    "gpus": parse_gpus,
    "shm": parse_size,
    "env": parse_env,
}
"""What reads each field of ``api.options.Resources``; ConfigError for nonsense."""


def parse_resource(name: str, value: object) -> Any:
    """One resource; ConfigError (``key``) with the resource's name for nonsense."""
    try:
        return RESOURCES[name](value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.message}", hint=error.hint, key=name) from None
