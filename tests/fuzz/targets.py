"""The fuzz targets. Each is a module here, imported when it is asked for.

A target has `check`, which takes any bytes and raises when a promise is broken, and `seeds`, inputs to begin with.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NAMES = (
    "client_hello",
    "http1_request",
    "http1_response",
    "http1_differential",
    "first_bytes",
    "socks5",
    "upstream_response",
    "dns_message",
    "profile",
    "host_rules",
    "scrub",
)
CORPUS = Path(__file__).with_name("corpus")


class Target(Protocol):
    """What the modules in NAMES have in common."""

    def check(self, data: bytes) -> None:
        """Raise AssertionError, or whatever a parser lets out that it does not document."""

    def seeds(self) -> Iterable[bytes]:
        """Inputs of every kind that the target knows."""


def target(name: str) -> Target:
    """The module of one of NAMES."""
    return cast("Target", importlib.import_module(f"fuzz.{name}"))


def examples(name: str) -> Iterator[Path]:
    """The kept inputs of a target, in a fixed order."""
    yield from sorted(path for path in (CORPUS / name).glob("*") if path.is_file())
