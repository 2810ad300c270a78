"""Certificates between the tiers of one platform: an authority of its own, and one certificate per server.

    secrets/ca.crt, ca.key           the authority; clients verify servers against ca.crt
    secrets/<node>.crt, <node>.key   for 127.0.0.1, ::1 and localhost, where supervised nodes listen

An authority lasts ten years, and is made anew with everything it signed when `up` finds less than one left.
A server's certificate lasts `LIFETIME` and is renewed with `RENEW_BEFORE` left, also while everything runs;
who uses it is told to read it again. A private key never leaves its folder but as the copy of its server.

The work is done in a process of its own (`python -m ...certificates`), so that the supervisor does not keep
the library for it in memory. Only for the holder of the home's lock.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote

from springtide.errors import RunnerError

__all__ = ["ensure", "main", "verified"]

AUTHORITY = "ca"
AUTHORITY_LIFETIME = timedelta(days=3650)
AUTHORITY_LEFT = timedelta(days=365)
LIFETIME = timedelta(days=90)
RENEW_BEFORE = timedelta(days=30)
SKEW = timedelta(hours=1)
"""Valid from a little earlier: clocks differ."""

ADDRESSES = ("127.0.0.1", "::1")
NAMES = ("localhost",)


def verified(secrets: Path) -> str:
    """The parameters of a url whose server proves itself by a certificate of this platform."""
    return f"sslmode=verify-full&sslrootcert={quote(str(secrets / f'{AUTHORITY}.crt'))}"


async def ensure(secrets: Path, nodes: Sequence[str], *, authority: bool) -> list[str]:
    """Make or renew what is missing or ends soon; the nodes whose certificate is new.

    `authority`: also the authority, for when nothing runs yet. Raises RunnerError.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "springtide.ops.runner.certificates",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    asked = {"secrets": str(secrets), "nodes": list(nodes), "authority": authority}
    try:
        out, err = await process.communicate(json.dumps(asked).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RunnerError(f"the certificates in {secrets} could not be made: {err.decode().strip()}")
    renewed: list[str] = json.loads(out)
    return renewed


def renew(secrets: Path, nodes: Sequence[str], *, authority: bool, now: datetime) -> list[str]:
    """`ensure`, in this process."""
    signer = _read(secrets, AUTHORITY)
    if signer is None or (authority and _ends(signer[0]) - now < AUTHORITY_LEFT):
        signer = _make(secrets, AUTHORITY, None, now)
    renewed = []
    for node in nodes:
        found = _read(secrets, node)
        if found is None or _ends(found[0]) - now < RENEW_BEFORE or not _signed(found[0], signer[0]):
            _make(secrets, node, signer, now)
            renewed.append(node)
    return renewed


def _make(secrets: Path, name: str, signer: Any, now: datetime) -> Any:
    """A key and its certificate, signed by `signer`, or by itself: then it is an authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    own = signer is None
    called = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"springtide {name}")])
    ends = now + (AUTHORITY_LIFETIME if own else LIFETIME)
    builder = (
        x509.CertificateBuilder()
        .subject_name(called)
        .issuer_name(called if own else signer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=own, path_length=0 if own else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not own,
                key_cert_sign=own,
                crl_sign=own,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if not own:
        names = [
            *map(x509.DNSName, NAMES),
            *(x509.IPAddress(ip_address(address)) for address in ADDRESSES),
        ]
        builder = (
            builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer[0].public_key()), critical=False
            )
        )
    certificate = builder.sign(key if own else signer[1], hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _replace(secrets / f"{name}.key", private)
    _replace(secrets / f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def _read(secrets: Path, name: str) -> Any:
    """(certificate, key); None when one is missing, unreadable as such, or they do not belong together."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificate = x509.load_pem_x509_certificate((secrets / f"{name}.crt").read_bytes())
        key = load_pem_private_key((secrets / f"{name}.key").read_bytes(), None)
    except (FileNotFoundError, ValueError):
        return None
    return (certificate, key) if certificate.public_key() == key.public_key() else None


def _ends(certificate: Any) -> datetime:
    try:
        ends: datetime = certificate.not_valid_after_utc
    except AttributeError:  # cryptography before 42
        ends = certificate.not_valid_after.replace(tzinfo=UTC)
    return ends


def _signed(certificate: Any, authority: Any) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # of the library: wrong name, wrong key, wrong signature
        return False
    return True


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
    temporary.replace(path)


def main() -> int:
    asked = json.load(sys.stdin)
    try:
        renewed = renew(
            Path(asked["secrets"]), asked["nodes"], authority=asked["authority"], now=datetime.now(UTC)
        )
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(renewed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
