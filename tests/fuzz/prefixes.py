"""A parser of a stream must give one answer, however the stream is cut; shared by the fuzz targets."""

from __future__ import annotations

import random
import zlib
from typing import TYPE_CHECKING

from nono_ebpf.wire import NEED_MORE

if TYPE_CHECKING:
    from collections.abc import Callable

# Each cut parses anew, so a run that tried them all would try few inputs. The property tests try them all.
_CUTS = 16


def cuts(data: bytes) -> list[int]:
    """Lengths of proper prefixes of `data` to try: always the same for the same bytes, others for others."""
    if len(data) <= _CUTS:
        return list(range(len(data)))
    # Not spread evenly: what is decided by few bytes is decided early, and what was overlooked shows at the end.
    chosen = random.Random(zlib.crc32(data))
    return [len(data) - 1, *(int(len(data) * chosen.random() ** 2) for _ in range(_CUTS))]


def check_cuts(data: bytes, verdict: Callable[[bytes | bytearray], object]) -> object:
    """The verdict on `data`: that of every prefix which is not NEED_MORE, in either type of buffer."""
    whole = verdict(data)
    assert verdict(bytearray(data)) == whole
    for size in cuts(data):
        part = verdict(data[:size])
        assert part is NEED_MORE or part == whole, f"{part} of {size} bytes, {whole} of {len(data)}"
    return whole
