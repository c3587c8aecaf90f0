"""How tests reach a Kubernetes, whoever started it: a kubeconfig, and a registry to pull from."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustrix_containers.credentials.registry import Credential
from clustrix_containers.oci.model import Image
from clustrix_containers.registry import Remote
from tests.clusters.daemon import StartError, wait_until

GIVEN = "CLUSTRIX_TEST_KUBECONFIG"
"""Names the kubeconfig of a cluster to use instead of starting one (never plain KUBECONFIG)."""

REGISTRY = "CLUSTRIX_TEST_KUBERNETES_REGISTRY"
"""The registry that its nodes pull from, ``HOST:PORT`` or ``HOST:PORT/PATH``.

With ``_USER``, ``_PASSWORD``, ``_CA`` (a PEM file) and ``_AUTH_FILE`` (the same password as
Docker keeps it) after it, what it wants to hear.
"""

SECRET = "registry"
"""The pull secret in each namespace that :meth:`Access.make_namespace` makes."""


@dataclass(frozen=True)
class Access:
    """A cluster that can be used; ``registry`` is what stands before the name of an image in it."""

    kubeconfig: Path
    registry: str
    username: str = ""
    password: str = ""
    ca_file: Path | None = None
    auth_file: Path | None = None

    def env(self) -> Mapping[str, str]:
        """What makes :func:`given` give this cluster."""
        found = {GIVEN: str(self.kubeconfig), REGISTRY: self.registry}
        if self.username:
            found |= {f"{REGISTRY}_USER": self.username, f"{REGISTRY}_PASSWORD": self.password}
        if self.ca_file:
            found[f"{REGISTRY}_CA"] = str(self.ca_file)
        if self.auth_file:
            found[f"{REGISTRY}_AUTH_FILE"] = str(self.auth_file)
        return found

    def variables(self) -> Mapping[str, str]:
        """With these a program can push to the registry, if it knows no other."""
        found = {"REGISTRY_AUTH_FILE": self.auth_file, "SSL_CERT_FILE": self.ca_file}
        return {name: str(path) for name, path in found.items() if path}

    def client(self) -> contextlib.AbstractContextManager[Any]:
        """The official client's ``ApiClient``: to be used in a ``with``."""
        return connected(self.kubeconfig)

    def answers(self) -> bool:
        """Whether the API server takes requests of this user."""
        from kubernetes.client import ApiException, VersionApi
        from urllib3.exceptions import HTTPError

        try:
            with self.client() as client:
                VersionApi(client).get_code(_request_timeout=10)
        except (ApiException, HTTPError, OSError):
            return False
        return True

    def push(self, name: str, image: Image) -> str:
        """Put an image into the registry; its reference by digest."""
        credential = Credential(self.username, self.password) if self.username else None
        repository = f"{self.registry}/{name}"
        remote = Remote(repository, ca_file=self.ca_file, credentials=lambda *_: credential)
        remote.push(image)
        return f"{repository}@{image.digest}"

    def auths(self) -> str:
        """The configuration file with the registry's password, as Docker writes it."""
        pair = f"{self.username}:{self.password}".encode()
        host = self.registry.partition("/")[0]
        found = {host: {"auth": base64.b64encode(pair).decode()}} if self.username else {}
        return json.dumps({"auths": found})

    def make_namespace(self, name: str) -> None:
        """A namespace with the pull secret in it, in which a pod can be made at once."""
        from kubernetes.client import CoreV1Api

        with self.client() as client:
            core: Any = CoreV1Api(client)
            core.create_namespace({"metadata": {"name": name}})
            self.make_pull_secret(name)

            def has_account() -> bool:
                listed = core.list_namespaced_service_account(name).items
                return any(account.metadata.name == "default" for account in listed)

            # Until then the API server refuses every pod.
            if not wait_until(has_account, 60):
                raise StartError(f"the namespace {name} has no service account after 60 s")

    def make_pull_secret(self, namespace: str) -> None:
        """Make it there, or renew it; a namespace that comes into being is waited for."""
        from kubernetes.client import ApiException, CoreV1Api

        secret = {
            "metadata": {"name": SECRET},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": self.auths()},
        }
        with self.client() as client:
            core: Any = CoreV1Api(client)

            def made() -> bool:
                try:
                    core.create_namespaced_secret(namespace, secret)
                except ApiException as error:
                    if error.status == 404:
                        return False
                    if error.status != 409:
                        raise
                    core.patch_namespaced_secret(SECRET, namespace, secret)
                return True

            if not wait_until(made, 60):
                raise StartError(f"there is no namespace {namespace} after 60 s")

    def namespaces(self) -> list[str]:
        from kubernetes.client import CoreV1Api

        with self.client() as client:
            core: Any = CoreV1Api(client)
            return [item.metadata.name for item in core.list_namespace().items]

    def pods(self, namespace: str) -> list[str]:
        """The pods that wait or run there."""
        from kubernetes.client import CoreV1Api

        with self.client() as client:
            core: Any = CoreV1Api(client)
            listed = core.list_namespaced_pod(namespace).items
        over = ("Succeeded", "Failed")
        return [item.metadata.name for item in listed if item.status.phase not in over]

    def delete_namespace(self, name: str) -> None:
        """Delete it and all that is in it, without waiting for the end; fine if it is not there."""
        from kubernetes.client import ApiException, CoreV1Api

        with self.client() as client:
            try:
                CoreV1Api(client).delete_namespace(name)
            except ApiException as error:
                if error.status != 404:
                    raise


@contextlib.contextmanager
def connected(kubeconfig: Path) -> Iterator[Any]:
    """The official client's ``ApiClient`` for a kubeconfig, without connections afterwards."""
    from kubernetes import config

    load: Any = config.new_client_from_config
    client = load(config_file=str(kubeconfig))
    try:
        yield client
    finally:
        client.close()
        # Older clients leave their connections open.
        client.rest_client.pool_manager.clear()


def given(environment: Mapping[str, str] = os.environ) -> Access | None:
    """The cluster that the environment names; :class:`StartError` if its registry is missing."""
    kubeconfig = environment.get(GIVEN)
    if not kubeconfig:
        return None
    if not environment.get(REGISTRY):
        raise StartError(
            f"{GIVEN} is set, and {REGISTRY} is not: name a registry that the cluster's nodes"
            " pull from and that can be pushed to from here (HOST:PORT/PATH)"
        )
    ca_file = environment.get(f"{REGISTRY}_CA")
    auth_file = environment.get(f"{REGISTRY}_AUTH_FILE")
    return Access(
        Path(kubeconfig),
        environment[REGISTRY],
        environment.get(f"{REGISTRY}_USER", ""),
        environment.get(f"{REGISTRY}_PASSWORD", ""),
        Path(ca_file) if ca_file else None,
        Path(auth_file) if auth_file else None,
    )
