"""Imports and requests become installed distributions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clustrix_containers.capture.bundle import Import
from clustrix_containers.errors import DependencyError
from clustrix_containers.packages.resolution import Resolution, check_environment, resolve, suggest
from tests.installed_tree import install, site


def imports(*modules: str) -> list[Import]:
    return [Import(module, f"run.py:{line}") for line, module in enumerate(modules, 1)]


def names(resolution: Resolution) -> list[str]:
    return [distribution.name for distribution in resolution.distributions]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return site(tmp_path)


def here(root: Path, *modules: str, **options: object) -> Resolution:
    return resolve(imports(*modules), path=[str(root)], **options)  # type: ignore[arg-type]


class TestModules:
    def test_a_module_by_another_name_than_its_distribution(self, root: Path) -> None:
        install(
            root, "scikit-learn", files={"sklearn/__init__.py": "", "sklearn/svm/__init__.py": ""}
        )
        install(root, "PyYAML", files={"yaml/__init__.py": "", "_yaml/__init__.py": ""})
        install(root, "opencv-python", files={"cv2/__init__.py": ""})
        assert names(here(root, "sklearn.svm", "yaml", "cv2")) == [
            "opencv-python", "pyyaml", "scikit-learn",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        "file",
        ["six.py", "six.cpython-311-x86_64-linux-gnu.so", "six.abi3.so", "six.so", "six.pyc"],
    )
    def test_a_single_file(self, root: Path, file: str) -> None:
        install(root, "six-things", files={file: ""})
        install(root, "sixty", files={"sixty/__init__.py": "", "six_more.py": ""})
        assert names(here(root, "six.moves.urllib")) == ["six-things"]

    def test_what_only_looks_like_a_module(self, root: Path) -> None:
        install(root, "stubs", files={"thing.pyi": "", "thing.libs/thing.so": "", "thing.txt": ""})
        with pytest.raises(DependencyError, match=r"run\.py:1 imports thing, and no installed"):
            here(root, "thing")

    def test_the_part_of_a_namespace_that_is_used(self, root: Path) -> None:
        install(root, "google-cloud-storage", files={"google/cloud/storage/__init__.py": ""})
        install(root, "google-cloud-bigquery", files={"google/cloud/bigquery/__init__.py": ""})
        install(root, "google-auth", files={"google/auth/__init__.py": ""})
        assert names(here(root, "google.cloud.storage.Client")) == ["google-cloud-storage"]
        assert names(here(root, "google.cloud")) == [
            "google-cloud-bigquery",
            "google-cloud-storage",
        ]
        with pytest.raises(DependencyError, match=r"google\.cloud\.pubsub"):
            here(root, "google.cloud.pubsub")

    def test_a_namespace_over_two_directories(self, tmp_path: Path) -> None:
        one, two = site(tmp_path / "one"), site(tmp_path / "two")
        install(one, "a", files={"ns/a/__init__.py": ""})
        install(two, "b", files={"ns/b.py": ""})
        assert names(resolve(imports("ns.b"), path=[str(one), str(two)])) == ["b"]

    def test_a_legacy_namespace_with_an_init(self, root: Path) -> None:
        install(root, "zope-a", files={"zope/__init__.py": "", "zope/a/__init__.py": ""})
        install(root, "zope-b", files={"zope/__init__.py": "", "zope/b/__init__.py": ""})
        assert names(here(root, "zope.b")) == ["zope-b"]
        assert names(here(root, "zope")) == ["zope-a", "zope-b"]

    def test_two_distributions_with_the_same_module(self, root: Path) -> None:
        install(root, "opencv-python", files={"cv2/__init__.py": ""})
        install(root, "opencv-python-headless", files={"cv2/__init__.py": ""})
        assert names(here(root, "cv2")) == ["opencv-python", "opencv-python-headless"]

    def test_a_vendored_module_belongs_to_its_vendor(self, root: Path) -> None:
        install(root, "vendor", files={"vendor/__init__.py": "", "vendor/_vendor/six.py": ""})
        install(root, "six", files={"six.py": ""})
        assert names(here(root, "vendor._vendor.six")) == ["vendor"]

    def test_a_directory_that_a_pth_file_puts_on_the_path(self, root: Path) -> None:
        install(root, "pywin", files={"win/lib/wincon.py": "", "pywin.pth": "win/lib\n"})
        install(root, "other", files={"other/wincon.py": ""})
        path = [str(root), str(root / "win" / "lib")]
        assert names(resolve(imports("wincon"), path=path)) == ["pywin"]

    def test_the_first_directory_of_the_path_wins(self, tmp_path: Path) -> None:
        first, second = site(tmp_path / "first"), site(tmp_path / "second")
        install(first, "thing", "2.0")
        install(second, "thing", "1.0")
        install(second, "thing-fork", "1.0", files={"thing/__init__.py": ""})
        (thing,) = resolve(imports("thing"), path=[str(first), str(second)]).distributions
        assert (thing.version, thing.location) == ("2.0", first)

    def test_what_an_interrupted_uninstall_leaves(self, root: Path) -> None:
        install(root, "thing", "2.0")
        (root / "~hing-1.0.dist-info").mkdir()
        (root / "thing-1.0.dist-info").mkdir()
        install(root, "~hing", "9.0", files={})
        (thing,) = here(root, "thing").distributions
        assert thing.version == "2.0"

    def test_the_standard_library_and_ourselves_need_nothing(self, root: Path) -> None:
        assert (
            names(here(root, "os.path", "clustrix_containers", "clustrix_containers.errors")) == []
        )

    def test_an_optional_import_that_is_not_installed(self, root: Path) -> None:
        optional = [Import("missing", "run.py:1", optional=True)]
        resolution = resolve(optional, path=[str(root)])
        assert (resolution.distributions, resolution.notes) == ((), ())

    def test_a_loose_file_is_to_be_sent_as_source(self, root: Path) -> None:
        (root / "loose.py").write_text("")
        with pytest.raises(DependencyError, match=r"loose\.py belongs to no installed") as caught:
            here(root, "loose")
        assert "modules=['loose']" in str(caught.value)

    def test_all_that_is_missing_is_reported_at_once(self, root: Path) -> None:
        with pytest.raises(DependencyError) as caught:
            here(root, "absent_one", "absent_two")
        assert "absent_one" in str(caught.value)
        assert "run.py:2 imports absent_two" in str(caught.value)

    def test_a_new_distribution_is_seen(self, root: Path) -> None:
        install(root, "one")
        assert names(here(root, "one")) == ["one"]
        install(root, "two")
        assert names(here(root, "two")) == ["two"]


class TestWithoutRecord:
    @pytest.mark.parametrize("form", ["directory", "file", "dist-info"])
    def test_it_is_found_by_its_top_level_names(self, root: Path, form: str) -> None:
        (root / "dbus").mkdir()
        (root / "dbus" / "__init__.py").write_text("")
        metadata = "Metadata-Version: 1.1\nName: dbus-python\nVersion: 1.3.2\n"
        info = root / "dbus_python-1.3.2.egg-info"
        if form == "file":
            info.write_text(metadata)
            (root / "dbus").rename(root / "dbus_python")
        elif form == "directory":
            info.mkdir()
            (info / "PKG-INFO").write_text(metadata)
            (info / "top_level.txt").write_text("_dbus_bindings\ndbus\n")
        else:
            info = install(
                root,
                "dbus-python",
                "1.3.2",
                files={},
                record=False,
                info_files={"top_level.txt": "dbus\n"},
            )
        (found,) = here(root, "dbus_python" if form == "file" else "dbus").distributions
        assert (found.name, found.version, found.info) == ("dbus-python", "1.3.2", info)

    def test_its_requirements_are_in_setuptools_own_form(self, root: Path) -> None:
        info = root / "old-1.0.egg-info"
        info.mkdir()
        (root / "old.py").write_text("")
        (info / "PKG-INFO").write_text("Name: old\nVersion: 1.0\nProvides-Extra: fast\n")
        (info / "top_level.txt").write_text("old\n")
        (info / "requires.txt").write_text(
            'base>=1\n\n[:sys_platform == "win32"]\nwindows\n\n[fast]\nspeed\n'
            '\n[fast:sys_platform == "win32"]\nwinspeed\n'
        )
        install(root, "base")
        install(root, "speed")
        assert names(here(root, "old")) == ["base", "old"]
        assert names(here(root, packages=["old[fast]"])) == ["base", "old", "speed"]


class TestClosure:
    def test_requirements_with_their_reasons(self, root: Path) -> None:
        install(
            root,
            "scikit-learn",
            "1.7",
            files={"sklearn/__init__.py": ""},
            requires=["numpy>=1.22", "scipy"],
        )
        install(root, "scipy", "1.16", requires=["numpy<3"])
        install(root, "numpy", "2.3")
        resolution = here(root, "sklearn.datasets", "scipy")
        numpy = resolution.distributions[0]
        assert numpy.reasons == (
            "scikit-learn 1.7 requires numpy>=1.22",
            "scipy 1.16 requires numpy<3",
        )
        assert resolution.distributions[2].reasons == (
            "run.py:2 imports scipy",
            "scikit-learn 1.7 requires scipy",
        )

    def test_the_local_modules_on_the_way_are_named(self, root: Path) -> None:
        install(root, "numpy")
        found = resolve(
            [
                Import("numpy", "deep.py:10", ("run", "deep")),
                Import("numpy.linalg", "run.py:10"),
                Import("numpy", "run.py:9"),
            ],
            path=[str(root)],
        )
        assert found.distributions[0].reasons == (
            "run.py:9 imports numpy",
            "run.py:10 imports numpy.linalg",
            "deep.py:10 imports numpy (through run, deep)",
        )

    def test_the_shortest_chain_is_named(self, root: Path) -> None:
        install(root, "a", requires=["b"])
        install(root, "b", requires=["c"])
        install(root, "c", requires=["goal"])
        install(root, "z", requires=["goal"])
        install(root, "goal", requires=["absent"])
        chain = r"run\.py:2 imports z, z 1\.0 requires goal, goal 1\.0 requires absent\b"
        with pytest.raises(DependencyError, match=chain):
            here(root, "a", "z")

    def test_a_cycle_ends(self, root: Path) -> None:
        install(root, "egg", requires=["hen"])
        install(root, "hen", requires=["egg"])
        assert names(here(root, "hen")) == ["egg", "hen"]

    def test_a_distribution_that_requires_itself(self, root: Path) -> None:
        install(
            root, "odd", requires=["odd>=1", "odd[more]", "b; extra == 'more'"], extras=["more"]
        )
        install(root, "b")
        assert names(here(root, "odd")) == ["b", "odd"]

    def test_markers_are_the_targets(self, root: Path) -> None:
        install(
            root,
            "thing",
            requires=[
                "windows; sys_platform == 'win32'",
                "linux; sys_platform == 'linux'",
                "old; python_version < '3'",
                "arm; platform_machine == 'aarch64'",
            ],
        )
        install(root, "linux")
        install(root, "arm")
        assert names(here(root, "thing", environment={"platform_machine": "x86_64"})) == [
            "linux",
            "thing",
        ]
        assert "arm" in names(here(root, "thing", environment={"platform_machine": "aarch64"}))

    def test_extras_are_followed_only_on_request(self, root: Path) -> None:
        install(
            root,
            "dask",
            requires=[
                "dask[array]; extra == 'dataframe'",
                "pandas; extra == 'dataframe'",
                "numpy; extra == 'Array'",
                "windows; extra == 'array' and sys_platform == 'win32'",
            ],
            extras=["array", "dataframe"],
        )
        install(root, "pandas")
        install(root, "numpy")
        assert names(here(root, "dask")) == ["dask"]
        resolution = here(root, "dask", packages=["dask[dataframe]>=1"])
        assert names(resolution) == ["dask", "numpy", "pandas"]
        assert "packages= names dask[dataframe]>=1" in resolution.distributions[0].reasons
        assert resolution.distributions[1].reasons == ("dask 1.0 requires numpy (extra array)",)

    def test_extras_of_requirements_propagate(self, root: Path) -> None:
        install(root, "top", requires=["mid[Fast_Path]"])
        install(
            root,
            "mid",
            requires=["speed; extra == 'fast-path'", "mid2; extra == 'none'"],
            extras=["fast-path"],
        )
        install(root, "speed")
        assert names(here(root, "mid", "top")) == ["mid", "speed", "top"]

    def test_an_extra_that_is_not_there_is_noted(self, root: Path) -> None:
        install(root, "dask")
        (note,) = here(root, packages=["dask[nothing]"]).notes
        assert "dask 1.0 has no extra 'nothing'" in note.message

    def test_a_version_out_of_range_is_noted(self, root: Path) -> None:
        install(root, "top", requires=["numpy<2"])
        install(root, "numpy", "2.3")
        resolution = here(root, "top")
        assert names(resolution) == ["numpy", "top"]
        assert resolution.notes[0].message == "top 1.0 requires numpy<2, and 2.3 is installed"
        assert "pip install 'numpy<2'" in resolution.notes[0].hint

    def test_a_pre_release_and_a_local_version_are_in_range(self, root: Path) -> None:
        install(root, "top", requires=["torch>=2.0", "beta>=1"])
        install(root, "torch", "2.1.0+cpu")
        install(root, "beta", "2.0rc1")
        assert here(root, "top").notes == ()

    def test_a_requirement_that_is_not_installed(self, root: Path) -> None:
        install(root, "a", requires=["b"])
        install(root, "b", requires=["absent>=2; python_version >= '3'"])
        with pytest.raises(DependencyError) as caught:
            here(root, "a")
        assert caught.value.message == (
            "absent is not installed here: run.py:1 imports a, a 1.0 requires b, b 1.0 requires absent>=2"
        )
        assert caught.value.hint == "pip install 'absent>=2'"

    def test_a_malformed_requirement_of_an_old_distribution(self, root: Path) -> None:
        install(root, "old", requires=["pytz>dev", "fine"])
        install(root, "fine", "not-a-version")
        resolution = here(root, "old")
        assert names(resolution) == ["fine", "old"]
        assert "'pytz>dev' is malformed" in resolution.notes[0].message

    def test_a_requirement_by_url(self, root: Path) -> None:
        install(root, "top", requires=["thing @ https://example.org/thing-1.whl"])
        install(root, "thing")
        assert names(here(root, "top")) == ["thing", "top"]

    def test_we_are_never_in(self, root: Path) -> None:
        install(root, "clustrix-containers", requires=["rich"])
        install(root, "plugin", requires=["clustrix_containers>=0.1"])
        assert names(here(root, "plugin", packages=["clustrix-containers"])) == ["plugin"]

    def test_the_order_of_imports_does_not_matter(self, root: Path) -> None:
        for name in "abcd":
            install(root, name, requires=["shared", "abcd"["abcd".index(name) - 1]])
        install(root, "shared")
        forward = imports(*"abcd")
        assert resolve(forward, path=[str(root)]) == resolve(forward[::-1], path=[str(root)])


class TestRequests:
    def test_packages_must_be_installed(self, root: Path) -> None:
        with pytest.raises(DependencyError) as caught:
            here(root, packages=["dask[dataframe]>=2024"])
        assert (
            "packages= names dask[dataframe]>=2024, which is not installed" in caught.value.message
        )
        assert caught.value.hint == "pip install 'dask[dataframe]>=2024'"

    def test_packages_must_have_the_version(self, root: Path) -> None:
        install(root, "pyarrow", "15.0")
        with pytest.raises(DependencyError, match=r"pyarrow>=16, and 15\.0 is installed"):
            here(root, packages=["pyarrow>=16"])

    @pytest.mark.parametrize(
        "text", ["", "not a requirement", "x @ https://u:secret@h/x.whl", "./x.whl", "x>>1"]
    )
    def test_packages_must_be_requirements(self, root: Path, text: str) -> None:
        with pytest.raises(DependencyError, match="packages=") as caught:
            here(root, packages=[text])
        assert "secret" not in str(caught.value)

    def test_a_marker_that_does_not_hold(self, root: Path) -> None:
        assert names(here(root, packages=["x; sys_platform == 'win32'"])) == []

    def test_the_whole_environment(self, root: Path) -> None:
        for name in ("pip", "setuptools", "wheel", "numpy"):
            install(root, name)
        install(root, "clustrix-containers", requires=["rich", "pyyaml"])
        install(root, "rich", requires=["pygments"])
        install(root, "pygments")
        install(root, "pyyaml")
        install(root, "dask", requires=["pyyaml", "absent"])
        resolution = here(root, everything=True)
        assert names(resolution) == ["dask", "numpy", "pyyaml"]
        assert resolution.left_out == ()
        assert (
            "dask 1.0 requires absent, which is not installed here" in resolution.notes[0].message
        )
        assert names(here(root, "rich", everything=True)) == [
            "dask",
            "numpy",
            "pygments",
            "pyyaml",
            "rich",
        ]

    def test_not_both_everything_and_a_file(self, root: Path) -> None:
        with pytest.raises(DependencyError, match="both"):
            here(root, everything=True, requirements=root / "requirements.txt")


class TestEditable:
    @pytest.fixture
    def editable(self, root: Path) -> Path:
        install(root, "base")
        direct = json.dumps({"dir_info": {"editable": True}, "url": "file:///src/mine"})
        return install(
            root,
            "mine",
            files={"_mine.pth": "/src/mine"},
            requires=["base"],
            info_files={"direct_url.json": direct},
        )

    def test_a_requirement_on_it_is_noted(self, root: Path, editable: Path) -> None:
        install(root, "top", requires=["mine"])
        resolution = here(root, "top")
        assert names(resolution) == ["top"]
        assert "editable" in resolution.notes[0].message
        assert "modules=['mine']" in resolution.notes[0].hint

    def test_it_cannot_be_named_as_a_package(self, root: Path, editable: Path) -> None:
        with pytest.raises(DependencyError, match="editable"):
            here(root, packages=["mine"])

    def test_it_is_not_in_the_whole_environment(self, root: Path, editable: Path) -> None:
        resolution = here(root, everything=True)
        assert names(resolution) == ["base"]
        assert "mine is installed as editable" in resolution.notes[0].message

    def test_an_egg_link(self, root: Path) -> None:
        (root / "mine.egg-link").write_text("/src/mine\n.")
        install(root, "top", requires=["mine"])
        assert names(here(root, "top")) == ["top"]

    def test_the_metadata_of_a_source_tree_on_the_path(self, root: Path, tmp_path: Path) -> None:
        source = tmp_path / "src"
        (source / "mine.egg-info").mkdir(parents=True)
        (source / "mine.egg-info" / "PKG-INFO").write_text("Name: mine\nVersion: 1.0\n")
        (source / "mine").mkdir()
        install(root, "top", requires=["mine"])
        resolution = resolve(imports("top"), path=[str(source), str(root)])
        assert names(resolution) == ["top"]
        assert "editable" in resolution.notes[0].message


class TestConda:
    def test_an_environment_of_conda_is_refused(self, tmp_path: Path) -> None:
        check_environment(tmp_path)
        (tmp_path / "conda-meta").mkdir()
        with pytest.raises(DependencyError, match="conda environments are not supported") as caught:
            check_environment(tmp_path)
        assert "venv" in (caught.value.hint or "")

    def test_a_distribution_of_conda_is_refused(self, root: Path) -> None:
        install(root, "numpy", installer="conda")
        with pytest.raises(DependencyError, match=r"numpy 1\.0 comes from conda"):
            here(root, "numpy")


class TestLeftOut:
    @pytest.fixture
    def pandas(self, root: Path) -> Path:
        for name in ("pyarrow", "pytest", "openpyxl"):
            install(root, name, "17.0")
        return install(
            root,
            "pandas",
            requires=[
                "pyarrow>=16; extra == 'pyarrow'",
                "pandas[pyarrow]; extra == 'parquet'",
                "pytest; extra == 'test'",
                "pytest; extra == 'all'",
                "openpyxl; extra == 'all'",
                "absent; extra == 'excel'",
            ],
            extras=["pyarrow", "parquet", "test", "all", "excel"],
        )

    def test_installed_back_ends_are_listed(self, root: Path, pandas: Path) -> None:
        pyarrow = here(root, "pandas").left_out[-1]
        assert (pyarrow.name, pyarrow.by, pyarrow.extras) == (
            "pyarrow",
            "pandas",
            ("parquet", "pyarrow"),
        )
        assert pyarrow.message == (
            "pyarrow 17.0 is installed and pandas can use it (extra parquet, pyarrow): "
            "add packages=['pyarrow'] if you call read_parquet, read_feather or the pyarrow back end"
        )

    def test_developers_tools_are_not(self, root: Path, pandas: Path) -> None:
        assert [left.name for left in here(root, "pandas").left_out] == ["openpyxl", "pyarrow"]

    def test_what_is_in_is_not_left_out(self, root: Path, pandas: Path) -> None:
        assert [
            left.name for left in here(root, "pandas", packages=["pandas[parquet]"]).left_out
        ] == ["openpyxl"]

    def test_a_well_known_pair_without_an_extra(self, root: Path) -> None:
        install(root, "scikit-learn", files={"sklearn/__init__.py": ""})
        install(root, "pandas")
        (left,) = here(root, "sklearn").left_out
        assert "set_output" in left.message

    def test_suggest(self, root: Path, pandas: Path) -> None:
        path = [str(root)]
        assert suggest("pyarrow.parquet", path) == (
            "pyarrow 17.0, installed here, provides pyarrow.parquet: add packages=['pyarrow']."
        )
        assert "pip install" in (suggest("absent", path) or "")
        (root / "loose.py").write_text("")
        assert suggest("loose", path) == "loose is local source here: add modules=['loose']."
        assert suggest("os.path", path) is None


class TestThisEnvironment:
    def test_real_distributions(self) -> None:
        resolution = resolve(
            imports(
                "sklearn.datasets", "PIL.Image", "dateutil.parser", "yaml", "mpl_toolkits.mplot3d"
            )
        )
        found = set(names(resolution))
        assert {
            "scikit-learn",
            "scipy",
            "numpy",
            "joblib",
            "pillow",
            "python-dateutil",
            "pyyaml",
            "matplotlib",
        } <= found
        assert not found & {"pip", "pytest", "clustrix-containers", "rich", "pandas"}
        assert "pandas" in [left.name for left in resolution.left_out]
        for distribution in resolution.distributions:
            assert (distribution.info / "RECORD").is_file()
            assert distribution.reasons

    def test_it_agrees_with_importlib_metadata(self) -> None:
        import importlib.machinery
        import importlib.metadata

        from clustrix_containers.packages.installed import search_path

        ours = {d.name: d for d in search_path().by_name.values()}
        theirs = list(importlib.metadata.distributions())
        assert len(ours) >= len({d.name for d in theirs}) > 20
        for distribution in theirs:
            mine = ours[importlib.metadata.Prepared.normalize(distribution.name).replace("_", "-")]
            assert mine.version == distribution.version
            assert sorted(mine.requires) == sorted(distribution.requires or [])
        # A top_level.txt may name what is not there.
        installed = {str(file).partition("/")[0] for d in theirs for file in d.files or ()}
        installed |= {name.partition(".")[0] for name in installed}
        for module, owners in importlib.metadata.packages_distributions().items():
            if (
                module.isidentifier()
                and "/" not in module
                and module not in ("clustrix_containers", "__pycache__")
                and module in installed
            ):
                found = {owner.name for owner in search_path().find(module)[0]}
                normal = {
                    importlib.metadata.Prepared.normalize(o).replace("_", "-") for o in owners
                }
                # Some say that they have a top-level module which nobody can import.
                assert found or importlib.machinery.PathFinder.find_spec(module) is None, module
                assert found <= normal, module

    def test_a_fresh_process_resolves_quickly_and_without_heavy_imports(self) -> None:
        script = (
            "import sys, time\n"
            "from clustrix_containers.capture.bundle import Import\n"
            "from clustrix_containers.packages.resolution import resolve\n"
            "start = time.process_time()\n"
            "resolve([Import('sklearn.datasets', 'run.py:1'), Import('pandas', 'run.py:2')])\n"
            "print(time.process_time() - start, 'importlib.metadata' in sys.modules)\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        runs = [
            subprocess.run(
                [sys.executable, "-c", script],
                capture_output=True,
                text=True,
                check=True,
                env=environment,
            ).stdout.split()
            for _ in range(3)
        ]
        assert min(float(seconds) for seconds, _ in runs) < 0.2
        assert {heavy for _, heavy in runs} == {"False"}
