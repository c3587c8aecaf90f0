"""The Job that is made: the golden file, and what must never be in it."""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from clustrix_containers.api.options import Resources
from clustrix_containers.clusters.kubernetes import KubernetesCluster, doctor, manifest
from clustrix_containers.clusters.kubernetes.api import Server
from clustrix_containers.clusters.kubernetes.manifest import merge
from clustrix_containers.clusters.kubernetes.pods.views import within
from clustrix_containers.clusters.kubernetes.results import reader
from clustrix_containers.clusters.kubernetes.settings import CALL_OPTIONS, Settings
from clustrix_containers.clusters.task import Task
from clustrix_containers.errors import ClusterError
from clustrix_containers.results.stores.volume import VolumeStore

ROOT = Path(__file__).parents[4]
NEW, OLD = Server(1, 36), Server(1, 20)

TASK = Task(
    run="fit-x7k2m9pq",
    name="fit",
    image="registry.example.org/team/runs@sha256:" + "0123456789abcdef" * 4,
    elements=range(100),
    resources=Resources(cpus=2, memory=2 << 30, timeout=1800),
    directory=Path("never-read"),
    max_parallel=20,
    command=("/opt/venv/bin/python", "/opt/clustrix/worker.py"),
    array=True,
)
SETTINGS = Settings(namespace="clustrix", pull_secret="registry")


def job(task: Task = TASK, settings: Settings = SETTINGS, server: Server = NEW) -> dict:
    made = manifest.jobs(task, settings, server)
    assert len(made) == 1
    return made[0]


def pod(**changes: object) -> dict:
    settings = replace(SETTINGS, **changes)
    return job(settings=settings)["spec"]["template"]["spec"]


def test_the_golden_file() -> None:
    golden = ROOT / "k8s" / "job.yaml"
    assert yaml.safe_load(golden.read_text()) == job()


def test_everything_that_k8s_applies_is_there() -> None:
    kustomization = yaml.safe_load((ROOT / "k8s" / "kustomization.yaml").read_text())
    for name in kustomization["resources"]:
        assert yaml.safe_load((ROOT / "k8s" / name).read_text())["kind"]


def test_an_old_server_gets_one_job_for_each_element_and_nothing_that_it_drops() -> None:
    made = manifest.jobs(replace(TASK, elements=range(3), max_parallel=None), SETTINGS, OLD)
    assert [it["metadata"]["name"] for it in made] == [f"fit-x7k2m9pq-0-{n}" for n in range(3)]
    for number, it in enumerate(made):
        spec = it["spec"]
        assert not {"suspend", "completionMode", "podFailurePolicy", "completions"} & set(spec)
        env = {e["name"]: e["value"] for e in spec["template"]["spec"]["containers"][0]["env"]}
        assert env["CLUSTRIX_ELEMENT"] == str(number)


def test_a_job_like_another_is_the_one_that_was_to_be_made() -> None:
    settings = replace(SETTINGS, pod_template=({"metadata": {"labels": {"team": "a"}}},))
    task = replace(TASK, elements=range(3), max_parallel=None)
    made = manifest.jobs(task, settings, OLD)
    stored = copy.deepcopy(made[0])
    stored["metadata"] |= {"uid": "u", "resourceVersion": "1"}
    stored["spec"]["selector"] = {"matchLabels": {"controller-uid": "u"}}
    added = {"controller-uid": "u", "job-name": stored["metadata"]["name"]}
    stored["spec"]["template"]["metadata"]["labels"] |= added
    assert manifest.like({**stored, "status": {"active": 1}}, 2) == made[2]


def test_one_element_is_a_plain_job_and_a_second_attempt_another_name() -> None:
    single = replace(TASK, elements=range(1), max_parallel=None)
    assert job(single)["metadata"]["name"] == "fit-x7k2m9pq-0"
    assert "completionMode" not in job(single)["spec"]
    again = replace(TASK, elements=(7,), attempt=1)
    assert job(again)["metadata"]["name"] == "fit-x7k2m9pq-1-7"


@pytest.mark.parametrize(
    ("minor", "there", "missing"),
    [
        (22, "completionMode", "podFailurePolicy"),
        (26, "podFailurePolicy", "backoffLimitPerIndex"),
        (29, "backoffLimitPerIndex", "backoffLimit"),
    ],
)
def test_a_field_is_sent_to_servers_that_know_it(minor: int, there: str, missing: str) -> None:
    spec = job(server=Server(1, minor))["spec"]
    assert there in spec
    assert missing not in spec


def test_a_volume_claim_is_mounted_and_its_group_is_the_pods() -> None:
    chosen = VolumeStore("results")
    spec = pod(results=chosen)
    assert {"name": "claim", "mountPath": "/opt/clustrix/volume"} in spec["containers"][0][
        "volumeMounts"
    ]
    claimed = {"name": "claim", "persistentVolumeClaim": {"claimName": "results"}}
    assert claimed in spec["volumes"]
    security = spec["securityContext"]
    assert (security["fsGroup"], security["fsGroupChangePolicy"]) == (65532, "OnRootMismatch")
    # Where the cluster chooses the user, it chooses the group, too.
    assert "fsGroup" not in pod(results=chosen, user=None)["securityContext"]
    old = replace(SETTINGS, results=chosen)
    single = replace(TASK, elements=range(1), max_parallel=None)
    template = job(single, old, Server(1, 19))["spec"]["template"]
    assert "fsGroupChangePolicy" not in template["spec"]["securityContext"]


def test_a_reader_is_a_pod_as_all_and_no_element() -> None:
    store = VolumeStore("results")
    template = {"spec": {"nodeSelector": {"disk": "ssd"}}}
    settings = replace(SETTINGS, results=store, pod_template=(template,))
    made = reader.manifest_of(settings, NEW, store, TASK.image, TASK.run, "fit-x7k2m9pq-reads-1")
    template = made["spec"]["template"]
    for labels in (made["metadata"]["labels"], template["metadata"]["labels"]):
        assert f"{manifest.LABEL_MANAGER}={labels[manifest.LABEL_MANAGER]}" != manifest.selector()
    spec, container = template["spec"], template["spec"]["containers"][0]
    assert container["image"] == TASK.image
    assert container["securityContext"] == pod()["containers"][0]["securityContext"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["nodeSelector"] == {"disk": "ssd"}
    claim = {"name": "claim", "mountPath": "/opt/clustrix/volume", "readOnly": True}
    assert claim in container["volumeMounts"]
    assert made["spec"]["activeDeadlineSeconds"] <= 86400


def test_the_key_is_in_the_secret_alone() -> None:
    key = b"\x00key\xff" * 6
    secret = manifest.secret(TASK, SETTINGS, {"store": {"token": "hush"}}, key)
    text = json.dumps(job())
    for value in (*secret["data"].values(), "hush"):
        assert value not in text


def test_what_a_container_may_do() -> None:
    spec = pod()
    container = spec["containers"][0]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "runAsUser" not in pod(user=None)["securityContext"]


def test_variables_are_text_to_kubernetes_too() -> None:
    task = replace(TASK, resources=Resources(env={"MINE": "$(HOME) $$ ü"}))
    env = {
        e["name"]: e["value"] for e in job(task)["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert env["MINE"] == "$$(HOME) $$$$ ü"


def test_a_queue_is_kueues() -> None:
    made = job(settings=replace(SETTINGS, queue="clustrix"))
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "clustrix"
    assert made["spec"]["suspend"] is True


def test_labels_are_labels_whatever_a_function_is_called() -> None:
    assert manifest.label("<lambda>") == "lambda"
    assert manifest.label("größe.fit") == "gr-e.fit"
    assert len(manifest.label("x" * 99)) == 63
    assert manifest.label("<>") == ""


@pytest.mark.parametrize(
    ("size", "text"), [(150 << 20, "150Mi"), (2 << 30, "2Gi"), (1000, "1000"), (3 << 10, "3Ki")]
)
def test_quantities(size: int, text: str) -> None:
    assert manifest.quantity(size) == text


def test_the_users_pod_template_is_merged_over_ours() -> None:
    overlay = {
        "metadata": {"annotations": {"team": "a"}},
        "spec": {
            "nodeSelector": {"disk": "ssd"},
            "containers": [
                {"name": "main", "env": [{"name": "MORE", "value": "1"}], "lifecycle": None},
                {"name": "sidecar", "image": "x"},
            ],
        },
    }
    template = job(settings=replace(SETTINGS, pod_template=(overlay,)))["spec"]["template"]
    assert template["metadata"]["annotations"] == {"team": "a"}
    assert template["spec"]["nodeSelector"] == {"disk": "ssd"}
    main, sidecar = template["spec"]["containers"]
    assert sidecar == {"name": "sidecar", "image": "x"}
    assert main["image"] == TASK.image
    assert {"name": "MORE", "value": "1"} in main["env"]
    assert len(main["env"]) > 4


def test_strategic_merge() -> None:
    base = {"a": {"b": 1, "c": 2}, "args": [1, 2], "volumes": [{"name": "x"}, {"name": "y"}]}
    change = {
        "a": {"b": None, "d": 3},
        "args": [9],
        "volumes": [{"name": "x", "$patch": "delete"}, {"name": "y", "emptyDir": {}}],
    }
    assert merge(base, change) == {
        "a": {"c": 2, "d": 3},
        "args": [9],
        "volumes": [{"name": "y", "emptyDir": {}}],
    }
    assert merge(base, {"a": {"$patch": "replace", "z": 1}})["a"] == {"z": 1}


def test_indexes_as_a_job_writes_them() -> None:
    assert [n for n in range(10) if within("1,3-5,7", n)] == [1, 3, 4, 5, 7]
    assert not within("", 0)


@pytest.mark.parametrize(
    ("major", "minor", "version"), [("1", "27+", (1, 27)), ("1", "20", (1, 20))]
)
def test_versions(major: str, minor: str, version: tuple[int, int]) -> None:
    assert Server.parse(major, minor) == version


def test_a_version_that_cannot_be_parsed_is_refused() -> None:
    with pytest.raises(ClusterError, match="'x'"):
        Server.parse("1", "x")


@pytest.mark.parametrize(
    ("phase", "modes", "good", "words"),
    [
        ("Bound", ["ReadWriteMany", "ReadWriteOnce"], True, "Bound, ReadWriteMany"),
        ("Pending", ["ReadWriteMany"], True, "Pending"),
        ("Bound", ["ReadWriteOnce"], True, "only pods on one node at a time"),
        ("Bound", ["ReadWriteOncePod"], True, "only one pod at a time"),
        ("Bound", ["ReadOnlyMany"], False, "no pod can write to it"),
        ("Lost", ["ReadWriteMany"], False, "has lost its volume"),
    ],
)
def test_who_can_use_a_claim_at_once(phase: str, modes: list[str], good: bool, words: str) -> None:
    found = {"spec": {"accessModes": modes}, "status": {"phase": phase}}
    writable, text = doctor.claim_access("results", found)
    assert writable is good
    assert words in text


# --- the options of one call ------------------------------------------------------------------


def test_a_calls_options_lie_over_those_of_the_target() -> None:
    target = replace(
        SETTINGS,
        queue="slow",
        node_selector={"disk": "ssd"},
        pod_template=({"spec": {"hostname": "a", "priority": 1}},),
    )
    settings = target.with_options(
        {
            "queue": "fast",
            "node_selector": {"zone": "b"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "deadline": "1h",
            "pod_template": {"spec": {"hostname": None, "subdomain": "s"}},
        }
    )
    made = job(settings=settings)
    assert made["metadata"]["labels"][manifest.LABEL_QUEUE] == "fast"
    spec = made["spec"]["template"]["spec"]
    # The Job's controller of 1.20 can miss a deadline; the kubelet does not.
    assert made["spec"]["activeDeadlineSeconds"] == spec["activeDeadlineSeconds"] == 3600
    assert spec["nodeSelector"] == {"disk": "ssd", "zone": "b"}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert "hostname" not in spec
    assert (spec["priority"], spec["subdomain"]) == (1, "s")
    assert target.with_options({}) == target


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"namespace": "x"}, "namespace"),
        ({"results": "hold"}, "results"),
        ({"partition": "gpu"}, "partition"),
        ({"queue": 3}, "queue"),
        ({"node_selector": "ssd"}, "node_selector"),
        ({"tolerations": {"key": "gpu"}}, "tolerations"),
        ({"deadline": "soon"}, "deadline"),
        ({"pod_template": []}, ""),
    ],
)
def test_what_a_call_cannot_have_is_refused_before_anything_is_built(
    options: dict[str, object], name: str
) -> None:
    cluster = KubernetesCluster()
    if not name:
        cluster.check_options(options)
        return
    with pytest.raises(ClusterError, match=name) as caught:
        cluster.check_options(options)
    assert caught.value.option == name


def test_every_option_of_a_call_is_one_of_the_target() -> None:
    assert set(CALL_OPTIONS) < set(inspect.signature(KubernetesCluster).parameters)


@pytest.mark.parametrize("user", [0, -1, "root", None])
def test_a_user_that_is_none_is_refused(user: object) -> None:
    with pytest.raises(ClusterError, match="is not a uid above 0") as caught:
        KubernetesCluster(user=user)  # type: ignore[arg-type]
    assert caught.value.option == "user"
