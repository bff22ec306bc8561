"""Runs inside the demo's sandbox, with the distribution's Python and nothing but its library.

Takes a JSON list of [command, ...] as its argument; writes one JSON object per attempt as it ends.
"""

import json
import subprocess
import sys
import time

_TIMEOUT_S = 60


def _attempt(command: list[str]) -> dict[str, object]:
    started = time.time_ns() // 1_000_000
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        status, said = done.returncode, (done.stdout.strip() or done.stderr.strip())
    except subprocess.TimeoutExpired:
        status, said = -1, "no end"
    return {"status": status, "said": said, "from_ms": started, "to_ms": time.time_ns() // 1_000_000}


for _command in json.loads(sys.argv[1]):
    sys.stdout.write(json.dumps(_attempt(_command)) + "\n")
    sys.stdout.flush()
