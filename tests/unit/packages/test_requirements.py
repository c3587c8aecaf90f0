"""Requirements files of the user: requirements.txt and pylock.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from clustrix_containers.capture.bundle import Import
from clustrix_containers.errors import DependencyError
from clustrix_containers.packages.resolution import Resolution, resolve
from tests.installed_tree import install, site

HASH = "a" * 64


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = site(tmp_path)
    install(root, "numpy", "2.3.4")
    install(
        root,
        "pandas",
        "3.1",
        requires=["numpy>=2", "pyarrow; extra == 'parquet'"],
        extras=["parquet"],
    )
    install(root, "pyarrow", "17.0")
    install(root, "torch", "2.1.0+cpu")
    return root


@pytest.fixture
def hand(root: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    def hand(
        text: str,
        *modules: str,
        name: str = "requirements.txt",
        optional: bool = False,
        **options: object,
    ) -> Resolution:
        file = tmp_path / name
        file.write_text(text)
        imports = [Import(module, "run.py:1", optional=optional) for module in modules]
        return resolve(imports, requirements=file, path=[str(root)], **options)  # type: ignore[arg-type]

    return hand


def names(resolution: Resolution) -> list[str]:
    return [distribution.name for distribution in resolution.distributions]


class TestRequirements:
    def test_what_it_names_goes_in_with_its_requirements(self, hand) -> None:
        resolution = hand("# what we need\n\npandas >= 3  # the frame\n", "numpy")
        assert names(resolution) == ["numpy", "pandas"]
        assert resolution.distributions[0].reasons == (
            "run.py:1 imports numpy",
            "pandas 3.1 requires numpy>=2",
        )
        assert resolution.distributions[1].reasons == ("requirements.txt:3 names pandas>=3",)

    def test_forms_of_lines(self, hand) -> None:
        text = (
            "\ufeffpandas[parquet] \\\n  >=3, \\\n  <4\n"
            "absent; sys_platform == 'win32'\n"
            f"NumPy==2.3.4 \\\n    --hash=sha256:{HASH} \\\n    --hash=sha256:{HASH[::-1]}\n"
            "--index-url https://u:p@example.org/simple\n--extra-index-url=https://example.org\n"
            "-f wheels\n-ihttps://example.org\n--pre\n"
        )
        resolution = hand(text)
        assert names(resolution) == ["numpy", "pandas", "pyarrow"]
        assert resolution.hashes == {"numpy": (f"sha256:{HASH}", f"sha256:{HASH}")}
        assert any("hashes" in note.message for note in resolution.notes)

    def test_nested_files_and_constraints(self, hand, tmp_path: Path) -> None:
        (tmp_path / "more").mkdir()
        (tmp_path / "more" / "base.txt").write_text("numpy\n-r ../requirements.txt\n")
        (tmp_path / "limits.txt").write_text("numpy<3\nnot-used==1\n")
        assert names(hand("-r more/base.txt\n-c limits.txt\n")) == ["numpy"]
        (tmp_path / "limits.txt").write_text("\nnumpy<2\n")
        with pytest.raises(DependencyError, match=r"limits\.txt:2 allows numpy<2, and 2\.3\.4"):
            hand("pandas\n--constraint=limits.txt\n")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("numpy\n-e .\n", r"requirements\.txt:2: the option -e is not supported"),
            ("numpy\n\n--install-option=x\n", r"requirements\.txt:3: the option --install-option"),
            ("numpy --config-settings x=y\n", r":1: the option --config-settings"),
            ("numpy \\\n\\\n==\n", r"requirements\.txt:1: not a requirement"),
            ("./numpy.whl\n", r"requirements\.txt:1: not a requirement"),
            ("x @ https://example.org/x.whl", r"requirements\.txt:1: x is a URL requirement"),
            ("\n-r absent.txt", r"requirements\.txt:2: cannot read .*absent\.txt"),
            ("numpy==1.0", r"requirements\.txt:1 names numpy==1\.0, and 2\.3\.4 is installed"),
            ("scipy", r"requirements\.txt:1 names scipy, which is not installed"),
        ],
    )
    def test_errors_name_the_line(self, hand, text: str, message: str) -> None:
        with pytest.raises(DependencyError, match=message):
            hand(text)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(DependencyError, match="cannot read"):
            resolve([], requirements=tmp_path / "absent.txt", path=[])

    def test_an_import_that_it_does_not_cover_is_not_added(self, hand) -> None:
        with pytest.raises(DependencyError) as caught:
            hand("numpy\n", "pyarrow.parquet")
        assert (
            "run.py:1 imports pyarrow.parquet, which pyarrow 17.0 provides" in caught.value.message
        )
        assert names(hand("numpy\n", "pyarrow", optional=True)) == ["numpy"]
        assert names(hand("numpy\n", "pyarrow", packages=["pyarrow"])) == ["numpy", "pyarrow"]


PYLOCK = """\
lock-version = "1.0"
created-by = "test"
"""


def entry(name: str, version: str, marker: str = "") -> str:
    wheel = f"{name}-{version}-py3-none-any.whl"
    condition = f"marker = {marker!r}\n" if marker else ""
    return (
        f'[[packages]]\nname = "{name}"\nversion = "{version}"\n{condition}'
        f'wheels = [{{ name = "{wheel}", url = "https://example.org/{wheel}", hashes = {{ sha256 = "{HASH}" }} }}]\n'
    )


class TestPylock:
    def test_it_is_obeyed(self, hand) -> None:
        text = PYLOCK + entry("numpy", "2.3.4") + entry("pandas", "3.1")
        resolution = hand(
            text + entry("absent", "1", "sys_platform == 'win32'"), "pandas", name="pylock.toml"
        )
        assert names(resolution) == ["numpy", "pandas"]
        assert resolution.hashes["pandas"] == (f"sha256:{HASH}",)
        assert resolution.distributions[1].reasons[0] == "run.py:1 imports pandas"

    def test_extras_and_groups_that_were_not_requested(self, hand) -> None:
        text = (
            PYLOCK + entry("numpy", "2.3.4") + entry("absent", "1", "'test' in dependency_groups")
        )
        assert names(hand(text, name="pylock.dev.toml")) == ["numpy"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (PYLOCK + entry("numpy", "2.3.5"), r"numpy==2\.3\.5, and 2\.3\.4 is installed"),
            (PYLOCK + entry("torch", "2.1.0"), r"torch==2\.1\.0, and 2\.1\.0\+cpu is installed"),
            (
                PYLOCK + entry("pandas", "3.1"),
                r"pylock\.toml does not have numpy: .*pandas 3\.1 requires numpy",
            ),
            (PYLOCK + entry("numpy", "2.3.4") * 2, "two entries of numpy"),
            (PYLOCK + 'requires-python = "<3"\n' + entry("numpy", "2.3.4"), "for Python <3"),
            (
                PYLOCK + "environments = [\"sys_platform == 'win32'\"]\n" + entry("numpy", "2.3.4"),
                "other environments",
            ),
            (PYLOCK, "not a valid pylock"),
            ("lock-version = ", "not a valid pylock"),
            (
                PYLOCK.replace("1.0", "2.0") + entry("numpy", "2.3.4"),
                "version 2.0 is not supported",
            ),
        ],
    )
    def test_or_fails(self, hand, text: str, message: str) -> None:
        with pytest.raises(DependencyError, match=message):
            hand(text, name="pylock.toml")

    def test_a_lock_by_another_name(self, hand) -> None:
        with pytest.raises(DependencyError, match="PEP 751"):
            hand(PYLOCK, name="uv.toml")

    def test_an_import_outside_it_fails(self, hand) -> None:
        with pytest.raises(DependencyError, match=r"pylock\.toml does not name"):
            hand(PYLOCK + entry("numpy", "2.3.4"), "pyarrow", name="pylock.toml")

    def test_the_user_may_add_to_it(self, hand) -> None:
        resolution = hand(
            PYLOCK + entry("torch", "2.1.0+cpu"), name="pylock.toml", packages=["pandas[parquet]"]
        )
        assert names(resolution) == ["numpy", "pandas", "pyarrow", "torch"]
