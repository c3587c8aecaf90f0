"""A lock says what is in an image: one text per lock, obeyed or failing."""

from __future__ import annotations

import base64
import importlib
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.pylock import Pylock

from clustrix_containers.capture.bundle import Distribution, Import
from clustrix_containers.errors import DependencyError
from clustrix_containers.packages import lock as locking
from clustrix_containers.packages.installed import Installed
from clustrix_containers.packages.lock import Component, Lock, Package, Wheel
from clustrix_containers.packages.resolution import resolve
from tests.installed_tree import install, record_hash, site

HEX = "0123456789abcdef"
BASE = "packed:sha256:" + "b" * 64
RUNTIME = Component("1", "d" * 64)
CLOUDPICKLE = Component("3.1.1", "e" * 64)


def of(*packages: Package) -> Lock:
    return Lock("3.11", "linux/amd64", BASE, packages, RUNTIME, CLOUDPICKLE, "0.1.0")


def only(root: Path, name: str = "tool") -> Distribution:
    (found,) = resolve([], packages=[name], path=[str(root)]).distributions
    return found


def pin(*distributions: Distribution, **more: object) -> Lock:
    return of(*locking.pin(distributions, **{"wheels": {}, "hashes": {}, **more}))  # type: ignore[arg-type]


def same(_wheel: Wheel, _distribution: Distribution) -> bool:
    return True


def add_record(info: Path, path: str, data: bytes) -> None:
    target = info.parent / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    with (info / "RECORD").open("a") as file:
        file.write(f'"{path}",{record_hash(data)},{len(data)}\n')


names = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+)?", fullmatch=True)
versions = st.tuples(
    st.integers(0, 99), st.integers(0, 99), st.sampled_from(["", "rc1", "+cpu", ".post2"])
).map(lambda parts: f"{parts[0]}.{parts[1]}{parts[2]}")
hexes = st.text(HEX, min_size=64, max_size=64)
sentences = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3).map(tuple)


@st.composite
def packages(draw: st.DrawFn) -> Package:
    name, version = draw(names), draw(versions)
    reasons = draw(sentences)
    if draw(st.booleans()):
        return Package(name, version, None, "sha256:" + draw(hexes), reasons)
    filename = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    url = draw(st.none() | st.just(f"https://example.org/files/{filename.replace('+', '%2B')}"))
    wheel = Wheel(filename, draw(hexes), draw(st.integers(0, 2**60)), url)
    return Package(name, version, wheel, None, reasons)


locks = st.builds(
    Lock,
    python=st.sampled_from(["3.10", "3.11", "3.14"]),
    platform=st.sampled_from(["linux/amd64", "linux/arm64", "linux/arm/v7"]),
    base=st.sampled_from([BASE, "ghcr.io/x/y@sha256:" + "c" * 64]),
    packages=st.lists(packages(), unique_by=lambda p: p.name).map(
        lambda found: tuple(sorted(found, key=lambda p: p.name))
    ),
    runtime=st.builds(Component, st.sampled_from(["1", "12"]), hexes),
    cloudpickle=st.builds(Component, versions, hexes),
    client=versions,
)


class TestText:
    @given(locks)
    def test_what_is_written_is_read(self, lock: Lock) -> None:
        text = locking.dumps(lock)
        assert locking.loads(text) == lock
        assert locking.dumps(locking.loads(text)) == text

    @given(locks)
    def test_it_is_a_valid_pylock(self, lock: Lock) -> None:
        toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
        pylock = Pylock.from_dict(toml.loads(locking.dumps(lock)))
        assert [package.name for package in pylock.packages] == [p.name for p in lock.packages]

    def test_file_names_that_are_not_utf_8(self) -> None:
        lock = of(Package("a", "1", None, "sha256:" + "a" * 64, ("\udcff.py:1",)))
        assert locking.loads(locking.dumps(lock)).packages[0].reasons == ("\\udcff.py:1",)

    def test_a_file_is_replaced_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "pylock.a b'\"ü.toml"
        path.write_text("old")
        lock = of()
        locking.write(path, lock)
        assert locking.read(path) == lock
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('created-by = "', "created-by = ", "not a valid pylock"),
            ("[tool.clustrix-containers", "[tool.other", "without the table"),
            ("version = 1\n", "version = 9\n", "format of the lock is 9"),
            ("sha256:aaaa", "sha256:xxxx", "not a lock: tree = 'sha256:xxxx"),
            ("tree =", "three =", "'tree' is missing"),
            ('python = "3.11"', "python = 3.11", "is not a string"),
            ('python = "3.11"', 'python = "3.11\\n"', "python = "),
            ('base = "packed:', 'base = "python:3.11 ', "base = "),
            ('client = "0.1.0"', 'client = "0.1.0; rm -rf"', "client = "),
            ("[tool.clustrix-containers.runtime]", "[tool.clustrix-containers.x]", "'runtime' is"),
            ('sha256 = "dddd', 'sha256 = "DDDD', "sha256 = "),
            ('name = "a"', "name = 1", "not a valid pylock"),
            ('name = "c"', 'name = "a"', "locked twice"),
            ('name = "b-1-', 'name = "../../b-1-', "not a valid pylock"),
            ("py3-none-any.whl", "py3-none-a/../../any.whl", "b-1-py3-none-a/../../any.whl"),
            ("size = 10", "size = -10", "has the size -10"),
            ('lock-version = "1.0"', 'lock-version = "2.0"', "version 2.0 is not supported"),
        ],
    )
    def test_a_damaged_lock_is_refused(
        self, tmp_path: Path, old: str, new: str, message: str
    ) -> None:
        wheel = Wheel("b-1-py3-none-any.whl", "a" * 64, 10)
        good = locking.dumps(
            of(
                Package("a", "1", None, "sha256:" + "a" * 64),
                Package("b", "1", wheel, None),
                Package("c", "1", None, "sha256:" + "c" * 64),
            )
        )
        path = tmp_path / "pylock.toml"
        path.write_text(good.replace(old, new))
        assert path.read_text() != good
        with pytest.raises(DependencyError, match=re.escape(message)) as caught:
            locking.read(path)
        assert caught.value.path == str(path)

    def test_a_package_has_one_wheel(self, tmp_path: Path) -> None:
        text = locking.dumps(
            of(Package("b", "1", Wheel("b-1-py3-none-any.whl", "a" * 64, 1), None))
        )
        wheel = text[text.index("[[packages.wheels]]") : text.index("[packages.tool")]
        with pytest.raises(DependencyError, match="b has 2 wheels, not one"):
            locking.loads(text.replace(wheel, wheel + wheel.replace("py3", "py2")))

    def test_a_lock_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(DependencyError, match=r"cannot read .*No such file"):
            locking.read(tmp_path / "pylock.toml")


class TestTree:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = site(tmp_path)
        install(
            root,
            "tool",
            files={"tool/__init__.py": "x = 1\n", "tool/data, more.txt": "data"},
            info_files={"entry_points.txt": "[console_scripts]\ntool = tool:main\n"},
        )
        return root

    def test_what_an_installer_makes_does_not_count(self, root: Path) -> None:
        before = locking.tree_digest(only(root))
        info = root / "tool-1.0.dist-info"
        for file in ("REQUESTED", "direct_url.json", "uv_cache.json", "INSTALLER"):
            add_record(info, f"{info.name}/{file}", b"made here")
        add_record(info, "tool/__pycache__/__init__.cpython-311.pyc", b"bytecode")
        add_record(info, "../../../bin/tool", b"#!/home/me/venv/bin/python\n")
        add_record(info, "../../../bin/tool-helper", b"#!/home/me/venv/bin/python\nhelp")
        add_record(info, "../../../include/site/python3.11/tool/tool.h", b"header")
        assert locking.tree_digest(only(root)) == before

    @pytest.mark.parametrize(
        "path",
        [
            "tool/new.py",
            "../../../bin/binary",
            "../../../share/man/tool.1",
            "tool-1.0.dist-info/licenses/INSTALLER",
        ],
    )
    def test_what_a_wheel_brings_does(self, root: Path, path: str) -> None:
        before = locking.tree_digest(only(root))
        add_record(root / "tool-1.0.dist-info", path, b"\x7fELF content")
        assert locking.tree_digest(only(root)) != before

    def test_how_deep_it_lies_does_not_count(self, tmp_path: Path) -> None:
        shallow, deep = tmp_path / "site-packages", site(tmp_path / "deep" / "er")
        shallow.mkdir()
        for root, up in ((shallow, "../"), (deep, "../../../")):
            add_record(install(root, "tool"), f"{up}share/tool.1", b"manual")
        assert locking.tree_digest(only(shallow)) == locking.tree_digest(only(deep))

    def test_only_record_is_read(self, root: Path) -> None:
        distribution = only(root)
        before = locking.tree_digest(distribution)
        shutil.rmtree(root / "tool")
        assert locking.tree_digest(distribution) == before

    def test_without_a_record_the_files_are_read(self, root: Path) -> None:
        (root / "tool-1.0.dist-info" / "RECORD").unlink()
        before = locking.tree_digest(only(root))
        (root / "tool" / "__init__.py").write_text("x = 2\n")
        assert locking.tree_digest(only(root)) != before

    def test_the_files_of_a_distribution(self, root: Path) -> None:
        distribution = only(root)
        with_record = set(Installed.of(distribution).rows)
        (distribution.info / "RECORD").unlink()
        without = set(Installed.of(distribution).rows)
        assert "tool/data, more.txt" in without
        assert with_record - without == {"tool-1.0.dist-info/RECORD"}


class TestPins:
    @pytest.fixture
    def tool(self, tmp_path: Path) -> Distribution:
        root = site(tmp_path)
        install(root, "tool")
        return only(root)

    WHEEL = Wheel(
        "tool-1.0-py3-none-any.whl",
        "a" * 64,
        10,
        "https://example.org:8443/tool-1.0-py3-none-any.whl",
    )

    def test_a_wheel_where_there_is_one(self, tool: Distribution) -> None:
        lock = pin(tool, wheels={"tool": self.WHEEL})
        (package,) = lock.packages
        assert (package.tree, package.reasons) == (None, ("packages= names tool",))
        assert package.wheel == self.WHEEL
        locking.check(lock, [tool], same)

    def test_the_hashes_that_were_handed(self, tool: Distribution) -> None:
        wheels = {"tool": self.WHEEL}
        assert pin(tool, wheels=wheels, hashes={"tool": ("sha256:" + "a" * 64,)}) == pin(
            tool, wheels=wheels
        )
        with pytest.raises(DependencyError, match="do not allow"):
            pin(tool, wheels=wheels, hashes={"tool": ("sha256:" + "c" * 64,)})

    def test_a_lock_is_obeyed_or_fails(self, tool: Distribution) -> None:
        lock = pin(tool)
        (package,) = lock.packages
        wheel = Package("tool", "1.0", self.WHEEL, None)
        unused = Package(
            "unused", "1", replace(self.WHEEL, filename="unused-1-py3-none-any.whl"), None
        )
        for packages in ((package,), (wheel,), (package, unused)):
            locking.check(replace(lock, packages=packages), [tool], same)
        tree = "sha256:" + "0" * 64
        more = Package("more", "1", None, tree)
        for packages, expected in (
            ((replace(package, version="2.0"),), "tool: 2.0 is locked, 1.0 is installed"),
            (
                (replace(package, tree=tree),),
                "tool: the files sha256:000000000000… are locked, sha256:",
            ),
            ((wheel,), "tool: the installed files differ from those of the locked wheel tool-1.0"),
            ((), "tool: 1.0 is needed and not locked (packages= names tool)"),
            ((more, package), "more: 1 is locked with its installed files, and not installed"),
        ):
            with pytest.raises(DependencyError) as caught:
                locking.check(
                    replace(lock, packages=packages), [tool], lambda _wheel, _installed: False
                )
            (difference,) = caught.value.differences
            assert difference.startswith(expected)

    def test_this_environment(self) -> None:
        found = resolve(
            [Import("sklearn", "run.py:1"), Import("matplotlib", "run.py:2")]
        ).distributions
        lock = pin(*reversed(found))
        assert locking.loads(locking.dumps(lock)) == lock == pin(*found)
        locking.check(lock, found, same)


def test_hashes_are_as_in_record() -> None:
    assert record_hash(b"") == "sha256=" + base64.urlsafe_b64encode(
        bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    ).decode().rstrip("=")
