"""PostgreSQL and Redis as child processes in the world's namespace, ended by their own pid.

They die with the test process too (PR_SET_PDEATHSIG, which setpriv(1) sets), so a killed run leaves nothing.
"""

from __future__ import annotations

import pwd
import shutil
import subprocess
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kit import zone
from kit.namespaces import enter_command
from kit.patience import patient

if TYPE_CHECKING:
    from collections.abc import Sequence

STOP_S = patient(60)


class Child:
    """A server in namespace `name`, up when this returns: it has printed `ready`.

    `user` is whom it runs as. Raises RuntimeError with its output when it ends instead.
    """

    def __init__(self, name: str, user: str, command: Sequence[str], ready: str) -> None:
        self._process = subprocess.Popen(
            [*enter_command(name), *as_user(user), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",  # which every account may read
        )
        assert self._process.stdout is not None
        self._output: IO[str] = self._process.stdout
        self._await(ready)
        self._drain = threading.Thread(target=self._output.read)
        self._drain.start()

    def _await(self, ready: str) -> None:
        said = []
        for line in self._output:
            if ready in line:
                return
            said.append(line)
        self._process.wait()
        self._output.close()
        raise RuntimeError("".join(said))

    def close(self) -> None:
        """Terminate, and kill when that does not help within STOP_S seconds."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._drain.join()
        self._output.close()


def as_user(user: str) -> list[str]:
    """What to put before a command for it to run as `user` and to die with the test process."""
    account = pwd.getpwnam(user)
    return [
        "setpriv",
        f"--reuid={account.pw_uid}",
        f"--regid={account.pw_gid}",
        "--init-groups",
        "--pdeathsig=KILL",
        "--",
    ]


def postgres_program(program: str) -> Path:
    """A server program of the newest PostgreSQL that Debian's packages hold. Raises FileNotFoundError."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), key=lambda path: int(path.parts[4]))
    if not found:
        raise FileNotFoundError(program)
    return found[-1]


def start_postgres(name: str, data: Path, certificate: Path, key: Path) -> Child:
    """PostgreSQL in namespace `name` for everybody, with TLS; `data` is made and left to the caller."""
    data.mkdir()
    shutil.chown(data, "postgres", "postgres")
    initdb = [str(postgres_program("initdb")), "-D", str(data), "--auth=trust", "--no-sync"]
    subprocess.run([*as_user("postgres"), *initdb], check=True, capture_output=True, cwd="/")
    own_key = Path(shutil.copy(key, data / "server.key"))
    shutil.chown(own_key, "postgres", "postgres")
    own_key.chmod(0o600)
    (data / "pg_hba.conf").write_text("host all all all trust\n")
    settings = {
        "listen_addresses": "*",
        "port": str(zone.POSTGRES_PORT),
        "unix_socket_directories": "",
        "fsync": "off",
        "shared_buffers": "8MB",
        "ssl": "on",
        "ssl_cert_file": str(certificate),
        "ssl_key_file": str(own_key),
    }
    options = [part for key_, value in settings.items() for part in ("-c", f"{key_}={value}")]
    command = [str(postgres_program("postgres")), "-D", str(data), *options]
    return Child(name, "postgres", command, "ready to accept connections")


def start_redis(name: str, program: str) -> Child:
    """Redis in namespace `name` for everybody, without persistence."""
    flags = ["--port", str(zone.REDIS_PORT), "--bind", "0.0.0.0 ::", "--protected-mode", "no", "--save", ""]
    return Child(name, "nobody", [program, *flags], "Ready to accept connections")
