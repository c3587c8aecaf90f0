"""Keys and certificates for one test run: an authority, and what it signed for this machine."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """The PEM files of a certificate and its key."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """A certificate authority that lives in ``directory``."""

    directory: Path

    @property
    def pair(self) -> Pair:
        return Pair(self.directory / "ca.pem", self.directory / "ca.key")

    def make(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("clustrix test authority")
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        builder = _builder(name, name, key).add_extension(usage, critical=True)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        _write(self.pair, builder.sign(key, hashes.SHA256()), key)

    def sign(
        self,
        name: str,
        *,
        user: str = "",
        group: str = "",
        addresses: Sequence[str] = (),
        days: float = 30,
    ) -> Pair:
        """A certificate in the file ``name``, for localhost, 127.0.0.1 and these IP addresses.

        ``user`` and ``group`` are its subject's common name (``name`` if not given) and
        organization, ``days`` how long it lasts; negative: it has ended.
        """
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key = ec.generate_private_key(ec.SECP256R1())
        own = x509.load_pem_x509_certificate(self.pair.certificate.read_bytes())
        own_key = load_pem_private_key(self.pair.key.read_bytes(), None)
        assert isinstance(own_key, ec.EllipticCurvePrivateKey)
        names = x509.SubjectAlternativeName(
            [
                x509.DNSName("localhost"),
                *(x509.IPAddress(ipaddress.ip_address(it)) for it in ("127.0.0.1", *addresses)),
            ]
        )
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(own_key.public_key())
        subject = _name(user or name, group)
        builder = _builder(subject, own.subject, key, days).add_extension(names, critical=False)
        builder = builder.add_extension(identifier, critical=False)
        pair = Pair(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        _write(pair, builder.sign(own_key, hashes.SHA256()), key)
        return pair


def _name(text: str, group: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group)] if group else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float = 30
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )


def _write(pair: Pair, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    pair.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pair.key.touch(0o600)
    pair.key.write_bytes(secret)
