"""``podFailurePolicy``: what a failed pod means for its Job.

https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy
"""

from __future__ import annotations

from tests.kubernetes_server.resources import Object


def action(job: Object, pod: Object) -> tuple[str, str]:
    """``Ignore``, ``FailJob``, ``FailIndex`` or ``Count``, and why in the controller's words."""
    rules = job["spec"].get("podFailurePolicy", {}).get("rules", ())
    named = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    for number, rule in enumerate(rules):
        why = _exit_code(rule["onExitCodes"], pod) if "onExitCodes" in rule else ""
        if not why and "onPodConditions" in rule:
            why = _condition(rule["onPodConditions"], pod)
        if why:
            words = why.format(pod=named)
            return rule["action"], f"{words} matching {rule['action']} rule at index {number}"
    return "Count", ""


def restarts(pod: Object) -> int:
    statuses = pod["status"].get("containerStatuses", ())
    return sum(it["restartCount"] for it in statuses)


def _exit_code(rule: Object, pod: Object) -> str:
    for status in pod["status"].get("containerStatuses", ()):
        ended = status["state"].get("terminated")
        if not ended or not ended["exitCode"]:
            continue
        if rule.get("containerName") not in (None, status["name"]):
            continue
        if (ended["exitCode"] in rule["values"]) is (rule["operator"] == "In"):
            return f"Container {status['name']} for pod {{pod}} failed with exit code {ended['exitCode']}"
    return ""


def _condition(patterns: list[Object], pod: Object) -> str:
    for pattern in patterns:
        for it in pod["status"].get("conditions", ()):
            if it["type"] == pattern["type"] and it["status"] == pattern.get("status", "True"):
                return f"Pod {{pod}} has condition {it['type']}"
    return ""
