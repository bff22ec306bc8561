"""How long tests wait for what may be slow, scaled by NONO_PATIENCE (1 where it is not set).

Emulated processors are ten to twenty times as slow as the machine that the waits were chosen on.
"""

from __future__ import annotations

import os


def patient(seconds: float) -> float:
    """`seconds`, or as many times that as NONO_PATIENCE says."""
    return seconds * float(os.environ.get("NONO_PATIENCE", "1"))
