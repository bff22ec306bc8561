"""`nono_ebpf.credentials.secret`: what a secret does not do, and where its bytes are and are not."""

from __future__ import annotations

import copy
import ctypes
import json
import os
import pickle
import re
import secrets
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from kit.expect import missing
from kit.memory import occurrences
from kit.patience import patient

from nono_ebpf.credentials.secret import MAX_BYTES, Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MASK = 0x5A
# Holds a secret that only its own input, masked, has told it; then does what it is told, line by line.
HOLDER = f"""
import gc, os, sys
from nono_ebpf.credentials.secret import Secret
plain = bytearray(sys.stdin.buffer.readline().strip())
for place in range(len(plain)): plain[place] ^= {MASK}
secret = Secret(plain)
plain[:] = bytes(len(plain))
print(secret.locked, flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


@contextmanager
def holder(needle: bytes) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[str], None]]]:
    """A process that has `needle` in a Secret, and a way to make it execute a line."""
    command = [sys.executable, "-c", HOLDER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdin is not None
    assert process.stdout is not None

    def tell(line: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{line}\n".encode())
        assert process.stdout.readline() == b"done\n"

    try:
        process.stdin.write(bytes(each ^ MASK for each in needle) + b"\n")
        assert process.stdout.readline().strip() in {b"True", b"False"}
        yield process, tell
    finally:
        process.kill()
        process.wait(patient(90))
        process.stdin.close()
        process.stdout.close()


def needle() -> bytes:
    """Something that occurs nowhere else, and whose masked form has no line end."""
    return secrets.token_hex(16).encode()


def flags_of(secret: Secret) -> dict[str, str]:
    """What the kernel says of the mapping that the secret is in. proc_pid_smaps(5)."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(secret._memory))
    found: dict[str, str] | None = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            if found is not None:
                return found
            found = {} if int(span[1], 16) <= address < int(span[2], 16) else None
        elif found is not None:
            name, _, value = line.partition(":")
            found[name] = value.strip()
    assert found is not None
    return found


def test_it_has_no_text_form() -> None:
    """Neither in a log, nor in a template, nor in a traceback."""
    secret = Secret(b"hunter2")
    shown = (str(secret), repr(secret), f"{secret}", f"{secret!r:>40}", str([secret]), ascii(secret))
    assert not any("hunter2" in text for text in shown)


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy, hash, bytes, list, len, json.dumps])
def test_it_cannot_be_taken_out_but_by_name(take: Callable[[object], object]) -> None:
    """What copies, counts, hashes or serialises it is an error."""
    with pytest.raises(TypeError):
        take(Secret(b"hunter2"))


def test_it_goes_into_no_message() -> None:
    """The library that writes ours does not take it by chance."""
    with pytest.raises(TypeError):
        msgspec.msgpack.encode({"secret": Secret(b"hunter2")})


def test_it_is_compared_with_secrets_only() -> None:
    """Equal where the bytes are; never equal to the bytes themselves."""
    assert Secret(b"a") == Secret(b"a")
    assert Secret(b"a") != Secret(b"b")
    assert Secret(b"a") != Secret(b"aa")
    assert Secret(b"a") != b"a"


@pytest.mark.parametrize("value", [b"", b"x", b"\0\xff" * 7, bytes(MAX_BYTES)])
def test_it_gives_what_it_was_given(value: bytes) -> None:
    """Whatever the bytes, from any kind of buffer."""
    for given in (value, bytearray(value), memoryview(value)):
        secret = Secret(given)
        assert secret.reveal() == value
        with secret.lent() as view:
            assert (bytes(view), view.readonly) == (value, True)


def test_once_wiped_it_has_nothing() -> None:
    """And equals nothing, itself included; wiping twice is no mistake."""
    secret = Secret(b"hunter2")
    secret.wipe()
    secret.wipe()
    with pytest.raises(ValueError, match="closed"):
        secret.reveal()
    assert (secret == secret) is False


def test_its_pages_are_locked_and_not_dumped() -> None:
    """smaps: all of it locked, "dd" (no dump), "wf" (wiped in a forked child), and nobody else's page."""
    secret = Secret(b"hunter2")
    found = flags_of(secret)
    assert secret.locked
    assert found["Locked"] == found["Size"] == found["Rss"]
    assert {"dd", "wf", "lo"} <= set(found["VmFlags"].split())


def test_a_forked_child_has_none_of_it() -> None:
    """Nor any child that a library forks."""
    secret = Secret(b"hunter2")
    child = os.fork()
    if not child:
        os._exit(0 if secret.reveal() == bytes(7) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert secret.reveal() == b"hunter2"


def test_where_the_kernel_locks_nothing_it_says_so() -> None:
    """RLIMIT_MEMLOCK 0: the secret can be used, and `locked` is what can be reported."""
    if os.geteuid() != 0:
        missing("root", "another account is needed: root locks what it likes")
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))\n"
        "from nono_ebpf.credentials.secret import Secret\n"
        "import os; os.setresuid(65534, 65534, 65534)\n"
        "made = Secret(b'hunter2'); print(made.locked, made.reveal().decode())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False hunter2\n", "")


@pytest.mark.parametrize("end", ["secret.wipe()", "del secret; gc.collect()"])
def test_a_wiped_secret_is_gone_from_memory(end: str) -> None:
    """Of the whole process; before, it is there once."""
    wanted = needle()
    with holder(wanted) as (process, tell):
        assert occurrences(process.pid, wanted) == 1
        tell(end)
        assert occurrences(process.pid, wanted) == 0


def test_it_is_locked_under_the_filter_of_the_proxy() -> None:
    """Seccomp leaves the calls that it takes."""
    if os.geteuid() != 0:
        missing("root", "a filter is set as root here")
    script = (
        "from nono_ebpf.credentials.secret import Secret\n"
        "from nono_ebpf.sandbox import seccomp; seccomp.confine_proxy()\n"
        "made = Secret(b'hunter2'); print(made.locked, made == Secret(b'hunter2'), made.wipe())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True True None\n", "")
