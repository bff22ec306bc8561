"""What bytes mean. Sans-IO: nothing here imports asyncio, socket or ssl.

Every parser here takes the bytes gathered so far and answers with a value, or with `NEED_MORE` when a longer
prefix of the same stream is needed. The answer never depends on how the stream was cut into segments.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal


class Progress(Enum):
    """The answers of a parser that are not a parsed value."""

    NEED_MORE = "need more"


NeedMore = Literal[Progress.NEED_MORE]
NEED_MORE: Final = Progress.NEED_MORE
