"""What runs inside a sandbox for as long as many tests ask: a server on stdin and stdout that calls functions by name.

Messages are a 4-byte length (big endian) and JSON. The first is `{"modules": {name: source, …}}`. Each further one,
`{"call": [module, function], "arguments": […], "timeout_s": …}`, is run by a child of its own and answered with one of

    {"returned": value}    {"error": "EPERM", "at": text}    {"raised": traceback}
    {"ended": -9}          it ended without an answer        {"late": true}    it was killed at its deadline

Standard library only.
"""

from __future__ import annotations

import errno
import importlib.abc
import json
import os
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import types

Answer = dict[str, Any]
_HEADER_BYTES = 4


def read_message(fd: int) -> Any:
    """The next message; None at the end."""
    header = _read_exactly(fd, _HEADER_BYTES)
    return json.loads(_read_exactly(fd, int.from_bytes(header, "big"))) if header else None


def write_message(fd: int, message: Any) -> None:
    """Send one."""
    body = json.dumps(message).encode()
    data = memoryview(len(body).to_bytes(_HEADER_BYTES, "big") + body)
    while data:
        data = data[os.write(fd, data) :]


def _read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    return data


class _Sent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports modules whose sources came with the first message."""

    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = sources

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package="." not in name) if name in self._sources else None

    def exec_module(self, module: types.ModuleType) -> None:
        exec(compile(self._sources[module.__name__], f"<{module.__name__}>", "exec"), module.__dict__)


def _load(sources: dict[str, str]) -> None:
    sys.meta_path.insert(0, _Sent(sources))
    for name in sources:
        importlib.import_module(name)


def _outcome(request: Any) -> Answer:
    module, function = request["call"]
    try:
        return {"returned": getattr(sys.modules[module], function)(*request["arguments"])}
    except OSError as error:
        name = "EOPNOTSUPP" if error.errno == errno.ENOTSUP else errno.errorcode.get(error.errno or 0)
        return {"error": name or type(error).__name__, "at": str(error)}
    except BaseException:  # noqa: BLE001  # whatever an attack does to itself is its answer
        return {"raised": traceback.format_exc()}


def _serve(request: Any) -> Answer:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        _detach_streams()
        write_message(writing, _outcome(request))
        os._exit(0)
    os.close(writing)
    try:
        return _answer_of(pid, reading, time.monotonic() + request["timeout_s"])
    finally:
        os.close(reading)


def _detach_streams() -> None:
    """Our own stdin and stdout are the protocol's."""
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


def _answer_of(pid: int, reading: int, end: float) -> Answer:
    data = b""
    while select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
        more = os.read(reading, 1 << 16)
        data += more
        if not more or len(data) - _HEADER_BYTES == int.from_bytes(data[:_HEADER_BYTES], "big"):
            break
    else:
        _kill(pid)
        os.waitpid(pid, 0)
        return {"late": True}
    if not data:
        return {"ended": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}
    _kill(pid)
    os.waitpid(pid, 0)
    answer: Answer = json.loads(data[_HEADER_BYTES:])
    return answer


def _kill(group: int) -> None:
    with suppress(OSError):
        os.killpg(group, signal.SIGKILL)


def main() -> None:
    requests, answers = os.dup(0), os.dup(1)
    _load(read_message(requests)["modules"])
    write_message(answers, {"ready": os.getpid()})
    while (request := read_message(requests)) is not None:
        write_message(answers, _serve(request))


if __name__ == "__main__":
    main()
