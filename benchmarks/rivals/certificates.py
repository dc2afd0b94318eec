"""Certificates for the origin: one for many loopback addresses, and the bundle with which every client verifies it.

Rules: clients verify as they would on the web. The bundle holds the system's authorities beside that of the origin, for
loading it is a part of what a client does, and SSL_CERT_FILE names it.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True)
class Certificates:
    """The files.

    Attributes:
        key: The private key of the origin.
        chain: Its certificate.
        bundle: What clients trust.
        authorities: The number of certificates in the bundle.
    """

    key: Path
    chain: Path
    bundle: Path
    authorities: int


def write_bundle(path: Path, authority_pem: bytes) -> int:
    """Write what clients trust: the system's authorities and this one; return their number."""
    authorities = ssl.create_default_context().get_ca_certs(binary_form=True)
    own = authority_pem.decode()
    path.write_text("".join([*map(ssl.DER_cert_to_PEM_cert, authorities), own]))
    return len(authorities) + own.count("-----BEGIN CERTIFICATE-----")


def issue_certificates(folder: Path, addresses: Sequence[str]) -> Certificates:
    """Make an authority, and have it issue one certificate for all addresses."""
    authority = trustme.CA()
    certificate = authority.issue_cert(*addresses)
    key, chain, bundle = folder / "key.pem", folder / "chain.pem", folder / "authorities.pem"
    certificate.private_key_pem.write_to_path(key)
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    return Certificates(key, chain, bundle, write_bundle(bundle, authority.cert_pem.bytes()))
