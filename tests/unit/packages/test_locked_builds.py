"""``cxc lock``, and builds that obey what it wrote, on a distribution from an index of one directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from clustrix_containers.image.base.interpreter import packed
from clustrix_containers.packages import lock as locking
from tests.unit.image.making import make_wheel

CODE = """
import clustrix_containers as cx

@cx.function
def f():
    import tool
    return tool.NAME
"""


@pytest.fixture(scope="session")
def packed_cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    top = tmp_path_factory.getbasetemp()
    cache = (top if worker_id == "master" else top.parent) / "packed"
    packed(cache)
    return cache


@dataclass
class Project:
    """A script, an index with wheels of ``tool``, an environment, a cache."""

    root: Path
    fresh: Path
    online: bool = True
    cache: str = "cache"

    def cxc(self, *words: str) -> subprocess.CompletedProcess[str]:
        cache = self.root / self.cache
        if not cache.exists():
            # The interpreter is packed once; its blobs are never changed.
            shutil.copytree(self.fresh, cache, copy_function=os.link)
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PIP_")},
            "PYTHONPATH": str(self.site),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "CLUSTRIX_CACHE_DIR": str(cache),
            "CLUSTRIX_DATA_DIR": str(self.root / "data"),
            "CLUSTRIX_STATE_DIR": str(self.root / "state"),
        }
        if self.online:
            env["PIP_FIND_LINKS"] = (self.root / "index").as_uri()
        command = [sys.executable, "-m", "clustrix_containers", *words]
        return subprocess.run(command, env=env, cwd=self.root, capture_output=True, text=True)

    def digest(self, *words: str) -> str:
        done = self.cxc("build", *words, "run.py:f")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def error(self, *words: str) -> str:
        done = self.cxc("build", *words, "run.py:f")
        assert done.returncode == 1, done.stdout
        assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
        return done.stderr

    def wheel(self, version: str = "1.0", text: str = "NAME = 'tool'\n") -> Path:
        files = {"tool/__init__.py": text.encode()}
        return make_wheel(self.root / "index", "tool", files, version=version)

    @property
    def site(self) -> Path:
        return self.root / "environment/lib/python/site-packages"

    def install(self, *wheels: Path) -> None:
        """Have these wheels installed, and no others."""
        shutil.rmtree(self.site, ignore_errors=True)
        self.site.mkdir(parents=True)
        for wheel in wheels:
            zipfile.ZipFile(wheel).extractall(self.site)
        for record in self.site.glob("*/RECORD"):
            # As installers write it: quoted only where need be.
            record.write_text(record.read_text().replace('"', ""))


@pytest.fixture
def project(tmp_path: Path, packed_cache: Path) -> Project:
    made = Project(tmp_path, packed_cache)
    made.install(made.wheel())
    (tmp_path / "run.py").write_text(CODE)
    return made


@pytest.fixture
def locked(project: Project) -> Project:
    done = project.cxc("lock", "run.py:f")
    assert (done.returncode, done.stdout) == (0, "pylock.toml\n"), done.stderr
    return project


def test_made_online_it_builds_the_same_bytes_offline(locked: Project) -> None:
    (package,) = locking.read(locked.root / "pylock.toml").packages
    assert package.wheel is not None and package.reasons == (
        "run.py:6 imports tool (through run.py)",
    )
    unlocked = locked.digest()
    locked.online = False
    assert locked.digest("--lock", "pylock.toml") == unlocked
    # Another machine: nothing is there but what the index gives by its hash.
    locked.online, locked.cache = True, "another cache"
    assert locked.digest("--lock", "pylock.toml") == unlocked


def test_a_wheel_that_is_nowhere(locked: Project) -> None:
    locked.online, locked.cache = False, "another cache"
    assert "the wheel tool-1.0-py3-none-any.whl of the lock is not in the cache" in locked.error(
        "--lock", "pylock.toml"
    )


def test_clustrix_yml_names_it_and_another_function_shares_it(locked: Project) -> None:
    (locked.root / "clustrix.yml").write_text("lock: locks/pylock.toml\n")
    assert "cannot read" in locked.error()
    assert "cxc lock" in locked.error()
    done = locked.cxc("lock", "run.py:f")
    assert done.stdout.strip() == str(locked.root / "locks/pylock.toml")
    assert locking.read(Path(done.stdout.strip())) == locking.read(locked.root / "pylock.toml")
    with_tool = locked.digest()
    (locked.root / "run.py").write_text("def f():\n    return 1\n")
    locked.install()
    assert " wheel     tool 1.0\n" in locked.cxc("explain", "run.py:f").stdout
    assert locked.digest() != with_tool


def test_what_differs_here_is_named(locked: Project) -> None:
    def refused(expected: str, *wheels: Path) -> None:
        locked.install(*wheels)
        assert expected in locked.error("--lock", "pylock.toml")

    tool, newer = locked.wheel(), locked.wheel("2.0")
    more = make_wheel(locked.root / "index", "more", {"more/__init__.py": b""})
    refused("run.py:6 imports tool, which was not found")
    refused("tool: 1.0 is locked, 2.0 is installed", newer)
    (locked.root / "run.py").write_text(f"import more\n{CODE}")
    refused("more: 1.0 is needed and not locked (run.py:1 imports more", tool, more)
    (locked.root / "run.py").write_text(CODE)
    other = locked.wheel(text="NAME = 'another build'\n")
    refused("tool: the installed files differ from those of the locked wheel tool-1.0-py3", other)


def test_another_python_base_or_runtime_is_named(locked: Project) -> None:
    path = locked.root / "pylock.toml"
    good = path.read_text()
    base = next(line for line in good.splitlines() if line.startswith("base ="))
    python = f'python = "{sys.version_info[0]}.{sys.version_info[1]}"'
    for old, new, expected in (
        (python, 'python = "3.9"', "is for Python 3.9, this is Python 3."),
        (base, f'base = "packed:sha256:{"0" * 64}"', "the lock needs the base packed:sha256:0000"),
        ('platform = "linux/', 'platform = "plan9/', "(plan9/"),
        ('version = "1"', 'version = "0"', "it needs the runtime 0 "),
    ):
        assert old in good
        path.write_text(good.replace(old, new))
        assert expected in locked.error("--lock", "pylock.toml")


def test_installed_files_are_locked_by_their_digest(project: Project) -> None:
    site = project.site
    (site / "tool-1.0.dist-info/direct_url.json").write_text('{"url": "file:///x", "dir_info": {}}')
    assert "tool" in project.cxc("lock", "run.py:f").stderr
    (package,) = locking.read(project.root / "pylock.toml").packages
    assert package.wheel is None
    assert project.digest("--lock", "pylock.toml") == project.digest()
    record = site / "tool-1.0.dist-info/RECORD"
    record.write_text(
        record.read_text().replace("tool/__init__.py,sha256=", "tool/x.py,sha256=", 1)
    )
    assert "are locked, sha256:" in project.error("--lock", "pylock.toml")
    (project.root / "run.py").write_text("def f():\n    return 1\n")
    project.install()
    assert "tool: 1.0 is locked with its installed files, and not installed" in project.error(
        "--lock", "pylock.toml"
    )


def test_it_is_also_a_requirements_file(locked: Project) -> None:
    assert locked.digest("--requirements", "pylock.toml") == locked.digest()
    locked.install(locked.wheel("2.0"))
    assert "2.0 is installed" in locked.error("--requirements", "pylock.toml")
