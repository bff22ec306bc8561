"""Runs commands and prints [exit status, stdout, stderr] of each as JSON.

argv is JSON and, if not one, how many run at once. The JSON is a list of {"proxy": "right" | "wrong" | "none", "files":
{path: text}, "command": […]}. A command gets the proxy variables as they are, with another token, or none; @HOST@,
@PORT@, @USER@ and @TOKEN@ in commands and files are what they say. Standard library only.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

DEADLINE_S = 150
PROXY = os.environ["HTTP_PROXY"]
TOKEN = urlsplit(PROXY).password or ""
WRONG = "0" * 64


def environment(proxy: str) -> dict[str, str]:
    """Ours, as `proxy` wants it."""
    if proxy == "wrong":
        return {name: value.replace(TOKEN, WRONG) for name, value in os.environ.items()}
    kept = dict(os.environ)
    if proxy == "none":
        for name in os.environ:
            if "PROXY" in name.upper():
                del kept[name]
    return kept


def filled(text: str, token: str) -> str:
    """`text` with what it leaves open."""
    url = urlsplit(PROXY)
    facts = {"@HOST@": url.hostname, "@PORT@": url.port, "@USER@": url.username, "@TOKEN@": token}
    for name, fact in facts.items():
        text = text.replace(name, str(fact))
    return text


def step(wanted: dict) -> list:
    """How it ended."""
    token = WRONG if wanted["proxy"] == "wrong" else TOKEN
    for path, text in wanted["files"].items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(filled(text, token))
    done = subprocess.run(
        [filled(word, token) for word in wanted["command"]],
        env=environment(wanted["proxy"]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEADLINE_S,
    )
    return [done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")]


with ThreadPoolExecutor(int(sys.argv[2]) if len(sys.argv) > 2 else 1) as pool:
    print(json.dumps(list(pool.map(step, json.loads(sys.argv[1])))))
