"""Runs commands, all at once, and tells how each ended as a line of JSON: [name, exit status, stdout, stderr].

argv is a file, a list of {"name", "road", "environment": {name: value}, "files": {path: text}, "command": […]}. `road`
is what a command is told of us, by variables: "redirect" nothing, "connect" the proxy, "reverse" the addresses of
services. What else there is of variables (CA bundles, keys) stays. @TOKEN@ and @PORT@ in commands, files and values are
the session's. The first line is ["", 0, token, ""]. Standard library only.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

DEADLINE_S = 300 * float(os.environ.get("NONO_PATIENCE", "1"))
TOKEN, PORT = os.environ["NONO_PROXY_TOKEN"], str(urlsplit(os.environ["HTTP_PROXY"]).port)
_printing = Lock()


def environment(road: str) -> dict[str, str]:
    """Ours, as far as a command on `road` is to have it."""
    kept = dict(os.environ)
    for name in os.environ:
        about_proxy, about_services = "PROXY" in name.upper(), name.endswith("_BASE_URL")
        if (about_proxy and road != "connect") or (about_services and road != "reverse"):
            del kept[name]
    return kept


def filled(text: str) -> str:
    """`text` with what it leaves open."""
    return text.replace("@TOKEN@", TOKEN).replace("@PORT@", PORT)


def tell(*line: object) -> None:
    """One line, whole."""
    with _printing:
        print(json.dumps(line), flush=True)


def run(errand: dict) -> None:
    """One of them."""
    added = {name: filled(value) for name, value in errand["environment"].items()}
    try:
        for path, text in errand["files"].items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(filled(text))
        done = subprocess.run(
            [filled(word) for word in errand["command"]],
            env=environment(errand["road"]) | added,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE_S,
        )
        status, out, err = done.returncode, done.stdout, done.stderr
    except OSError as error:
        status, out, err = -1, b"", str(error).encode()
    except subprocess.TimeoutExpired as late:
        status, out, err = -1, late.stdout or b"", (late.stderr or b"") + b"\nnot done in time"
    tell(errand["name"], status, out.decode("latin-1"), err.decode("latin-1"))


errands = json.loads(Path(sys.argv[1]).read_text())
tell("", 0, TOKEN, "")
with ThreadPoolExecutor(len(errands)) as pool:
    list(pool.map(run, errands))
