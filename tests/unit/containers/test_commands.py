"""The command lines and variables of containers, which other targets use too."""

from __future__ import annotations

from clustrix_containers.containers import apptainer
from clustrix_containers.containers.container import ContainerSpec, Mount
from clustrix_containers.containers.environment import container_environment
from clustrix_containers.worker import contract


def test_apptainers_command_line_quotes_mounts() -> None:
    spec = ContainerSpec(
        root="/site/image.sif",
        argv=("python", "worker.py"),
        mounts=(Mount('/a,b"c', "/t"), Mount("/results", "/r", writable=True)),
        workdir="/tmp",
        gpus=1,
        scratch="/scratch/3",
    )
    command = apptainer.command("apptainer", spec, no_eval=True, as_root=False)
    options = " ".join(command)
    assert 'type=bind,"source=/a,b""c",destination=/t,ro' in command
    assert "type=bind,source=/results,destination=/r" in command
    assert "--workdir /scratch/3 --pwd /tmp --nv" in options and "--no-eval" in command
    assert command[-3:] == ["/site/image.sif", "python", "worker.py"]
    assert "--security" not in options
    as_root = apptainer.command("apptainer", spec, no_eval=False, as_root=True)
    assert "--security uid:65534 --security gid:65534" in " ".join(as_root)
    assert "--no-eval" not in as_root


def test_apptainers_variables() -> None:
    env = apptainer.variables({"HOME": "/tmp", "A": "$x"})
    assert env["APPTAINERENV_A"] == env["SINGULARITYENV_A"] == "$x"
    assert env[f"APPTAINERENV_{contract.ENV_HOME}"] == "/tmp"


def test_the_image_and_the_user_win_over_defaults() -> None:
    env = container_environment(["HOME=/h", "A=x=y"], {"A": "mine", "LANG": "de_DE.UTF-8"})
    assert (env["HOME"], env["A"], env["LANG"], env["USER"]) == (
        "/h", "mine", "de_DE.UTF-8", "clustrix",
    )  # fmt: skip
