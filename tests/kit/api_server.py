"""Web services that want a credential, on one event loop in a thread of the test process.

Each host wants a value in a field of the request, and answers 401 without it. What arrives is kept as it came. A host
speaks enough of the API of OpenAI or of Anthropic for the SDKs of both, or what a `Handler` of its test's makes of it;
every host has what clients that know no API are tried with:

    /who       what was asked, as JSON         /upload   length and SHA-256 of the body, however it is framed
    /echo      the credential, in every place of a response that it fits into
    /rotate/…  nothing but the status

A response is held back while `gate` is shut and the request says X-Hold, or the gate's test says so. An event stream
that is asked for with X-Stop stops after its first events, until its client has had them and says so (X-Go-On).
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aiohttp import web
from kit.loops import let_go
from kit.patience import patient
from kit.sandboxes import eventually

if TYPE_CHECKING:
    import socket
    import ssl

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
START_S, HELD_S = patient(90), patient(300)
KEPT_BYTES = 1 << 16
WORDS = ("From ", "the ", "other ", "side.")
REPLY = "".join(WORDS)
MODELS = ("kit-large", "kit-small")
# Whose request it is, where User-Agent does not say so; by what name its response is held back; the name of an event
# stream that stops after its first events, and of the one that is to go on.
CLIENT, HOLD, STOP, GO_ON = "X-Client", "X-Hold", "X-Stop", "X-Go-On"
# As many as show the first word of any stream.
FIRST_EVENTS = 4
_LIMIT_BYTES = 1 << 28
_GOING: web.AppKey[set[str]] = web.AppKey("going", set)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The value that a field of each request must have, alone; `query` says that it is a parameter instead."""

    name: str
    value: str
    query: bool = False

    def is_met(self, request: web.Request) -> bool:
        """Whether `request` has it, once."""
        found = request.query.getall(self.name, []) if self.query else request.headers.getall(self.name, [])
        return found == [self.value]


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived. `body` is its begin; `at_ns` is of the monotonic clock, when its head was there."""

    host: str
    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    body: bytes
    peer: str
    at_ns: int
    admitted: bool

    @property
    def client(self) -> str:
        """Who says to have sent it."""
        return self.value(CLIENT) or self.value("User-Agent") or ""

    def value(self, name: str) -> str | None:
        """What field `name` has, its values joined; None where there is none."""
        found = [value for each, value in self.fields if each.lower() == name.lower()]
        return ", ".join(found) if found else None

    @property
    def text(self) -> bytes:
        """All of it, to search in."""
        lines = [f"{self.method} {self.target}", *(f"{name}: {value}" for name, value in self.fields)]
        return "\n".join(lines).encode() + b"\n\n" + self.body


class Gate:
    """Holds responses back: open at first. `waiting` has the clients whose requests wait at it."""

    def __init__(self) -> None:
        self.waiting: set[str] = set()
        self.names: Callable[[web.Request], str | None] = lambda request: request.headers.get(HOLD)
        self._open = threading.Event()
        self._open.set()

    def shut(self) -> None:
        """From now on, requests that have a name to wait by wait."""
        self.waiting.clear()
        self._open.clear()

    def open(self) -> None:
        """Let everybody through."""
        self._open.set()

    async def passed(self, request: web.Request) -> None:
        """Return when the gate is open."""
        if self._open.is_set() or (name := self.names(request)) is None:
            return
        self.waiting.add(name)
        end = time.monotonic() + HELD_S
        while not self._open.is_set() and time.monotonic() < end:
            await asyncio.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Service:
    """What a host wants (None: nothing), and how it answers what is not everybody's."""

    wanted: Wanted | None
    handler: Handler
    problem: Callable[[int, str], Mapping[str, Any]] = field(default=lambda _, text: {"error": text})

    def admits(self, request: web.Request) -> bool:
        """Whether `request` has it."""
        return self.wanted is None or self.wanted.is_met(request)


class ApiServer:
    """All services, each by its host, up on construction. `seen` grows as requests arrive.

    Each is on every listener, in clear where that has no context.
    """

    def __init__(
        self, listeners: Sequence[tuple[socket.socket, ssl.SSLContext | None]], services: Mapping[str, Service]
    ) -> None:
        self.seen: list[Received] = []
        self.gate = Gate()
        self._listeners, self._services = listeners, services
        self._loop = asyncio.new_event_loop()
        self._stop, self._ready = asyncio.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        if not self._ready.wait(START_S):
            raise RuntimeError("the services did not come up")

    def of(self, client: str) -> list[Received]:
        """What `client` has sent."""
        return [each for each in self.seen if each.client == client]

    def held(self, clients: set[str], given_up: Callable[[], bool]) -> bool:
        """Whether all of them wait at the gate, once they do or `given_up`."""
        assert eventually(lambda: clients <= self.gate.waiting or given_up(), HELD_S)
        return clients <= self.gate.waiting

    def close(self) -> None:
        """Answer nobody any more."""
        self.gate.open()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=_LIMIT_BYTES)
        app[_GOING] = set()
        app.router.add_route("*", "/{path:.*}", self._answer, expect_handler=self._continue)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        for listener, tls in self._listeners:
            await web.SockSite(runner, listener, ssl_context=tls, backlog=512).start()
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()
        await let_go()

    async def _continue(self, request: web.Request) -> web.StreamResponse | None:
        """RFC 9110 §10.1.1: whoever lacks the credential is not asked for the body."""
        service = self._services[request.host]
        if not service.admits(request):
            self._note(request, b"", admitted=False)
            return web.json_response(service.problem(401, "no such credential"), status=401)
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        service = self._services.get(request.host)
        if service is None:
            return web.Response(status=421)
        admitted = service.admits(request)
        body = await request.read()
        self._note(request, body, admitted=admitted)
        if not admitted:
            return web.json_response(service.problem(401, "no such credential"), status=401)
        request.app[_GOING].add(request.headers.get(GO_ON, ""))
        await self.gate.passed(request)
        common = _COMMON.get(request.path.split("/")[1], service.handler)
        return await common(request)

    def _note(self, request: web.Request, body: bytes, *, admitted: bool) -> None:
        assert request.transport is not None
        fields = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers)
        peer: str = request.transport.get_extra_info("peername")[0]
        kept = body[:KEPT_BYTES]
        now = time.monotonic_ns()
        target = request.raw_path
        self.seen.append(Received(request.host, request.method, target, fields, kept, peer, now, admitted))


# ---------------------------------------------------------------- for clients that know no API


async def who(request: web.Request) -> web.Response:
    """What was asked; the credential is not told."""
    return web.json_response({"host": request.host, "method": request.method, "path": request.raw_path})


async def upload(request: web.Request) -> web.Response:
    """What came of it."""
    body = await request.read()
    return web.json_response({"length": len(body), "sha256": hashlib.sha256(body).hexdigest()})


async def echo(request: web.Request) -> web.StreamResponse:
    """The credential, as `/echo/HOW`: in fields and a body, which comes at once, in pieces or compressed; or before."""
    value = request.headers.get("Authorization", "").removeprefix("Bearer ")
    body = spellings(value)
    fields = {"X-Echo": value, "X-Echo-Encoded": base64.b64encode(value.encode()).decode()}
    match request.path.split("/")[2]:
        case "gzip" if "gzip" in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=gzip.compress(body), headers={**fields, "Content-Encoding": "gzip"})
        case "length" | "gzip":
            return web.Response(body=body, headers=fields)
        case "reason":
            return web.Response(status=400, reason=f"what is {value}")
        case "hints":
            assert request.transport is not None
            request.transport.write(f"HTTP/1.1 103 Early Hints\r\nX-Echo: {value}\r\n\r\n".encode())
            return web.Response()
        case how:
            return await _in_pieces(request, body, fields, 1 if how == "bytes" else 7)


def spellings(value: str) -> bytes:
    """A body with `value` in it as it is, in base64, percent-encoded and in JSON."""
    lines = [value, base64.b64encode(value.encode()).decode(), quote(value, safe=""), json.dumps({"value": value})]
    return "\n".join([*lines, "end", ""]).encode()


async def _in_pieces(request: web.Request, body: bytes, fields: Mapping[str, str], size: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={**fields, "Content-Type": "text/plain"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    for start in range(0, len(body), size):
        await response.write(body[start : start + size])
        await asyncio.sleep(0)
    await response.write_eof()
    return response


async def rotate(_: web.Request) -> web.Response:
    """As little as there is."""
    return web.Response()


async def absent(_: web.Request) -> web.StreamResponse:
    """Of a host that has no API."""
    return web.Response(status=404)


_COMMON: Mapping[str, Handler] = {"who": who, "upload": upload, "echo": echo, "rotate": rotate}

# ---------------------------------------------------------------- OpenAI's API


def openai_problem(status: int, text: str) -> Mapping[str, Any]:
    """An error as OpenAI's API words it."""
    return {"error": {"message": text, "type": "invalid_request_error", "code": str(status)}}


async def openai(request: web.Request) -> web.StreamResponse:
    """OpenAI's API below /v1."""
    match (request.method, request.path.removeprefix("/v1")):
        case ("GET", "/models"):
            return web.json_response({"object": "list", "data": [_openai_model(name) for name in MODELS]})
        case ("POST", "/chat/completions"):
            return await _openai_chat(request)
        case ("POST", "/responses"):
            return await _openai_responses(request)
        case ("POST", "/files"):
            return await _openai_file(request)
    return web.json_response(openai_problem(404, f"{request.path} is nothing here"), status=404)


def _openai_model(name: str) -> Mapping[str, Any]:
    return {"id": name, "object": "model", "created": 1, "owned_by": "kit"}


async def _openai_chat(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    if asked["model"] not in MODELS:
        return web.json_response(openai_problem(404, f"{asked['model']} is no model"), status=404)
    about = {"id": "chatcmpl-kit", "created": 1, "model": asked["model"]}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": REPLY}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({**about, "object": "chat.completion", "choices": [choice]})
    deltas: list[Mapping[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": word} for word in WORDS), {}]
    chunks = [
        {
            **about,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}],
        }
        for delta in deltas
    ]
    return await _events(request, [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"])


async def _openai_responses(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    part = {"type": "output_text", "text": REPLY, "annotations": []}
    message = {"id": "msg_kit", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    about = {"id": "resp_kit", "object": "response", "created_at": 1, "model": asked["model"], "status": "completed"}
    whole = {**about, "output": [message], "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    if not asked.get("stream"):
        return web.json_response(whole)
    place = {"item_id": "msg_kit", "output_index": 0, "content_index": 0}
    events: list[Mapping[str, Any]] = [
        {"type": "response.created", "response": {**whole, "status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": {**message, "content": []}},
        {"type": "response.content_part.added", **place, "part": {**part, "text": ""}},
        *({"type": "response.output_text.delta", **place, "delta": word, "logprobs": []} for word in WORDS),
        {"type": "response.output_text.done", **place, "text": REPLY, "logprobs": []},
        {"type": "response.output_item.done", "output_index": 0, "item": message},
        {"type": "response.completed", "response": whole},
    ]
    numbered = [{**event, "sequence_number": number} for number, event in enumerate(events)]
    return await _events(request, [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in numbered])


async def _openai_file(request: web.Request) -> web.StreamResponse:
    content = _part(await request.read(), request.headers["Content-Type"], "file")
    about = {"id": f"file-{hashlib.sha256(content).hexdigest()}", "object": "file", "created_at": 1}
    return web.json_response(
        {**about, "bytes": len(content), "filename": "kit.bin", "purpose": "assistants", "status": "processed"}
    )


def _part(body: bytes, content_type: str, name: str) -> bytes:
    """The content of one part of multipart/form-data (RFC 7578)."""
    _, _, boundary = content_type.partition("boundary=")
    for part in body.split(b"--" + boundary.strip('"').encode()):
        head, _, content = part.partition(b"\r\n\r\n")
        if f'name="{name}"'.encode() in head:
            return content.removesuffix(b"\r\n")
    raise web.HTTPBadRequest(reason=f"there is no part {name}")


# ---------------------------------------------------------------- Anthropic's API


def anthropic_problem(status: int, text: str) -> Mapping[str, Any]:
    """An error as Anthropic's API words it."""
    kinds = {401: "authentication_error", 404: "not_found_error"}
    return {"type": "error", "error": {"type": kinds.get(status, "invalid_request_error"), "message": text}}


async def anthropic(request: web.Request) -> web.StreamResponse:
    """Anthropic's API below /v1."""
    match (request.method, request.path.removeprefix("/v1")):
        case ("GET", "/models"):
            models = [
                {"type": "model", "id": name, "display_name": name, "created_at": "2025-01-01T00:00:00Z"}
                for name in MODELS
            ]
            return web.json_response({"data": models, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]})
        case ("POST", "/messages"):
            return await _anthropic_messages(request)
    return web.json_response(anthropic_problem(404, f"{request.path} is nothing here"), status=404)


async def _anthropic_messages(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    if asked["model"] not in MODELS:
        return web.json_response(anthropic_problem(404, f"{asked['model']} is no model"), status=404)
    usage = {"input_tokens": 3, "output_tokens": len(WORDS)}
    message = {"id": "msg_kit", "type": "message", "role": "assistant", "model": asked["model"], "usage": usage}
    if not asked.get("stream"):
        done = {"content": [{"type": "text", "text": REPLY}], "stop_reason": "end_turn", "stop_sequence": None}
        return web.json_response({**message, **done})
    events: list[Mapping[str, Any]] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None, "stop_sequence": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in WORDS),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]
    return await _events(request, [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in events])


async def _events(request: web.Request, events: list[str]) -> web.StreamResponse:
    """text/event-stream, each event flushed by itself."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    for number, event in enumerate(events):
        await response.write(event.encode())
        await asyncio.sleep(0)
        if number == FIRST_EVENTS - 1:
            await _told_to_go_on(request)
    await response.write_eof()
    return response


async def _told_to_go_on(request: web.Request) -> None:
    end = time.monotonic() + HELD_S
    while request.headers.get(STOP, "") not in request.app[_GOING]:
        if time.monotonic() > end:
            raise ConnectionAbortedError("its client never had the first events")
        await asyncio.sleep(0.01)
