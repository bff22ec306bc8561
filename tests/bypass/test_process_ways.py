"""Processes, namespaces and keys of the account outside: none can be reached.

What can be tried outside as the same account is tried there first: an attack that fails everywhere would prove nothing.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit.account import AS_NOBODY, INSIDE, NOBODY, OUTSIDE, PYTHON, RUN, bystander, finish, report
from kit.expect import missing

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.root, pytest.mark.kernel]


_BYSTANDER = """
import ctypes, signal, socket, sys
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER: where Yama rules, anybody may trace it
daemon, secret = socket.socket(socket.AF_UNIX), socket.socket()
daemon.bind(sys.argv[1])
daemon.listen()
print("ready", flush=True)
signal.pause()
"""

_ROB = """
import ctypes, errno, json, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
def told(result):
    return "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]
def traced(request, pid):
    result = told(libc.ptrace(request, pid, None, None))
    if result == "done":
        if request == 16:
            os.waitpid(pid, 0x40000000)
        else:
            libc.ptrace(0x4207, pid, None, None)
            os.waitpid(pid, 0x40000000)
        libc.ptrace(17, pid, None, None)
    return result
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[2])
try:
    answer = client.getsockopt(socket.SOL_SOCKET, 77, 4)  # SO_PEERPIDFD
except OSError as error:
    print(json.dumps({"peerpidfd": errno.errorcode[error.errno]}))
    sys.exit()
pidfd, pid = struct.unpack("i", answer)[0], int(sys.argv[1])
print(json.dumps({
    "peerpidfd": "done",
    "getfd": sorted({told(libc.syscall(438, pidfd, fd, 0)) for fd in range(8)}),
    "signal": told(libc.syscall(424, pidfd, 0, None, 0)),
    "net of it": told(libc.ioctl(pidfd, 0xFF04, 0)),  # PIDFD_GET_NET_NAMESPACE
    "user of it": told(libc.ioctl(pidfd, 0xFF09, 0)),  # PIDFD_GET_USER_NAMESPACE
    "attach": traced(16, pid),
    "seize": traced(0x4206, pid),
    "attach to pid 1": told(libc.ptrace(16, 1, None, None)),
    "seize pid 1": told(libc.ptrace(0x4206, 1, None, None)),
}))
"""


@pytest.mark.bypass("pidfd-getfd", "ptrace", "setns")
def test_a_process_outside_can_be_neither_robbed_nor_traced(place: Path) -> None:
    """Be it of the same account, its socket in sight, its pidfd at hand: no socket of it can be taken (pidfd_getfd), no
    namespace of it be opened, no signal be sent, and its number is nobody's. Nor can the sandbox's own pid 1 be traced.
    """
    path = str(place / "daemon")
    with bystander(*AS_NOBODY, PYTHON, "-c", _BYSTANDER, path) as process:
        outside = report(OUTSIDE, _ROB, str(process.pid), path)
        if outside["peerpidfd"] != "done":
            missing("peerpidfd", "the kernel has no SO_PEERPIDFD (6.5)")
        inside = report([*RUN, "--allow-socket", path, "--"], _ROB, str(process.pid), path)
    assert "done" in outside["getfd"]
    assert (outside["signal"], outside["attach"], outside["seize"]) == ("done", "done", "done")
    assert inside.pop("peerpidfd") == "done"
    assert inside.pop("getfd") == ["EPERM"]
    assert (inside.pop("attach"), inside.pop("seize")) == ("ESRCH", "ESRCH")
    assert (inside.pop("attach to pid 1"), inside.pop("seize pid 1")) == ("EPERM", "EPERM")
    assert inside.pop("signal") in {"EINVAL", "EPERM"}
    assert "done" not in inside.values()


_OPEN_HANDLES = """
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def told(handle):
    fd = libc.open_by_handle_at(-10003, bytes.fromhex(handle), os.O_RDONLY)  # FD_NSFS_ROOT
    return "done" if fd >= 0 else errno.errorcode[ctypes.get_errno()]
print(json.dumps([told(handle) for handle in sys.argv[1:]]))
"""
_AT_EMPTY_PATH = 0x1000
_HANDLE_BYTES = 128  # MAX_HANDLE_SZ


def _handle(path: Path) -> bytes | None:
    """The struct file_handle of `path`, None where its file system has none. name_to_handle_at(2)."""
    buffer = ctypes.create_string_buffer(_HANDLE_BYTES.to_bytes(4, sys.byteorder), 8 + _HANDLE_BYTES)
    libc, mount_id, fd = ctypes.CDLL(None, use_errno=True), ctypes.c_int(), os.open(path, os.O_RDONLY)
    try:
        failed = libc.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount_id), _AT_EMPTY_PATH)
    finally:
        os.close(fd)
    return None if failed else buffer.raw[: 8 + int.from_bytes(buffer.raw[:4], sys.byteorder)]


@pytest.mark.bypass("setns")
def test_a_namespace_outside_cannot_be_opened_by_its_handle() -> None:
    """Handles of namespaces can be guessed: the account's own containers must stay closed to the sandbox."""
    with bystander(*AS_NOBODY, "unshare", "--user", "--net", "sh", "-c", "echo ready; exec sleep 300") as process:
        handles = [_handle(Path(f"/proc/{process.pid}/ns/{kind}")) for kind in ("net", "user")]
        known = [handle.hex() for handle in handles if handle is not None]
        if not known or report(OUTSIDE, _OPEN_HANDLES, *known) != ["done", "done"]:
            missing("nsfs-handles", "the kernel opens no namespace by handle (6.18)")
        found = report(INSIDE, _OPEN_HANDLES, *known)
    assert "done" not in found
    assert set(found) <= {"ESTALE", "EPERM"}


# --- keys

_WITH_A_KEY = """
import ctypes, os, platform, sys
libc = ctypes.CDLL(None, use_errno=True)
add_key, request_key, keyctl = {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}[platform.machine()]
os.setresuid(int(sys.argv[1]), int(sys.argv[1]), 0)
ring = libc.syscall(keyctl, 1, None)  # KEYCTL_JOIN_SESSION_KEYRING
key = libc.syscall(add_key, b"user", b"nono-escape", b"s3cret", ctypes.c_size_t(6), -3)
if min(ring, key) < 0:
    sys.exit(str(ctypes.get_errno()))
os.setresuid(0, 0, 0)
os.execvp(sys.argv[2], [*sys.argv[2:], str(add_key), str(request_key), str(keyctl), str(ring), str(key)])
"""

_READ_KEYS = """
import ctypes, errno, json, sys
libc = ctypes.CDLL(None, use_errno=True)
add_key, request_key, keyctl, ring, key = map(int, sys.argv[1:])
READ, SEARCH, LINK, DESCRIBE = 11, 10, 8, 6
def call(number, *arguments):
    return libc.syscall(number, *arguments)
def payload(serial):
    buffer = ctypes.create_string_buffer(99)
    length = call(keyctl, READ, serial, buffer, 99)
    return buffer.raw[:length].decode() if length >= 0 else failure()
def failure():
    return errno.errorcode[ctypes.get_errno()].replace("EDEADLOCK", "EDEADLK")
def told(serial):
    return payload(serial) if serial >= 0 else failure()
print(json.dumps({
    "searched": told(call(keyctl, SEARCH, -3, b"user", b"nono-escape", 0)),
    "requested": told(call(request_key, b"user", b"nono-escape", None, 0)),
    "read": payload(key),
    "key linked": told(call(keyctl, LINK, key, -3) or key),
    "ring linked": told(call(keyctl, LINK, ring, -3) or key),
}))
"""


@pytest.mark.bypass("keyrings")
def test_the_callers_keys_stay_outside() -> None:
    """Tickets and tokens of the caller: neither found, nor read or linked by a number that is known."""
    with_key = [PYTHON, "-c", _WITH_A_KEY, str(NOBODY.pw_uid)]
    done = finish([*with_key, *OUTSIDE, PYTHON, "-c", _READ_KEYS])
    if done.stderr.strip() == str(errno.ENOSYS):
        missing("keyrings", "the kernel has no keyrings")
    outside = json.loads(done.stdout)
    assert outside.pop("ring linked") == "EDEADLK"  # into itself
    assert set(outside.values()) == {"s3cret"}
    inside = report([*with_key, *INSIDE], _READ_KEYS)
    assert set(inside.values()) == {"ENOSYS"}


# --- signals

_KILL_GROUP = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.kill(0, signal.SIGTERM)
"""
# Status 143: SIGTERM came first. 137: it lived until we killed it.
_BESIDE_A_SLEEP = """
setpriv --reuid=$0 --clear-groups sleep 300 & victim=$!
until [ "$(stat -c %u /proc/$victim)" = $0 ]; do :; done
"$@"; echo command $?
kill -KILL $victim 2>/dev/null; wait $victim; echo sleep $?
"""


def _fate_of_a_sleep(where: Sequence[str]) -> str:
    command = ["sh", "-c", _BESIDE_A_SLEEP, str(NOBODY.pw_uid), *where, PYTHON, "-c", _KILL_GROUP]
    return finish(command, start_new_session=True).stdout


@pytest.mark.bypass("signals")
def test_without_a_terminal_the_callers_group_is_out_of_reach() -> None:
    """kill(0, …) reaches a whole process group, through the pid namespace's border: the pipeline we are part of."""
    assert _fate_of_a_sleep(OUTSIDE) == "command 0\nsleep 143\n"
    assert _fate_of_a_sleep(INSIDE) == "command 0\nsleep 137\n"
