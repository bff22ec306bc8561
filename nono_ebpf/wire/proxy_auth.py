"""What a request offers as proof that its sender may use this proxy.

Knows Proxy-Authorization (RFC 9110 §11.7.2) with Basic (RFC 7617) and Bearer (RFC 6750), and the field that clients of
our services can set more easily. Must not know what the right answer is.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from nono_ebpf.wire.http1 import NONO_TOKEN, Fields, field_values

# RFC 9110 §11.4: credentials = auth-scheme [ 1*SP ( token68 / … ) ]
_CREDENTIALS: Final = re.compile(rb"(basic|bearer) +([0-9A-Za-z\-._~+/]+=*)", re.IGNORECASE)


def offered_secret(fields: Fields) -> bytes | None:
    """The password or token in the one Proxy-Authorization field; None: there is none, or it has no one reading."""
    values = field_values(fields, b"proxy-authorization")
    match = _CREDENTIALS.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        return None
    scheme, text = match.groups()
    return text if scheme.lower() == b"bearer" else _password(text)


def offered_token(fields: Fields) -> bytes | None:
    """The value of the one X-Nono-Token field."""
    values = field_values(fields, NONO_TOKEN)
    return values[0] if len(values) == 1 else None


def _password(text: bytes) -> bytes | None:
    """RFC 7617 §2: the user name has no colon, so everything behind the first one is the password."""
    try:
        _, colon, password = base64.b64decode(text, validate=True).partition(b":")
    except binascii.Error:
        return None
    return password if colon else None
