"""The proxy's TLS where the proxy is: without its own files, without new system calls, as an account of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from kit.account import finish
from landlockpy import abi_version

pytestmark = [pytest.mark.root, pytest.mark.kernel]

PROGRAM = Path(__file__).with_name("in_proxys_place.py")


def test_everything_works_where_the_proxy_is() -> None:
    """Certificates are made, both ends shake hands, move bytes, fail in words and resume, with what seccomp and
    Landlock leave to the proxy; nothing is imported or read late.
    """
    done = finish([sys.executable, "-I", str(PROGRAM), "nobody"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "confined": f"{3 if abi_version() else 1} of 3, uid True",
        "intercept": "answer, ended True",
        "refused": "TLS handshake: the client refuses with the alert unknown ca; "
        "it does not trust this sandbox's certificate authority",
        "upstream": "known [True, True], reused [False, True], TLS failed: IP address mismatch, "
        "certificate is not valid for '127.0.0.1'",
    }
