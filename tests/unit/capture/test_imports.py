"""What the static walk reaches, what it leaves out, and what it says of the rest."""

from __future__ import annotations

import importlib.machinery
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustrix_containers.capture.callables import capture
from clustrix_containers.capture.source import datafiles, syntax
from clustrix_containers.capture.source.modules import Finder
from clustrix_containers.errors import CaptureError, DependencyError
from clustrix_containers.oci.model import Platform

from . import container

F = "def f(): return 1\n"


def _modules(bundle: Any) -> list[str]:
    return [found.module for found in bundle.imports]


def _paths(bundle: Any) -> list[str]:
    return [file.path for file in bundle.files]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import numpy, pandas as pd", ["numpy", "pandas"]),
        ("import matplotlib.pyplot as plt", ["matplotlib.pyplot"]),
        ("from sklearn.datasets import load_digits", ["sklearn.datasets"]),
        ("import os, json, collections.abc, xml.etree.ElementTree", []),
        ("import clustrix_containers, cloudpickle\nfrom clustrix_containers import oci", []),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import nowhere_x", []),
        ("from typing import TYPE_CHECKING as T\nif T:\n    import nowhere_x", []),
        ("import typing as t\nif t.TYPE_CHECKING:\n    import nowhere_x", []),
        (
            (
                "from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    import numpy\n"
                "else:\n    import nowhere_x"
            ),
            ["numpy"],
        ),
        ("if False:\n    import nowhere_x", []),
        ("if __name__ == '__main__':\n    import nowhere_x", []),
        ("if '__main__' == __name__:\n    import nowhere_x\nelse:\n    import numpy", ["numpy"]),
        ("if __name__ != '__main__':\n    import numpy\nelse:\n    import nowhere_x", ["numpy"]),
        ("import sys\nif sys.version_info < (3, 8):\n    import nowhere_x", []),
        ("import sys\nif sys.version_info[0] == 2:\n    import nowhere_x", []),
        ("import sys\nif sys.version_info[:2] >= (3, 8):\n    import numpy", ["numpy"]),
        ("import sys\nif sys.platform == 'win32':\n    import nowhere_x", []),
        ("import sys\nif sys.platform.startswith('win'):\n    import nowhere_x", []),
        ("import os\nif os.name == 'nt' or False:\n    import nowhere_x", []),
        ("try:\n    import nowhere_x\nexcept ImportError:\n    nowhere_x = None", []),
        ("try:\n    import nowhere_x\nexcept (KeyError, ModuleNotFoundError):\n    pass", []),
        ("try:\n    import nowhere_x\nexcept:\n    import numpy", ["numpy"]),
        ("import contextlib\nwith contextlib.suppress(ImportError):\n    import nowhere_x", []),
        ("try:\n    import numpy\nexcept ImportError:\n    pass", ["numpy"]),
        ("import importlib\nm = importlib.import_module('numpy.linalg')", ["numpy.linalg"]),
        ("from importlib import import_module as im\nm = im('numpy')", ["numpy"]),
        ("m = __import__('numpy')", ["numpy"]),
        ("def g():\n    class A:\n        import numpy\n    return A", ["numpy"]),
        ("match 1:\n    case x if x:\n        import numpy", ["numpy"]),
        ("for i in []:\n    import numpy\nelse:\n    import pandas", ["numpy", "pandas"]),
        ("async def g():\n    async with x:\n        import numpy", ["numpy"]),
        ("lambda: __import__('numpy')", ["numpy"]),
        ("import nowhere_x.moves", None),
    ],
)
def test_imports(source: str, expected: list[str] | None, bundle_of: Any) -> None:
    if expected is None:
        with pytest.raises((DependencyError, ModuleNotFoundError)):
            bundle_of({"m.py": F + source}, "m:f")
    else:
        used = "\nused = g" if "def g" in source else ""
        assert _modules(bundle_of({"m.py": F + source + used}, "m:f")) == expected


def test_optional_and_reasons(bundle_of: Any) -> None:
    bundle = bundle_of(
        {
            "m.py": F + "import a.b\ntry:\n    import pandas\nexcept ImportError: pass",
            "a/__init__.py": "",
            "a/b.py": "\n\nimport numpy\nimport a.c",
            "a/c.py": "import pandas, numpy",
        },
        "m:f",
    )
    numpy, pandas = bundle.imports
    assert (numpy.where, numpy.chain, numpy.optional) == ("a/b.py:3", ("m", "a.b"), False)
    # Needed in one place, optional in another: needed.
    assert (pandas.where, pandas.chain, pandas.optional) == ("a/c.py:1", ("m", "a.b", "a.c"), False)
    assert {file.path: file.reason for file in bundle.files}["a/b.py"] == "m.py:2 imports a.b"
    assert _paths(bundle) == ["a/__init__.py", "a/b.py", "a/c.py", "m.py"]


def test_optional_alone(bundle_of: Any) -> None:
    bundle = bundle_of({"m.py": F + "try:\n    import pandas\nexcept ImportError: pass"}, "m:f")
    assert [found.optional for found in bundle.imports] == [True]


def test_relative_star_and_submodules(bundle_of: Any, tmp_path: Path) -> None:
    bundle = bundle_of(
        {
            "pkg/__init__.py": "from .base import *\n__all__ = ['plug', 'BASE']\nname = 1",
            "pkg/base.py": "BASE = 1",
            "pkg/plug.py": "P = 2",
            "pkg/name.py": "not valid python, and not reached",
            "pkg/sub/__init__.py": "",
            "pkg/sub/leaf.py": """
            from . import sibling
            from .. import base
            from ..base import BASE
            from ...pkg.other import O
            import importlib
            LIT = importlib.import_module("..lit", package="pkg.sub")
            def f():
                from pkg import *
                from pkg import name
                return sibling.S, base.BASE, O, plug.P, name, LIT.L
            """.replace("from ...pkg.other", "from ..other")
            .replace("from pkg import *\n                ", "")
            .replace("plug.P", "2"),
            "pkg/sub/sibling.py": "S = 3",
            "pkg/other.py": "O = 4",
            "pkg/lit.py": "L = 5",
            "pkg/unreached.py": "import nowhere_at_all",
            "user.py": "from pkg import *\n",
        },
        "pkg.sub.leaf:f",
    )
    assert container.run(bundle, tmp_path) == (3, 1, 4, 2, 1, 5)
    assert _paths(bundle) == [
        "pkg/__init__.py",
        "pkg/base.py",
        "pkg/lit.py",
        "pkg/other.py",
        "pkg/sub/__init__.py",
        "pkg/sub/leaf.py",
        "pkg/sub/sibling.py",
    ]


def test_star_import_reaches_what_all_names(bundle_of: Any) -> None:
    bundle = bundle_of(
        {
            "pkg/__init__.py": "__all__ = ['plug']\n__all__ += ['here']\nhere = 1",
            "pkg/plug.py": "import numpy",
            "m.py": F + "from pkg import *",
        },
        "m:f",
    )
    assert _modules(bundle) == ["numpy"]


def test_namespace_packages(bundle_of: Any, project: Any, tmp_path: Path, monkeypatch: Any) -> None:
    other = tmp_path / "other root"
    (other / "space" / "deep").mkdir(parents=True)
    (other / "space" / "far.py").write_text("FAR = 2")
    (other / "space" / "deep" / "down.py").write_text("DOWN = 3")
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    bundle = bundle_of(
        {
            "space/near.py": "NEAR = 1",
            "m.py": """
            from space import near, far
            def f():
                import space.deep.down
                from space.deep import down
                return near.NEAR, far.FAR, down.DOWN
            """,
        },
        "m:f",
    )
    assert container.run(bundle, tmp_path) == (1, 2, 3)
    assert _paths(bundle) == ["m.py", "space/deep/down.py", "space/far.py", "space/near.py"]


def test_extend_path(bundle_of: Any, tmp_path: Path, monkeypatch: Any) -> None:
    other = tmp_path / "other"
    (other / "old").mkdir(parents=True)
    init = "from pkgutil import extend_path\n__path__ = extend_path(__path__, __name__)\n"
    (other / "old" / "__init__.py").write_text(init)
    (other / "old" / "far.py").write_text("FAR = 2")
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    bundle = bundle_of(
        {
            "old/__init__.py": init,
            "m.py": "def f():\n    from old import far\n    return far.FAR",
        },
        "m:f",
    )
    assert "old" not in sys.modules
    assert container.run(bundle, tmp_path) == 2


def test_missing_import_names_line_and_way_out(bundle_of: Any) -> None:
    with pytest.raises(DependencyError) as caught:
        bundle_of(
            {
                "m.py": "def f():\n    import a",
                "a.py": "import b",
                "b.py": "\nimport nowhere_x.sub",
            },
            "m:f",
        )
    text = str(caught.value)
    assert "b.py:2 imports nowhere_x.sub" in text
    assert "m > a > b" in text
    assert "packages=" in text


def test_missing_in_the_function_itself_is_an_error(bundle_of: Any) -> None:
    with pytest.raises(DependencyError, match=r"m\.py:2 imports nowhere_x"):
        bundle_of({"m.py": "def f():\n    import nowhere_x"}, "m:f")
    with pytest.raises(DependencyError, match=r"v\.py:3 imports nowhere_x"):
        bundle_of(
            {"v.py": "def o():\n    def g():\n        import nowhere_x\n    return g\nh = o()"},
            "v:h",
        )


def test_missing_where_it_may_never_run_is_a_note(bundle_of: Any) -> None:
    bundle = bundle_of(
        {
            "m.py": "def f(x=0):\n    if x:\n        import gpu_x\ndef g():\n    import plot_x\nh = g"
        },
        "m:f",
    )
    assert [note.where for note in bundle.notes] == ["m.py:3", "m.py:5"]


def test_names_known_only_at_run_time_are_notes(bundle_of: Any) -> None:
    bundle = bundle_of(
        {
            "m.py": F
            + "import importlib, pkgutil\ndef g(n):\n    importlib.import_module(f'x.{n}')\n"
            "    __import__(n)\n    pkgutil.iter_modules(n)\nh = g\n"
        },
        "m:f",
    )
    assert [note.where for note in bundle.notes] == ["m.py:4", "m.py:5", "m.py:6"]
    assert all("modules=" in note.hint and "packages=" in note.hint for note in bundle.notes)


def test_missing_submodule_of_a_local_namespace(bundle_of: Any) -> None:
    with pytest.raises(DependencyError, match=r"space\.gone"):
        bundle_of(
            {
                "space/here.py": "",
                "m.py": "def f():\n    from space import gone",
            },
            "m:f",
        )


def test_modules_option_brings_a_whole_package(bundle_of: Any, tmp_path: Path) -> None:
    bundle = bundle_of(
        {
            "plug/__init__.py": "",
            "plug/one.py": "import numpy",
            "plug/deep/__init__.py": "",
            "plug/deep/two.py": "V = 2",
            "m.py": "import importlib\ndef f(n): return importlib.import_module('plug.' + n).V",
        },
        "m:f",
        modules=["plug"],
    )
    assert _modules(bundle) == ["numpy"]
    assert container.run(bundle, tmp_path, ("deep.two",)) == 2
    with pytest.raises(DependencyError, match="nowhere_x"):
        capture(int, modules=["nowhere_x"])


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfK = 'bom'\r\ndef f():\r\n\treturn K\r\n",
        "# -*- coding: latin-1 -*-\nK = 'bom'\ndef f():\n\treturn K # ü\n".encode("latin-1"),
        "# coding: utf-8\nK = 'bom'\ndef f():\n    é = K\n    return é\n".encode(),
    ],
)
def test_encodings(content: bytes, bundle_of: Any, tmp_path: Path) -> None:
    bundle = bundle_of({"enc.py": content}, "enc:f")
    assert bundle.files[0].content == content
    assert container.run(bundle, tmp_path) == "bom"


def test_unicode_module_names(bundle_of: Any, tmp_path: Path) -> None:
    bundle = bundle_of(
        {"grüße.py": "Ä = 1", "m.py": "def f():\n    import grüße\n    return grüße.Ä"}, "m:f"
    )
    assert container.run(bundle, tmp_path) == 1


def test_syntax_error_in_a_reached_module(bundle_of: Any) -> None:
    with pytest.raises(CaptureError, match=r"bad\.py:2 is not valid Python"):
        bundle_of({"m.py": "def f():\n    import bad", "bad.py": "x = 1\nprint 'old'"}, "m:f")


def test_package_data(bundle_of: Any, tmp_path: Path) -> None:
    bundle = bundle_of(
        {
            "pkg/__init__.py": "",
            "pkg/table.csv": "1,2",
            "pkg/templates/a b.html": "hi",
            "pkg/sub/__init__.py": "",
            "pkg/sub/own.txt": "not reached",
            "pkg/.env": "TOKEN=1",
            "pkg/.hidden": "",
            "pkg/.git/config": "",
            "pkg/__pycache__/x.pyc": b"",
            "pkg/_fast.cpython-36m-x86_64-linux-gnu.so": b"\x7fELF",
            "pkg/id_rsa": "key",
            "res/blob.bin": b"\0\1",
            "res/inner/x.bin": b"",
            "m.py": """
            import pkg
            from importlib.resources import files
            def f():
                return (
                    files(pkg).joinpath("table.csv").read_text(),
                    files("pkg").joinpath("templates", "a b.html").read_text(),
                    files("res").joinpath("blob.bin").read_bytes(),
                )
            """,
        },
        "m:f",
    )
    assert _paths(bundle) == [
        "m.py",
        "pkg/__init__.py",
        "pkg/table.csv",
        "pkg/templates/a b.html",
        "res/blob.bin",
    ]
    assert container.run(bundle, tmp_path) == ("1,2", "hi", b"\0\1")


def test_package_data_with_a_link_to_itself(bundle_of: Any, project: Any) -> None:
    project.write({"pkg/__init__.py": "", "pkg/data/x.txt": "x"})
    (project.root / "pkg/data/loop").symlink_to(project.root / "pkg/data")
    bundle = bundle_of({"m.py": "import pkg\n" + F}, "m:f")
    assert _paths(bundle) == ["m.py", "pkg/__init__.py", "pkg/data/x.txt"]


def test_too_much_data_names_the_biggest(bundle_of: Any, project: Any) -> None:
    project.write({"pkg/__init__.py": "", "pkg/small.txt": "x"})
    with (project.root / "pkg/huge.bin").open("wb") as file:
        file.truncate(datafiles.LIMIT + 1)
    with pytest.raises(CaptureError, match=r"biggest: pkg/huge\.bin \(256 MiB\)"):
        bundle_of({"m.py": "import pkg\n" + F}, "m:f")


def test_named_files(bundle_of: Any, project: Any, tmp_path: Path, monkeypatch: Any) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("o")
    monkeypatch.chdir(project.root)
    bundle = bundle_of(
        {
            "m.py": "from pathlib import Path\nHERE = Path(__file__).parent\n"
            "def f(): return (HERE / 'data/a.txt').read_text()",
            "data/a.txt": "a",
            "data/deep/b.txt": "b",
        },
        "m:f",
        files=["data", outside],
    )
    assert _paths(bundle) == ["data/a.txt", "data/deep/b.txt", "m.py", "outside.txt"]
    assert container.run(bundle, tmp_path) == "a"


@pytest.mark.parametrize(
    "name", [".env", "prod.env", ".git/config", "id_ed25519", "x.key", ".netrc"]
)
def test_named_files_that_must_not_travel(
    name: str, bundle_of: Any, project: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(project.root)
    with pytest.raises(CaptureError, match="must not go into an image"):
        bundle_of({"m.py": F, name: "x"}, "m:f", files=[name])


def test_named_file_that_is_not_there(bundle_of: Any) -> None:
    with pytest.raises(CaptureError, match=r"gone\.txt.*does not exist"):
        bundle_of({"m.py": F}, "m:f", files=["gone.txt"])


def test_two_files_for_one_place(bundle_of: Any, project: Any, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("other")
    with pytest.raises(CaptureError, match=r"two different files would be m\.py"):
        bundle_of({"m.py": F}, "m:f", files=[tmp_path / "m.py"])


def _extension() -> Path:
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES[:1])
    import numpy

    return next(
        path for path in Path(numpy.__file__).parent.rglob("*.so") if path.name.endswith(suffixes)
    )


def test_compiled_local_module(bundle_of: Any, project: Any) -> None:
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    project.write({f"pkg/_fast{suffix}": _extension().read_bytes(), "pkg/__init__.py": ""})
    source = {"m.py": "def f():\n    from pkg import _fast"}
    bundle = bundle_of(source, "m:f", platform=Platform("linux", "amd64"))
    assert f"pkg/_fast{suffix}" in _paths(bundle)
    assert "compiled" in bundle.notes[0].message
    module = sys.modules["m"]
    with pytest.raises(
        CaptureError, match=r"pkg\._fast .* is for amd64, the image is for linux/arm64"
    ):
        capture(module.f, platform=Platform("linux", "arm64"))
    (project.root / f"pkg/_fast{suffix}").write_bytes(b"\xcf\xfa\xed\xfe" + b"\0" * 40)
    with pytest.raises(CaptureError, match="is not for Linux"):
        capture(module.f)


@pytest.mark.parametrize("place", ["", "pkg/"])
def test_compiled_for_another_python(place: str, bundle_of: Any) -> None:
    name = "_slow.cpython-36m-x86_64-linux-gnu.so"
    statement = f"import {place.replace('/', '.')}_slow"
    with pytest.raises(CaptureError, match=r"exists only as _slow\.cpython-36m"):
        bundle_of(
            {
                f"{place}{name}": b"\x7fELF",
                "pkg/__init__.py": "",
                "m.py": f"def f():\n    {statement}",
            },
            "m:f",
        )


def test_sourceless_module_travels_with_a_note(
    bundle_of: Any, project: Any, tmp_path: Path
) -> None:
    import py_compile

    project.write({"bare.py": "B = 1"})
    py_compile.compile(str(project.root / "bare.py"), str(project.root / "bare.pyc"))
    (project.root / "bare.py").unlink()
    bundle = bundle_of({"m.py": "def f():\n    import bare\n    return bare.B"}, "m:f")
    assert container.run(bundle, tmp_path) == 1
    assert [note.where for note in bundle.notes] == ["bare.pyc"]


@pytest.mark.parametrize("style", ["pth", "finder"])
def test_editable_install(style: str, bundle_of: Any, tmp_path: Path, monkeypatch: Any) -> None:
    source = tmp_path / "checkout" / "src"
    (source / "edited").mkdir(parents=True)
    (source / "edited" / "__init__.py").write_text("")
    (source / "edited" / "core.py").write_text(
        "from importlib.metadata import version, entry_points\n"
        "def v(): return version('edited-dist'), [e.name for e in entry_points(group='g')]"
    )
    site = tmp_path / "lib" / "site-packages"
    info = site / "edited_dist-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edited-dist\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[g]\nhello = edited.core:v\n")
    (info / "RECORD").write_text("")
    (info / "direct_url.json").write_text(
        json.dumps({"url": (tmp_path / "checkout").as_uri(), "dir_info": {"editable": True}})
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    if style == "pth":
        monkeypatch.setattr(sys, "path", [*sys.path, str(source)])
    else:

        class EditableFinder:
            @classmethod
            def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
                if name != "edited":
                    return None
                from importlib.util import spec_from_file_location

                return spec_from_file_location(name, source / "edited" / "__init__.py")

        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, EditableFinder])
    bundle = bundle_of({"m.py": "def f():\n    from edited.core import v\n    return v()"}, "m:f")
    assert "edited" not in sys.modules
    assert container.run(bundle, tmp_path) == ("1.2", ["hello"])
    assert "edited_dist-1.2.dist-info/METADATA" in _paths(bundle)
    assert "edited_dist-1.2.dist-info/RECORD" not in _paths(bundle)


def test_nothing_is_executed(bundle_of: Any, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    bundle = bundle_of(
        {
            "m.py": "def f():\n    import side.effect",
            "side/__init__.py": f"open({str(mark)!r}, 'w')",
            "side/effect.py": f"open({str(mark)!r}, 'w')",
        },
        "m:f",
    )
    assert "side/effect.py" in _paths(bundle)
    assert not mark.exists()
    assert "side" not in sys.modules


def test_local_module_shadowing_the_standard_library(
    bundle_of: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)
    bundle = bundle_of(
        {"this.py": "V = 1", "m.py": "def f():\n    import this\n    return this.V"}, "m:f"
    )
    assert container.run(bundle, tmp_path) == 1


def test_a_changed_file_is_read_again(bundle_of: Any, project: Any) -> None:
    bundle = bundle_of({"m.py": "import a\n" + F, "a.py": "import numpy "}, "m:f")
    assert _modules(bundle) == ["numpy"]
    project.write({"a.py": "import pandas"})
    assert _modules(capture(sys.modules["m"].f)) == ["pandas"]


def test_finder_agrees_with_the_import_system() -> None:
    finder = Finder()
    for name in ("json", "json.decoder", "sys", "os.path", "collections.abc", "_json"):
        assert finder.find(name).kind == "stdlib", name
    for name in ("numpy", "numpy.linalg", "yaml", "six", "docker.models"):
        if importlib.util.find_spec(name.partition(".")[0]):
            assert finder.find(name).kind == "installed", name
    assert finder.find("nowhere_x.y.z").kind == "missing"


_names = st.sampled_from(["a", "b", "c", "d", "e"])
_imports = st.lists(
    st.one_of(
        _names.map("import p.{}".format),
        _names.map("from p import {}".format),
        _names.map("from . import {}".format),
        _names.map("from .{} import *".format),
        _names.map("def g():\n    import p.{}\nh = g".format),
        _names.map("try:\n    from . import {}\nexcept ImportError:\n    pass".format),
    ),
    max_size=3,
)


@settings(max_examples=40, deadline=None)
@given(graph=st.dictionaries(_names, _imports, min_size=5, max_size=5), start=_names)
def test_walk_reaches_exactly_the_closure(
    graph: dict[str, list[str]], start: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("graph")
    (root / "p").mkdir()
    (root / "p" / "__init__.py").write_text("")
    for name, statements in graph.items():
        (root / "p" / f"{name}.py").write_text("\n".join(statements))
    edges = {
        name: {other for other in graph for text in texts if _mentions(text, other)}
        for name, texts in graph.items()
    }
    reached, queue = set(), [start]
    while queue:
        name = queue.pop()
        if name not in reached:
            reached.add(name)
            queue.extend(edges[name])
    sys.path.insert(0, str(root))
    try:
        bundle = capture(int, modules=[f"p.{start}"])
    finally:
        sys.path.remove(str(root))
        shutil.rmtree(root)
    assert {Path(path).stem for path in _paths(bundle)} == reached | {"__init__"}


def _mentions(text: str, name: str) -> bool:
    return any(
        f"{word}{name}" in text
        for word in ("import p.", "from p import ", "from . import ", "from .")
    )


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "ignore"))
)
def test_any_bytes_are_source_or_a_capture_error(content: bytes) -> None:
    path = "x.py"
    try:
        syntax.parse(content, path)
    except CaptureError as error:
        path = error.fields["path"]
    assert path == "x.py"


def test_only_functions_that_can_be_reached_bring_their_imports(bundle_of: Any) -> None:
    module = """
import json
import clustrix_containers as cx
from local_one import first as renamed

@cx.function(cpus=1)
def f():
    return g() + renamed()

def g():
    import numpy
    return 1

def never():
    import pandas
    import local_never

@cx.function
def another_one_to_submit():
    import sklearn

def by_name():
    import matplotlib

TABLE = {"x": "by_name"}
__all__ = ["never"]

class Model:
    def called_by_a_library(self):
        import yaml

def register(function): return function

@register
def registered():
    import packaging

if __name__ == "__main__":
    never()
"""
    files = {
        "m.py": module,
        "local_one.py": "def first():\n    import rich\ndef second():\n    import hypothesis\n",
        "local_never.py": "",
    }
    bundle = bundle_of(files, "m:f")
    assert {item.module for item in bundle.imports} == {
        "numpy",
        "matplotlib",
        "yaml",
        "packaging",
        "rich",
    }
    assert "local_never.py" not in {file.path for file in bundle.files}


def test_what_modules_names_is_taken_whole(bundle_of: Any) -> None:
    files = {
        "m.py": "def f():\n    pass\n",
        "plugin.py": "def hook():\n    import numpy\n",
    }
    bundle = bundle_of(files, "m:f", modules=["plugin"])
    assert [item.module for item in bundle.imports] == ["numpy"]
