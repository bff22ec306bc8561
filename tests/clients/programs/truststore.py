"""Makes a truststore for Java: argv is its path; it gets what the CA bundle has beyond the distribution's certificates.

The bundle is the one that SSL_CERT_FILE names. Java reads no bundle, and keytool takes one certificate at a time.
"""

import os
import re
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

PASSWORD = "changeit"
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def certificates(path: Path) -> set[bytes]:
    """Those in a PEM file, as DER."""
    return {ssl.PEM_cert_to_DER_cert(each) for each in _PEM.findall(path.read_text())}


known = [Path("/usr/share/ca-certificates"), Path("/usr/local/share/ca-certificates")]
distributed = {each for top in known for path in top.rglob("*.crt") for each in certificates(path)}
for number, certificate in enumerate(certificates(Path(os.environ["SSL_CERT_FILE"])) - distributed):
    with tempfile.NamedTemporaryFile(suffix=".der") as file:
        file.write(certificate)
        file.flush()
        store = ["-storetype", "PKCS12", "-keystore", sys.argv[1], "-storepass", PASSWORD]
        entry = ["-noprompt", "-alias", f"added-{number}", "-file", file.name]
        subprocess.run(["keytool", "-J-Xmx32m", "-importcert", *store, *entry], check=True, capture_output=True)
