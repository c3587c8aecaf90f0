"""What the API server fills in, drops because it is too old for it, and refuses, in Jobs and pods."""

from __future__ import annotations

import re
from typing import Any

from tests.kubernetes_server import refusals
from tests.kubernetes_server.resources import JOBS, PODS, SECRETS, Object, Resource

JOB_FIELDS_SINCE = {
    # The minor version from which a field is on by default: beta, or stable.
    "completionMode": 22,
    "suspend": 22,
    "podFailurePolicy": 26,
    "backoffLimitPerIndex": 29,
    "maxFailedIndexes": 29,
    "podReplacementPolicy": 29,
    "successPolicy": 31,
    "managedBy": 32,
}
"""https://kubernetes.io/docs/reference/command-line-tools-reference/feature-gates/"""

_NAME = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_LABEL = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.',"
    " and must start and end with an alphanumeric character"
)
_MOST = 2147483647


def drop_unknown(resource: Resource, item: Object, minor: int) -> None:
    """Do as a server that has never heard of a field: without a word."""
    if resource == JOBS:
        for name, since in JOB_FIELDS_SINCE.items():
            if minor < since:
                item["spec"].pop(name, None)


def fill(resource: Resource, item: Object, minor: int) -> None:
    """Defaults of what has just been given a name and a uid."""
    if resource == JOBS:
        _fill_job(item, minor)
    elif resource == PODS:
        _fill_pod(item["spec"])
        item["status"] = {"phase": "Pending", "qosClass": "Burstable"}
    elif resource == SECRETS:
        item.setdefault("type", "Opaque")
        import base64

        texts = item.pop("stringData", {})
        if texts:
            encoded = {name: base64.b64encode(it.encode()).decode() for name, it in texts.items()}
            item["data"] = {**item.get("data", {}), **encoded}


def pod_labels(job: Object, minor: int) -> dict[str, str]:
    metadata = job["metadata"]
    found = {"controller-uid": metadata["uid"], "job-name": metadata["name"]}
    if minor >= 27:
        found.update({f"batch.kubernetes.io/{name}": value for name, value in tuple(found.items())})
    return found


def _fill_job(item: Object, minor: int) -> None:
    spec = item["spec"]
    if minor >= JOB_FIELDS_SINCE["completionMode"]:
        spec.setdefault("completionMode", "NonIndexed")
        spec.setdefault("suspend", False)
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)
    spec.setdefault("backoffLimit", _MOST if "backoffLimitPerIndex" in spec else 6)
    if minor >= JOB_FIELDS_SINCE["podReplacementPolicy"]:
        both = "Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed"
        spec.setdefault("podReplacementPolicy", both)
    name = "batch.kubernetes.io/controller-uid" if minor >= 27 else "controller-uid"
    spec["selector"] = {"matchLabels": {name: item["metadata"]["uid"]}}
    template = spec["template"].setdefault("metadata", {})
    template["labels"] = {**template.get("labels", {}), **pod_labels(item, minor)}
    _fill_pod(spec["template"]["spec"])
    item["status"] = {}


def _fill_pod(spec: Object) -> None:
    for name, value in (
        ("restartPolicy", "Always"),
        ("terminationGracePeriodSeconds", 30),
        ("dnsPolicy", "ClusterFirst"),
        ("schedulerName", "default-scheduler"),
        ("securityContext", {}),
    ):
        spec.setdefault(name, value)
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        latest = "@" not in container["image"] and container["image"].endswith(":latest")
        container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        container.setdefault("resources", {})


def validate(resource: Resource, item: Object) -> None:
    """Refuse what the schema allows and the API server does not."""
    wrong: dict[str, str] = {}
    metadata = item["metadata"]
    name = metadata.get("name") or metadata.get("generateName", "")
    if not name:
        wrong["metadata.name"] = "Required value: name or generateName is required"
    elif not _NAME.match(name.rstrip("-") if "name" not in metadata else name) or len(name) > 253:
        wrong["metadata.name"] = f'Invalid value: "{name}": {_RULE}'
    wrong.update(_labels(metadata.get("labels", {}), "metadata.labels"))
    size = sum(len(k) + len(str(v)) for k, v in metadata.get("annotations", {}).items())
    if size > 256 << 10:
        wrong["metadata.annotations"] = "Too long: may not be more than 262144 bytes"
    if resource == JOBS:
        wrong.update(_job(item))
    elif resource == PODS:
        wrong.update(_pod(item["spec"], "spec"))
    elif resource == SECRETS and sum(map(len, item.get("data", {}).values())) * 3 // 4 > 1 << 20:
        wrong["data"] = "Too long: may not be more than 1048576 bytes"
    if wrong:
        raise refusals.invalid(resource, name, wrong)


def _labels(labels: dict[str, str], path: str) -> dict[str, str]:
    rule = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.'"
    wrong = [it for it in labels.values() if len(it) > 63 or not _LABEL.match(it)]
    words = (
        f'Invalid value: "{wrong[0]}": {rule}, and be no more than 63 characters' if wrong else ""
    )
    return {path: words} if wrong else {}


def _job(item: Object) -> dict[str, str]:
    spec, wrong = item["spec"], {}
    template = spec["template"].get("spec", {})
    indexed = spec.get("completionMode") == "Indexed"
    if template.get("restartPolicy") not in ("Never", "OnFailure"):
        wrong["spec.template.spec.restartPolicy"] = (
            'Required value: valid values: "OnFailure", "Never"'
        )
    if indexed and spec.get("completions") is None:
        wrong["spec.completions"] = "Required value: when completion mode is Indexed"
    if indexed:
        longest = f"{item['metadata'].get('name', '')}-{max(0, spec.get('completions', 1) - 1)}"
        if len(longest) > 63:
            wrong["metadata.name"] = (
                f'Invalid value: "{longest}": will not able to create pod with invalid DNS label:'
                " must be no more than 63 characters"
            )
    for name in (
        "backoffLimit",
        "completions",
        "parallelism",
        "activeDeadlineSeconds",
        "backoffLimitPerIndex",
    ):
        if spec.get(name, 0) < 0:
            wrong[f"spec.{name}"] = (
                f"Invalid value: {spec[name]}: must be greater than or equal to 0"
            )
    wrong.update(_per_index(spec, indexed))
    if "podFailurePolicy" in spec and template.get("restartPolicy") != "Never":
        wrong["spec.template.spec.restartPolicy"] = (
            'Invalid value: only "Never" is supported when podFailurePolicy is specified'
        )
    labels = spec["template"].get("metadata", {}).get("labels", {})
    wrong.update(_labels(labels, "spec.template.metadata.labels"))
    return {**wrong, **_pod(template, "spec.template.spec")}


def _per_index(spec: Object, indexed: bool) -> dict[str, str]:
    wrong = {}
    if "backoffLimitPerIndex" in spec and not indexed:
        wrong["spec.backoffLimitPerIndex"] = "Invalid value: requires indexed completion mode"
    if "maxFailedIndexes" in spec and "backoffLimitPerIndex" not in spec:
        wrong["spec.backoffLimitPerIndex"] = "Required value: when maxFailedIndexes is specified"
    many = spec.get("completions", 0) > 100_000 and "backoffLimitPerIndex" in spec
    if many and "maxFailedIndexes" not in spec:
        wrong["spec.maxFailedIndexes"] = (
            "Required value: must be specified when completions is above 100000"
        )
    return wrong


def _pod(spec: Object, path: str) -> dict[str, str]:
    wrong: dict[str, str] = {}
    if not spec.get("containers"):
        wrong[f"{path}.containers"] = "Required value"
    volumes = {volume["name"] for volume in spec.get("volumes", ())}
    for number, container in enumerate(spec.get("containers", ())):
        here = f"{path}.containers[{number}]"
        if not container.get("image"):
            wrong[f"{here}.image"] = "Required value"
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                wrong[f"{here}.volumeMounts[0].name"] = f'Not found: "{mount["name"]}"'
        limits = container.get("resources", {}).get("limits", {})
        for name, wanted in container.get("resources", {}).get("requests", {}).items():
            if name in limits and quantity(wanted) > quantity(limits[name]):
                wrong[f"{here}.resources.requests"] = (
                    f'Invalid value: "{wanted}": must be less than or equal to {name} limit of {limits[name]}'
                )
    return wrong


def immutable(resource: Resource, new: Object, old: Object) -> None:
    """Refuse a change of what may not change after creation."""
    if resource != JOBS:
        return
    wrong = {}
    suspended = old["spec"].get("suspend") and "startTime" not in old.get("status", {})
    fixed = [
        "completions",
        "completionMode",
        "selector",
        "backoffLimitPerIndex",
        "podFailurePolicy",
    ]
    # Before it starts a queue may place a Job: its scheduling directives may change.
    fixed += [] if suspended else ["template"]
    for name in fixed:
        if new["spec"].get(name) != old["spec"].get(name):
            wrong[f"spec.{name}"] = "Invalid value: field is immutable"
    if wrong:
        raise refusals.invalid(resource, old["metadata"]["name"], wrong)


_UNITS = {
    "": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip


def quantity(value: Any) -> float:
    match = re.match(r"^([+-]?[\d.]+(?:[eE][+-]?\d+)?)([A-Za-z]*)$", str(value))
    assert match, value
    return float(match[1]) * _UNITS[match[2]]
