"""Functions in the projects that users have: packages of every make, scripts, sessions, options."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import clustrix_containers as cx
from clustrix_containers.errors import DependencyError
from tests.cases import helper, work

from .conftest import ROOT


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), "utf-8")


def python(*words: str, cwd: Path, text: str | None = None, path: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        input=text,
        env={**os.environ, "PYTHONPATH": f"{path or cwd}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_namespace_packages_and_relative_imports(home: Path) -> None:
    project = home / "a project"
    write(
        project,
        {
            "space/one/deep.py": "from ..two import VALUE\nfrom . import beside\n\ndef f(x):\n    return x + VALUE + beside.MORE\n",
            "space/one/beside.py": "MORE = 1000\n",
            "space/two.py": "VALUE = 100\n",
            "go.py": """
                import clustrix_containers as cx
                from space.one.deep import f
                if __name__ == "__main__":
                    print(cx.function(f).submit(1).result())
                """,
        },
    )
    assert python("go.py", cwd=project) == "1101\n"


def test_an_editable_install_travels_as_source_with_its_metadata(home: Path) -> None:
    project = home / "project"
    write(
        project,
        {
            "src/mine/__init__.py": "from importlib.metadata import version\n__version__ = version('mine-dist')\n",
            "src/mine/work.py": "from . import __version__\n\ndef f():\n    return __version__\n",
        },
    )
    site = home / "site"
    info = site / "mine_dist-4.2.dist-info"
    write(
        site,
        {
            "mine_dist-4.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: mine-dist\nVersion: 4.2\n",
            "mine_dist-4.2.dist-info/direct_url.json": f'{{"url": "{project.as_uri()}", "dir_info": {{"editable": true}}}}',
            "mine_dist-4.2.dist-info/RECORD": "__editable__.mine_dist-4.2.pth,,\nmine_dist-4.2.dist-info/METADATA,,\nmine_dist-4.2.dist-info/direct_url.json,,\n",
            "__editable__.mine_dist-4.2.pth": f"{project / 'src'}\n",
        },
    )
    assert info.is_dir()
    text = f"""
import site
site.addsitedir({str(site)!r})
import clustrix_containers as cx
from mine.work import f
print(cx.function(f).submit().result())
"""
    (home / "go.py").write_text(text)
    assert python("go.py", cwd=home) == "4.2\n"


def test_a_module_run_with_dash_m(home: Path) -> None:
    write(
        home,
        {
            "pkg/__init__.py": "",
            "pkg/go.py": """
                import dataclasses
                import clustrix_containers as cx
                from . import other

                @dataclasses.dataclass
                class Pair:
                    x: int

                @cx.function
                def double(pair: Pair) -> Pair:
                    return Pair(pair.x * other.TWO)

                if __name__ == "__main__":
                    result = double.submit(Pair(4)).result()
                    print(result, type(result) is Pair)
                """,
            "pkg/other.py": "TWO = 2\n",
        },
    )
    assert python("-m", "pkg.go", cwd=home) == "Pair(x=8) True\n"


def test_a_session_without_a_file(home: Path) -> None:
    text = """
import clustrix_containers as cx
SCALE = 3
class Box:
    def __init__(self, x): self.x = x
def scale(box):
    return Box(box.x * SCALE)
job = cx.function(scale).submit(Box(5))
value = job.result()
print(value.x, type(value) is Box)
"""
    assert python("-", cwd=home, text=text) == "15 True\n"


def test_the_same_source_has_the_same_digest_everywhere(home: Path) -> None:
    text = """
import clustrix_containers as cx

def outer(n):
    def inner(x):
        return {x, n, "a", "b"}
    return inner

@cx.function
def plain(x):
    return x

if __name__ == "__main__":
    print(plain.build().digest, cx.function(outer(3)).build().digest)
"""
    digests = set()
    for number, place in enumerate(("one", "two words")):
        directory = home / place
        directory.mkdir()
        (directory / "script.py").write_text(text)
        os.environ["PYTHONHASHSEED"] = str(number)
        try:
            digests.add(python("script.py", cwd=directory))
        finally:
            del os.environ["PYTHONHASHSEED"]
    assert len(digests) == 1


def test_packages_that_are_added_can_be_imported(home: Path) -> None:
    with_it = cx.function(work.imports_what_is_not_there, packages=["pytest"])
    assert with_it.submit().result(60) == "pytest"


def test_a_requirements_file_is_obeyed_or_fails(home: Path) -> None:
    import packaging.version

    good = home / "requirements.txt"
    good.write_text(f"packaging=={packaging.__version__}\n")
    explained = cx.function(helper.double, requirements=good).explain()
    assert [item.name for item in explained.packages] == ["packaging"]
    bad = home / "other.txt"
    bad.write_text("packaging==0.0.1\n")
    with pytest.raises(DependencyError, match=r"0\.0\.1"):
        cx.function(helper.double, requirements=bad).submit(1)


def test_files_and_modules_that_are_named_travel(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        home / "project",
        {
            "reads.py": """
                import importlib
                from pathlib import Path

                def f(name):
                    text = (Path(__file__).parent / "data file.txt").read_text()
                    return text + importlib.import_module(name).VALUE
                """,
            "plugin.py": "VALUE = ' and a plugin'\n",
            "data file.txt": "data",
        },
    )
    monkeypatch.syspath_prepend(str(home / "project"))
    import reads

    chosen = cx.function(reads.f, files=[home / "project" / "data file.txt"], modules=["plugin"])
    assert chosen.submit("plugin").result(60) == "data and a plugin"


def test_a_table_on_a_terminal_and_tabs_in_a_pipe(home: Path) -> None:
    import pty

    cx.function(work.square).submit(1).result(60)
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "clustrix_containers", "ps"]
    subprocess.run(command, stdout=follower, stdin=follower, cwd=ROOT, timeout=60, check=True)
    os.close(follower)
    shown = b""
    try:
        while piece := os.read(leader, 65536):
            shown += piece
    except OSError:
        pass
    os.close(leader)
    assert b"\t" not in shown
    assert b"square-" in shown
    piped = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=60, check=True).stdout
    assert b"\t" in piped


def test_a_function_runs_on_a_base_that_a_dockerfile_makes(
    home: Path, docker_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clustrix_containers.containers import docker
    from clustrix_containers.image.base import interpreter

    monkeypatch.setenv("DOCKER_HOST", docker_host)
    with docker.connect() as client:
        plain = docker.load(client, interpreter.packed(Path(os.environ["CLUSTRIX_CACHE_DIR"])))
    context = home / "con text"
    context.mkdir()
    (context / "marker").write_text("made by a Dockerfile")
    dockerfile = context / "Dockerfile"
    dockerfile.write_text(
        f"FROM {plain}\nENV PATH=/opt/python/bin:/bin\nCOPY marker /etc/from-the-dockerfile\n"
    )
    config = home / "clustrix.yml"
    config.write_text("targets:\n  local: {type: local, runtime: sandbox}\n")
    monkeypatch.setenv("CLUSTRIX_CONFIG", str(config))
    function = cx.function(work.reads_marker, base=str(dockerfile))
    assert function.submit().result(60) == "made by a Dockerfile"
