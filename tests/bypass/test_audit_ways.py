"""What is said about a command, it cannot change."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from kit.account import NOBODY, PYTHON, RUN, finish, report
from kit.machine import read_records

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.kernel]


_FORGE = """
import errno, json, os, socket, sys
path, directory = sys.argv[1], os.path.dirname(sys.argv[1])
forged = directory + "/forged"
def told(step):
    try:
        step()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def write(name, mode):
    with open(name, mode) as file:
        file.write('{"forged": 1}\\n')
try:
    socket.create_connection(("nowhere.test", 80))
except OSError:
    pass
write(forged, "w")
print(json.dumps({
    "read": open(path).read(),
    "truncate": told(lambda: os.truncate(path, 0)),
    "write": told(lambda: write(path, "w")),
    "append": told(lambda: write(path, "a")),
    "replace": told(lambda: os.replace(forged, path)),
    "unlink": told(lambda: os.unlink(path)),
    "rename": told(lambda: os.rename(path, forged)),
    "link": told(lambda: os.link(path, directory + "/linked")),
}))
"""


@pytest.mark.bypass("audit-forging")
def test_the_command_cannot_rewrite_what_is_said_about_it(place: Path) -> None:
    """Its audit log, in a directory of its own: neither read, truncated, appended to nor replaced by its path."""
    log = place / "audit.ndjson"
    found = report([*RUN, "--audit-log", str(log), "--"], _FORGE, str(log))
    assert found.pop("read") == ""
    assert (found["replace"], found["unlink"], found["rename"]) == ("EBUSY", "EBUSY", "EBUSY")
    assert found["link"] != "done"
    records = read_records(log)
    assert records[0]["target"] == "nowhere.test"
    assert records[0]["decision"] == "deny"
    assert "forged" not in log.read_text()


_PUT_ANOTHER_IN_ITS_PLACE = """
import os, socket, sys
log = sys.argv[1]
directory = os.path.dirname(log)
try:
    socket.create_connection(("nowhere.test", 80))
except OSError:
    pass
try:
    os.rename(directory, directory + ".old")
    os.mkdir(directory)
    with open(log, "w") as file:
        file.write('{"forged": 1}\\n')
except OSError:
    pass
"""


@pytest.mark.bypass("audit-forging")
def test_the_command_cannot_move_the_logs_directory_away(place: Path) -> None:
    """And leave one of its own under that name, with a log that says something else."""
    log = place / "logs" / "audit.ndjson"
    log.parent.mkdir()
    os.chown(log.parent, NOBODY.pw_uid, NOBODY.pw_gid)
    done = finish([*RUN, "--audit-log", str(log), "--", PYTHON, "-c", _PUT_ANOTHER_IN_ITS_PLACE, str(log)])
    assert done.returncode == 0, done.stderr
    assert "forged" not in log.read_text()
    assert read_records(log)[0]["target"] == "nowhere.test"


# --- who asked

_ASK = """
import os, re, socket, struct, sys
def resolver(table):
    ports = re.findall(r"^ *\\d+: [0-9A-F]+:([0-9A-F]{4}) ", open("/proc/net/" + table).read(), re.M)
    assert len(ports) == 1, ports
    return int(ports[0], 16)
def query(name):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\\0" + struct.pack("!2H", 1, 1)
def ask(comm, name, host, port, source, connected=False):
    if os.fork() == 0:
        open("/proc/self/comm", "w").write(comm)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(90)
            client.bind(("::1" if ":" in host else "127.0.0.1", source))
            if connected:
                client.connect((host, port))
                client.send(query(name))
            else:
                client.sendto(query(name), (host, port))
            client.recv(512)
        os._exit(0)
    assert os.wait()[1] == 0
v4, v6 = resolver("udp"), resolver("udp6")
ask("former", "former.test", "192.0.2.53", 53, 4444)
ask("direct", "direct.test", "127.0.0.1", v4, 4444)
ask("connected", "connected.test", "127.0.0.1", v4, 4444, True)
ask("former6", "former6.test", "2001:db8::53", 53, 4446)
ask("direct6", "direct6.test", "::1", v6, 4446)
ask("connected6", "connected6.test", "::1", v6, 4446, True)
ask("fresh", "fresh.test", "127.0.0.1", v4, 4448)
"""


@pytest.mark.bypass("audit-forging")
def test_who_asks_the_resolver_directly_is_known(place: Path) -> None:
    """A query to the port where our resolver really is has its sender in the audit log: not nobody, and not whoever had
    the sender's port before.
    """
    log = place / "audit.ndjson"
    done = finish([*RUN, "--audit-log", str(log), "--", PYTHON, "-c", _ASK])
    assert done.returncode == 0, done.stderr
    asked = {record["target"]: record for record in read_records(log) if record["event"] == "dns"}
    wanted = ["former", "direct", "connected", "former6", "direct6", "connected6", "fresh"]
    assert {name: record.get("comm") for name, record in asked.items()} == {f"{name}.test": name for name in wanted}
    assert len({record["pid"] for record in asked.values()}) == len(wanted)
    assert {record["uid"] for record in asked.values()} == {NOBODY.pw_uid}
