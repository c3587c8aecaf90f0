"""The command line, as a user and as a script would use it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

SQUARES = '''
"""A module of a user."""
import clustrix_containers as cx


@cx.function(cpus=1)
def square(x: int, *, power: int = 2) -> int:
    print("working on", x)
    return x**power


def greet(name, loud=False):
    return f"hello {name}" + "!" * loud


def fails(x):
    raise ValueError(f"not {x}")  # this very line
'''


@pytest.fixture
def cxc(home: Path):
    """Run ``cxc`` in a directory with ``squares.py``; gives the finished process."""
    project = home / "pro ject 'ü'"
    project.mkdir()
    (project / "squares.py").write_text(SQUARES, "utf-8")

    def run(*words: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "clustrix_containers", *words],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        assert "clustrix_containers/cli" not in done.stderr, done.stderr
        return done

    run.project = project  # type: ignore[attr-defined]
    return run


def test_run_prints_the_result_and_shows_the_output(cxc) -> None:
    done = cxc("run", "squares.py:square", "5")
    assert done.stdout == "25\n"
    assert "working on 5" in done.stderr


def test_run_takes_keywords_literals_and_strings(cxc) -> None:
    assert cxc("run", "squares.py:square", "2", "power=10").stdout == "1024\n"
    assert (
        cxc("run", "squares.py:greet", 'it\'s "me" ü', "loud=True").stdout
        == 'hello it\'s "me" ü!\n'
    )
    assert json.loads(cxc("run", "--json", "squares.py:greet", "[1, 2]").stdout) == "hello [1, 2]"


def test_the_users_exception_shows_its_line_and_fails(cxc) -> None:
    done = cxc("run", "squares.py:fails", "3", code=1)
    assert "ValueError: not 3" in done.stderr
    assert "this very line" in done.stderr
    assert done.stdout == ""


def test_a_module_that_is_not_in_the_image_says_which_package_to_add(cxc) -> None:
    text = (
        "import importlib\n\ndef work(name):\n    return importlib.import_module(name).__name__\n"
    )
    (cxc.project / "dynamic.py").write_text(text)
    done = cxc("run", "dynamic.py:work", "pytest", code=1)
    assert "ModuleNotFoundError: No module named 'pytest'" in done.stderr
    assert "packages=['pytest']" in done.stderr
    assert cxc("run", "--package", "pytest", "dynamic.py:work", "pytest").stdout == "pytest\n"


def test_detach_ps_logs_result_rerun(cxc) -> None:
    run = cxc("run", "--detach", "squares.py:square", "6").stdout.strip()
    assert cxc("result", run).stdout == "36\n"
    assert cxc("logs", run).stdout == "working on 6\n"
    rows = json.loads(cxc("ps", "--json").stdout)
    assert [(row["run"], row["state"], row["count"]) for row in rows] == [(run, "succeeded", 1)]
    piped = cxc("ps").stdout.splitlines()
    assert piped[0].split("\t")[0] == "RUN"
    assert piped[1].split("\t")[0] == run
    again = cxc("rerun", rows[0]["image"][7:19])
    assert again.stdout == "36\n"
    assert rows[0]["image"] in again.stderr
    target = cxc.project / "out put.pickle"
    cxc("result", run, "--output", str(target))
    assert pickle.loads(target.read_bytes()) == 36


def test_cancel(cxc) -> None:
    (cxc.project / "slow.py").write_text("import time\n\ndef slow():\n    time.sleep(100)\n")
    run = cxc("run", "-d", "slow.py:slow").stdout.strip()
    cxc("cancel", run)
    assert "cancel" in cxc("result", run, code=1).stderr.lower()
    assert json.loads(cxc("ps", "--json").stdout)[0]["state"] == "cancelled"


def test_build_and_explain_agree_and_are_stable(cxc) -> None:
    built = json.loads(cxc("build", "--json", "squares.py:square").stdout)
    assert cxc("build", "squares.py:square", PYTHONHASHSEED="7").stdout.strip() == built["digest"]
    kinds = [layer["kind"] for layer in built["layers"]]
    assert kinds[0] == "base"
    assert kinds[-1] == "code"
    explained = json.loads(cxc("explain", "--json", "squares.py:square").stdout)
    assert [file["path"] for file in explained["files"]] == ["squares.py"]
    assert explained["packages"] == []
    assert "squares.py" in cxc("explain", "squares.py:square").stdout


def test_prune_keeps_what_is_young_and_removes_what_is_old(cxc) -> None:
    run = cxc("run", "--detach", "squares.py:square", "6").stdout.strip()
    cxc("result", run)
    cxc("prune")
    assert len(json.loads(cxc("ps", "--json").stdout)) == 1
    cxc("prune", "--older-than", "0.001s")
    assert json.loads(cxc("ps", "--json").stdout) == []
    assert not list(Path(os.environ["CLUSTRIX_STATE_DIR"]).glob("runs/*"))


def test_doctor(cxc) -> None:
    findings = json.loads(cxc("doctor", "--json").stdout)
    assert {finding["name"] for finding in findings} >= {"python", "images", "runs"}


BAD = [
    (("run", "squares.py"), "FILE.py:FUNC"),
    (("run", "nothing.py:f"), "no such file: nothing.py"),
    (("run", "squares.py:cube", "1"), "Its functions are: fails, greet, square"),
    (("run", "squares.py:square"), "missing a required argument"),
    (("run", "--on", "moon", "squares.py:square", "1"), "moon"),
    (("run", "squares.py:square", "1", "--memory", "1GiB"), "Options of cxc come before"),
    (("run", "--memory", "lots", "squares.py:square", "1"), "lots"),
    (("run", "--package", "no-such-thing-1234", "squares.py:square", "1"), "no-such-thing-1234"),
    (("result", "nothing"), "cxc ps"),
    (("logs", "nothing"), "cxc ps"),
    (("cancel", "nothing"), "cxc ps"),
    (("rerun", "abcdef123456"), "no image abcdef123456"),
    (("push", "squares.py:square"), "no repository"),
    (("push", "squares.py:square", "NOT/A/REPO"), "NOT/A/REPO"),
    (("push", "squares.py:square", "127.0.0.1:9/nobody/here"), "127.0.0.1:9"),
    (("result", "x/y"), "expected RUN/ELEMENT"),
]


@pytest.mark.parametrize(
    ("words", "expected"),
    BAD,
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_gets_one_clear_error(cxc, words: tuple[str, ...], expected: str) -> None:
    done = cxc(*words, code=1)
    assert expected in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""
    state = Path(os.environ["CLUSTRIX_STATE_DIR"])
    assert not list(state.glob("runs/*"))


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("default: local\ndefualt: x\n", 2, "defualt"),
        ("targets:\n  local: {tpye: local}\n", 2, "type"),
        ("targets:\n  local:\n    type: local\n    runtme: docker\n", 4, "runtme"),
        ("targets: [\n", 2, ""),
        ("resources: {memory: lots}\n", 1, "memory"),
    ],
)
def test_malformed_configuration_names_file_line_and_key(
    cxc, text: str, line: int, key: str
) -> None:
    (cxc.project / "clustrix.yml").write_text(text)
    done = cxc("run", "squares.py:square", "1", code=1)
    assert f"clustrix.yml:{line}" in done.stderr
    assert key in done.stderr
    assert not list(Path(os.environ["CLUSTRIX_STATE_DIR"]).glob("runs/*"))
