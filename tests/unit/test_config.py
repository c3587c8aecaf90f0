"""clustrix.yml, our directories, and how sizes and times are written."""

from __future__ import annotations

import contextlib
import math
import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clustrix_containers.api.quantities import parse_duration, parse_size
from clustrix_containers.config.file import Config, load
from clustrix_containers.config.paths import paths
from clustrix_containers.errors import ConfigError

EXAMPLE = """\
default: big
registry: registry.example.org:5000/team/runs
resources: {cpus: 1, memory: 2GiB, timeout: 30m, gpus: 0, shm: 64M, env: {OMP_NUM_THREADS: "1"}}
targets:
  local: {type: local, runtime: sandbox}
  big:
    type: local
    runtime: docker
    env:
      DEEP: "yes"
"""


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a current directory of their own, and no variables of ours."""
    for variable in os.environ:
        if variable.startswith(("CLUSTRIX_", "XDG_")):
            monkeypatch.delenv(variable)
    home = tmp_path / "home of 'ü'"
    (home / "work" / "deep").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "work" / "deep")
    return home


def written(user: Path, text: str | bytes) -> Path:
    file = user / "clustrix.yml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


class TestFinding:
    def test_without_a_file_there_is_a_local_target(self) -> None:
        assert load() == Config()
        assert (load().target().type, load().registry) == ("local", None)

    def test_the_nearest_upwards(self, user: Path) -> None:
        (user / ".config" / "clustrix-containers").mkdir(parents=True)
        own = user / ".config" / "clustrix-containers" / "clustrix.yml"
        own.write_text("registry: own\n")
        assert load().registry == "own"
        written(user, "registry: far\n")
        assert load().registry == "far"
        (user / "work" / "clustrix.yml").write_text("registry: near\n")
        found = load()
        assert (found.registry, found.path) == ("near", user / "work" / "clustrix.yml")

    def test_a_named_one(self, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        written(user, "registry: near\n")
        other = user / "other.yml"
        other.write_text("registry: other\n")
        assert load(other).registry == "other"
        monkeypatch.setenv("CLUSTRIX_CONFIG", "~/other.yml")
        assert load().registry == "other"
        monkeypatch.setenv("CLUSTRIX_CONFIG", str(user / "absent.yml"))
        with pytest.raises(ConfigError, match=r"absent\.yml: cannot be read: No such file"):
            load()

    def test_a_strangers_in_a_directory_of_everybody(self, user: Path) -> None:
        file = user / "work" / "clustrix.yml"
        if os.geteuid() == 0:
            file.write_text("a stranger's")
            os.chown(file, 12345, 12345)
        else:
            file.symlink_to("/etc/hostname")
        with pytest.raises(ConfigError, match="not a mapping"):
            load()
        file.parent.chmod(0o1777)
        assert load() == Config()

    def test_the_environment_overrides(self, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        written(user, EXAMPLE)
        monkeypatch.setenv("CLUSTRIX_TARGET", "local")
        monkeypatch.setenv("CLUSTRIX_REGISTRY", "localhost:5000/x")
        assert (load().default, load().registry) == ("local", "localhost:5000/x")
        monkeypatch.setenv("CLUSTRIX_TARGET", "bog")
        with pytest.raises(ConfigError, match="CLUSTRIX_TARGET names 'bog'") as caught:
            load()
        assert caught.value.key == "CLUSTRIX_TARGET"
        assert "Did you mean 'big'?" in str(caught.value)


class TestReading:
    def test_all_that_it_may_say(self, user: Path) -> None:
        file = written(user, EXAMPLE)
        found = load()
        assert (found.default, found.registry) == ("big", "registry.example.org:5000/team/runs")
        assert found.resources == {
            "cpus": 1.0,
            "memory": 2 << 30,
            "timeout": 1800.0,
            "gpus": 0,
            "shm": 64_000_000,
            "env": {"OMP_NUM_THREADS": "1"},
        }
        big = found.target()
        assert (big.name, big.type, big.line) == ("big", "local", 6)
        assert big.options == {"runtime": "docker", "env": {"DEEP": "yes"}}
        for key, line in (("runtime", 8), ("env.DEEP", 10), ("absent", 6)):
            assert (big.error(key, "no").path, big.error(key, "no").line) == (str(file), line)
        error = big.error("runtime", "no docker here", "Start it.")
        assert str(error) == f"{file}:8: target 'big': no docker here\n  Start it."
        assert (error.line, error.key, error.path) == (8, "runtime", str(file))

    @pytest.mark.parametrize(
        "text", ["", "# nothing\n", "targets:\n", "---\n", "\ufeffdefault: local\n"]
    )
    def test_an_empty_file(self, user: Path, text: str) -> None:
        file = written(user, text)
        assert load() == Config(path=file)

    def test_local_is_always_there(self, user: Path) -> None:
        written(user, "targets: {big: {type: ssh}}")
        assert load().target("local").type == "local"
        assert load().default == "local"

    def test_an_unknown_target(self, user: Path) -> None:
        written(user, EXAMPLE)
        with pytest.raises(ConfigError, match="no such target: 'locl'") as caught:
            load().target("locl")
        assert "Did you mean 'local'? The targets are: big, local." in str(caught.value)

    def test_aliases_share_their_value(self, user: Path) -> None:
        written(user, "targets:\n  a: &a {type: ssh, hosts: [x, 1, 2.5, null, true]}\n  b: *a\n")
        found = load()
        assert found.target("b").options == found.target("a").options
        assert found.target("b").options["hosts"] == ["x", 1, 2.5, None, True]

    def test_aliases_that_multiply_take_no_time(self, user: Path) -> None:
        targets = [
            f"  a{n}: &a{n} {{type: x, l: *a{n - 1}, m: *a{n - 1}, n: *a{n - 1}}}"
            for n in range(1, 40)
        ]
        written(user, "\n".join(["targets:", "  a0: &a0 {type: x, k: v}", *targets]))
        assert load().target("a39").type == "x"

    @pytest.mark.parametrize(
        ("text", "line", "key", "message"),
        [
            ("defualt: local", 1, "defualt", "Did you mean 'default'?"),
            ("default: local\ndefault: local", 2, "default", "duplicate key"),
            ("targets:\n  a: {type: x}\n  a: {type: y}", 3, "a", "duplicate key"),
            ("targets:\n  a:\n    type: x\n    o: {p: 1, p: 2}", 4, "p", "duplicate key"),
            ("a:\n\tb: 1", 2, None, "Indent with spaces, not with tabs."),
            ("default: [", 1, None, "not YAML"),
            ("default: 'x", 1, None, "not YAML"),
            ("default: @x", 1, None, "not YAML"),
            ("default: *x", 1, None, "undefined alias"),
            ("a: 1\n---\nb: 2", 2, None, "not YAML"),
            ("- default", 1, None, "the file is not a mapping"),
            ("default", 1, None, "the file is not a mapping"),
            ("targets: [local]", 1, "targets", "targets is not a mapping"),
            ("\ntargets:\n  a: local", 3, "targets.a", "targets.a is not a mapping"),
            ("targets:\n  a: {runtime: x}", 2, "targets.a", "has no type"),
            ("targets:\n  a:\n    type: 3", 3, "targets.a.type", "expected a string"),
            ("targets:\n  on: {type: x}", 2, "on", 'Quote it: "on".'),
            ("targets:\n  ? [a]\n  : {type: x}", 2, "a sequence", "is not a string"),
            ("targets:\n  a: &a {type: x}\n  b:\n    <<: *a", 4, "<<", "Merge keys"),
            (
                "targets:\n  a: {type: x, o: !!python/name:os.system }",
                2,
                "targets.a.o",
                "could not determine",
            ),
            ("targets:\n  a: {type: x, o: !mine {}}", 2, "targets.a.o", "could not determine"),
            ("targets:\n  a: {type: x, o: 2026-99-99}", 2, "targets.a.o", "month must be"),
            ("targets:\n  a: {type: x, o: &o {p: *o}}", 2, "targets.a.o.p", "contains itself"),
            ("default: big", 1, "default", "no such target: 'big'"),
            ("default: 3", 1, "default", "default: expected a string, not '3'"),
            ("registry: ''", 1, "registry", "expected a string"),
            ("registry: https://x/y", 1, "registry", "expected host[:port]/name"),
            ("registry: x y", 1, "registry", "expected host[:port]/name"),
            ("resources: 3", 1, "resources", "not a mapping"),
            ("resources:\n  memroy: 1", 2, "resources.memroy", "Did you mean 'memory'?"),
            ("resources:\n  cpus: 1\n  memory: 2 bananas", 3, "resources.memory", "not a size"),
            ("resources: {timeout: -3}", 1, "resources.timeout", "not a time"),
            ("resources: {cpus: 0}", 1, "resources.cpus", "expected a number of cores"),
            ("resources: {cpus: .nan}", 1, "resources.cpus", "expected a number of cores"),
            ("resources: {cpus: two}", 1, "resources.cpus", "expected a number of cores"),
            ("resources: {gpus: 0.5}", 1, "resources.gpus", "expected a number of GPUs"),
            ("resources: {env: {A: 1}}", 1, "resources.env", "Quote numbers"),
            ("resources: {env: [A]}", 1, "resources.env", "Quote numbers"),
        ],
    )
    def test_what_is_wrong_has_file_line_and_key(
        self, user: Path, text: str, line: int, key: str | None, message: str
    ) -> None:
        file = written(user, text)
        with pytest.raises(ConfigError) as caught:
            load()
        assert message in str(caught.value)
        assert (caught.value.path, caught.value.line, caught.value.key) == (str(file), line, key)
        assert str(caught.value).startswith(f"{file}:{line}: ")

    @pytest.mark.parametrize("data", [b"\xff\xfe", b"default: \x00", b"default: caf\xe9"])
    def test_what_is_not_text(self, user: Path, data: bytes) -> None:
        written(user, data)
        with pytest.raises(ConfigError, match=r"clustrix\.yml"):
            load()

    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                            st.sampled_from(["default", "targets", "type", "resources", "memory", "a"]), inner, max_size=3)))  # fmt: skip
    def test_any_document_is_read_or_refused(self, value: object) -> None:
        file = Path.cwd() / "clustrix.yml"
        file.write_text(yaml.safe_dump(value), encoding="utf-8")
        with contextlib.suppress(ConfigError):
            assert load().target().type


class TestPaths:
    def test_they_are_the_users_alone(self, user: Path) -> None:
        found = paths()
        for path in (found.cache, found.data, found.state):
            assert path.is_relative_to(user)
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert len({found.cache, found.data, found.state}) == 3
        assert paths() == found

    def test_variables_override(self, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CLUSTRIX_CACHE_DIR", "~/c a c h e")
        monkeypatch.setenv("CLUSTRIX_STATE_DIR", "relative")
        assert paths().cache == user / "c a c h e"
        assert paths().state == Path.cwd() / "relative"

    def test_one_that_cannot_be_made(self, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (user / "file").write_text("")
        monkeypatch.setenv("CLUSTRIX_DATA_DIR", str(user / "file"))
        with pytest.raises(ConfigError, match="File exists") as caught:
            paths()
        assert caught.value.key == "CLUSTRIX_DATA_DIR"


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("2GiB", 2 << 30), ("2Gi", 2 << 30), ("2 GiB", 2 << 30), ("2gib", 2 << 30),
            ("512M", 512_000_000), ("512MB", 512_000_000), ("512Mi", 512 << 20), ("1k", 1000),
            ("1kB", 1000), ("1Ki", 1024), ("1T", 10**12), ("1Ti", 1 << 40), ("1P", 10**15), ("1E", 10**18),
            ("1e3", 1000), ("1.5GiB", 3 << 29), (".5Ki", 512), ("0.1Ki", 103), ("1.", 1), ("1B", 1), (" 7 ", 7),
            (4096, 4096), (2.5e9, 2_500_000_000), (0.5, 1), ("8191Pi", 8191 << 50),
        ],
    )  # fmt: skip
    def test_what_they_mean(self, text: object, size: int) -> None:
        assert parse_size(text) == size

    @pytest.mark.parametrize(
        "nonsense",
        [
            "", " ", "x", "-1", "0", "0GiB", "1 2", "1GiBB", "1Q", "GiB", "1,5GiB", "1_000", "nan", "inf", "9Ei",
            "1e999", "512m", "٣GiB", "1.2.3", 0, -1, True, None, [], math.nan, math.inf, 10**400, pytest.param(10**5000, id='huge'), 1e-300,
        ],
    )  # fmt: skip
    def test_nonsense(self, nonsense: object) -> None:
        with pytest.raises(ConfigError, match="not a size"):
            parse_size(nonsense)

    def test_milli_is_explained(self) -> None:
        with pytest.raises(ConfigError, match="write 512MiB or 512MB"):
            parse_size("512m")

    @given(
        st.integers(1, 2**20),
        st.sampled_from("kMGT"),
        st.sampled_from(["", "i"]),
        st.sampled_from(["", "B"]),
    )
    def test_powers(self, number: int, letter: str, binary: str, byte: str) -> None:
        base, power = (1024 if binary else 1000), "kMGT".index(letter) + 1
        assert parse_size(f"{number}{letter}{binary}{byte}") == number * base**power

    @given(st.text() | st.from_regex(r"[0-9.eE+-]{0,6} ?[kKmMgGiIbB]{0,3}", fullmatch=True))
    def test_any_text_is_a_size_or_refused(self, text: str) -> None:
        with contextlib.suppress(ConfigError):
            assert 0 < parse_size(text) < 1 << 63


class TestTimes:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("90", 90), ("90s", 90), ("30m", 1800), ("30min", 1800), ("1h30m", 5400), ("1h 30m", 5400), ("1.5h", 5400),
            ("2d", 172_800), ("1d12h", 129_600), ("1:30:00", 5400), ("01:30:00", 5400), ("10:30", 630),
            ("90:00", 5400), ("100:00:00", 360_000), ("2-00:00:00", 172_800), ("0-01:00:00.5", 3600.5),
            ("0.5", 0.5), ("1H", 3600), (90, 90), (0.25, 0.25), (" 5 s ", 5),
        ],
    )  # fmt: skip
    def test_what_they_mean(self, text: object, seconds: float) -> None:
        assert parse_duration(text) == seconds

    @pytest.mark.parametrize(
        "nonsense",
        [
            "", " ", "x", "0", "0s", "0:00", "-1", "-5m", "1h30", "30m1h", "1m1m", "1:60", "1:60:00", "1-24:00:00", "2-00:00",
            "1:2:3:4", "1e3", "nan", "inf", "1.2.3s", "1,5h", "٣s", "h", ":", 0, -1, True, None, [], math.nan, math.inf, pytest.param(10**5000, id='huge'),
        ],
    )  # fmt: skip
    def test_nonsense(self, nonsense: object) -> None:
        with pytest.raises(ConfigError, match="not a time"):
            parse_duration(nonsense)

    def test_yaml_reads_a_clock_as_we_do(self, user: Path) -> None:
        # YAML 1.1 takes 1:30:00 for a number to the base 60.
        for spelled in ("1:30:00", "01:30:00", "'1:30:00'", "90:00", "5400"):
            written(user, f"resources: {{timeout: {spelled}}}")
            assert load().resources["timeout"] == 5400

    @given(st.integers(1, 10**6))
    def test_a_clock_and_its_parts_agree(self, seconds: int) -> None:
        minutes, s = divmod(seconds, 60)
        hours, m = divmod(minutes, 60)
        d, h = divmod(hours, 24)
        assert parse_duration(f"{d}-{h:02}:{m:02}:{s:02}") == seconds
        assert parse_duration(f"{hours}:{m:02}:{s:02}") == seconds
        assert parse_duration(f"{minutes}:{s:02}") == seconds
        assert parse_duration(f"{d}d{h}h{m}m{s}s") == seconds
        assert parse_duration(timedelta(seconds=seconds).total_seconds()) == seconds

    @given(st.text() | st.from_regex(r"[0-9dhms:. -]{0,10}", fullmatch=True))
    def test_any_text_is_a_time_or_refused(self, text: str) -> None:
        with contextlib.suppress(ConfigError):
            assert 0 < parse_duration(text) < math.inf
