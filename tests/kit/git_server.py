"""git-http-backend(1) behind a web server that has let the request through: a handler for `kit.api_server`."""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING

from kit.servers import _cgi_environ, _cgi_response, _git_backend

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web

README = "from the other side\n"


class GitServer:
    """Repositories below `work`, each with one commit that adds `README`; whoever is let through may push."""

    def __init__(self, work: Path, *names: str) -> None:
        self.repositories = work / "repositories"
        seed = work / "seed"
        seed.mkdir()
        (seed / "README").write_text(README)
        git = ["git", "-C", str(seed), "-c", "user.name=kit", "-c", "user.email=kit@example.com"]
        for arguments in (["init", "-q", "-b", "main"], ["add", "README"], ["commit", "-q", "-m", "first"]):
            subprocess.run([*git, *arguments], check=True)
        for name in names:
            self.repositories.mkdir(exist_ok=True)
            subprocess.run(["git", "clone", "-q", "--bare", str(seed), str(self.repositories / name)], check=True)

    def file(self, name: str, path: str) -> bytes:
        """What `path` is in the newest commit of a repository."""
        show = ["git", "-C", str(self.repositories / name), "show", f"main:{path}"]
        return subprocess.run(show, check=True, capture_output=True).stdout

    async def handle(self, request: web.Request) -> web.Response:
        """A request for `/NAME/…`."""
        # With a user, pushing is allowed: it has shown who it is.
        environ = {**_cgi_environ(request, self.repositories), "REMOTE_USER": "kit"}
        return _cgi_response(await asyncio.to_thread(_git_backend, environ, await request.read()))
