"""A cluster that speaks TLS, with a certificate made here."""

from __future__ import annotations

import datetime
import ipaddress
import re

import pytest
from tests.support.terminals import Terminal, free_port, says

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def certificate(tmp_path):
    """What Ray wants to be told, for a certificate that signs itself."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    import ray
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "akkordeon")])
    now = datetime.datetime.now(datetime.UTC)
    addresses = {"127.0.0.1", ray.util.get_node_ip_address()}
    alternatives = [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), *alternatives]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    pem = serialization.Encoding.PEM
    (tmp_path / "node.crt").write_bytes(made.public_bytes(pem))
    (tmp_path / "node.key").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(tmp_path / "node.crt"),
        "RAY_TLS_SERVER_KEY": str(tmp_path / "node.key"),
        "RAY_TLS_CA_CERT": str(tmp_path / "node.crt"),
    }


def test_a_network_that_speaks_tls_trains_and_takes_nobody_who_does_not(terminals, certificate):
    at = f"127.0.0.1:{free_port()}"
    target = f"{at}/tls"
    terminals("network", "start", "digits", "--listen", at, "--name", "tls", **certificate).end()
    trainer: Terminal = terminals(
        "sentinel",
        "train",
        "--network",
        target,
        "--data",
        "digits",
        "--epochs",
        "2",
        "--name",
        "t",
        **certificate,
    )
    assert re.search(r"t: (\d+) batches sent, \1 trained", trainer.end())
    says(terminals("status", at), "what answers at .* is no Ray cluster")
    terminals("network", "stop", target, **certificate).end()
