"""What may be refused between validation and the store: access, quota, webhooks."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.kubernetes_server import refusals
from tests.kubernetes_server.refusals import Refused
from tests.kubernetes_server.resources import PODS, RESOURCES, Object, Resource

VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")


@dataclass
class Admission:
    """The cluster's rules, as they are now; tests change them through ``Faults``."""

    denied: set[tuple[str, str]] = field(default_factory=set)
    """Verb and resource (``pods/exec``, ``jobs``) that users may not do."""

    quota: dict[str, str] = field(default_factory=dict)
    """By resource (``pods``): what is over the quota, in the API server's words."""

    webhook: dict[str, str] = field(default_factory=dict)
    """By resource: what the admission webhook says against it."""

    forced_uid: int | None = None
    """The user id that every container gets that asks for none."""

    def allowed(self, verb: str, what: str) -> bool:
        return not {(verb, what), ("*", what), (verb, "*"), ("*", "*")} & self.denied

    def authorize(
        self, user: str, verb: str, resource: Resource, part: str, namespace: str, name: str
    ) -> None:
        what = f"{resource.plural}/{part}" if part else resource.plural
        if self.allowed(verb, what):
            return
        place = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
        raise refusals.forbidden(
            resource,
            name,
            f'User "{user}" cannot {verb} resource "{what}" in API group "{resource.group}"{place}',
        )

    def admit(self, resource: Resource, item: Object) -> None:
        name = item["metadata"]["name"]
        if why := self.webhook.get(resource.plural):
            hook = "policy.example.com"
            raise Refused(403, f'admission webhook "{hook}" denied the request: {why}')
        if over := self.quota.get(resource.plural):
            raise refusals.forbidden(resource, name, f"exceeded quota: {over}")
        if resource == PODS and self.forced_uid is not None:
            item["spec"]["securityContext"].setdefault("runAsUser", self.forced_uid)

    def access_review(self, spec: Object) -> Object:
        """The status of a SelfSubjectAccessReview."""
        asked = spec.get("resourceAttributes", {})
        what = asked.get("resource", "")
        if asked.get("subresource"):
            what += f"/{asked['subresource']}"
        allowed = self.allowed(asked.get("verb", ""), what)
        return {"allowed": allowed, **({} if allowed else {"reason": "no rule of RBAC allows it"})}

    def rules_review(self) -> Object:
        """The status of a SelfSubjectRulesReview."""
        rules = []
        parts = ("pods/log", "pods/exec", "pods/status", "jobs/status")
        named = [(it.group, it.plural) for it in RESOURCES.values()]
        for group, what in (
            *named,
            *(("batch" if it.startswith("jobs") else "", it) for it in parts),
        ):
            verbs = [verb for verb in VERBS if self.allowed(verb, what)]
            rules.append({"verbs": verbs, "apiGroups": [group], "resources": [what]})
        return {"resourceRules": rules, "nonResourceRules": [], "incomplete": False}
