"""Streams to tasks for clients of the API: WebSockets below `/api/v1/tasks/ID/`, of which each becomes one stream to
the task's node (master/streams.py).

The first message is the request, a JSON object as the models below have it. The answer is `{"opened": true}` or
`{"error": "..."}`. From then on, both ways, a binary message is a byte that says which stream, then its bytes:

    1   data: a command's stdin and stdout, its terminal, a connection, a file
    2   a command's stderr

and a text message is one of

    {"eof": true}                              no more data this way; the other way may go on
    {"resize": {"rows": 24, "columns": 80}}    of a command's terminal
    {"signal": 15}                             to a command
    {"taken": 4096}                            so many bytes have reached the command: a client that waits for this
                                               before it sends more than a window's worth can always send the others
    {"exit": 0}                                of a command; 128 and the signal's number when one ended it
    {"end": true}, {"error": "..."}            the last message

When either side closes, the other end is closed too. Who asked for what is written to the log, for the audit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Literal, TypeVar

import structlog
from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.websockets import WebSocketDisconnect

from master.rest.cluster import known_task
from master.rest.errors import ApiError, json_path
from master.streams import Stream, StreamError, Streams
from master.tasks import TaskRecord, Tasks
from wire import control_pb2 as pb

log = structlog.get_logger()

REQUEST_DEADLINE_S = 10.0
ARGUMENTS_BYTES = 32 * 1024  # of a command and its environment; a message to the launcher holds twice that
DATA, STDERR = b"\x01", b"\x02"
STREAMS = ("stdout", "stderr")

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
Name = Annotated[str, Field(pattern=r"^[^=\x00]+$")]
Length = Annotated[int, Field(ge=0, le=0xFFFF)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Terminal(Body):
    rows: Length
    columns: Length


class Attach(Body):
    """Both its streams, from now on, until it ends."""


class Port(Body):
    port: Annotated[int, Field(ge=1, le=0xFFFF)]


class Files(Body):
    """`list`: a line of JSON for each entry. `read`: the bytes of a file. `pack`: a tar archive."""

    verb: Literal["list", "read", "pack"]
    path: Annotated[Text, Field(min_length=1, max_length=4096)]


class Control(Body):
    """One of them."""

    eof: bool = False
    resize: Terminal | None = None
    signal: Annotated[int, Field(ge=1, le=64)] | None = None


class Exec(Body):
    """`env` comes on top of the task's; an empty `user` or `cwd` is the task's."""

    argv: Annotated[list[Text], Field(min_length=1)]
    env: dict[Name, Text] = {}
    user: Text = ""
    cwd: Text = ""
    stdin: bool = False
    terminal: Terminal | None = None

    @model_validator(mode="after")
    def _fits(self) -> Exec:
        if len(self.model_dump_json()) > ARGUMENTS_BYTES:
            raise ValueError(f"arguments and environment are longer than {ARGUMENTS_BYTES} bytes")
        return self


Wanted = TypeVar("Wanted", bound=Body)


def streams_router(tasks: Tasks, streams: Streams) -> APIRouter:
    router = APIRouter(prefix="/api/v1/tasks/{task_id}")

    @router.websocket("/exec")
    async def execute(websocket: WebSocket, task_id: str) -> None:
        async with _client(websocket):
            wanted = await _request(websocket, Exec)
            task = known_task(tasks, task_id)
            _audit(websocket, "exec", task, command=wanted.argv, user=wanted.user)
            async with streams.open(task.node, pb.Open(exec=_exec(task.spec.id, wanted))) as stream:
                await _carry(websocket, stream)

    @router.websocket("/port")
    async def forward(websocket: WebSocket, task_id: str) -> None:
        async with _client(websocket):
            wanted = await _request(websocket, Port)
            task = known_task(tasks, task_id)
            _audit(websocket, "port-forward", task, port=wanted.port)
            asked = pb.Open(port=pb.OpenPort(task_id=task.spec.id, port=wanted.port))
            async with streams.open(task.node, asked) as stream:
                await _carry(websocket, stream)

    @router.websocket("/files")
    async def files(websocket: WebSocket, task_id: str) -> None:
        async with _client(websocket):
            wanted = await _request(websocket, Files)
            task = known_task(tasks, task_id)
            _audit(websocket, "files", task, verb=wanted.verb, path=wanted.path)
            asked = pb.Open(files=pb.OpenFiles(task_id=task.spec.id, path=wanted.path, verb=wanted.verb))
            async with streams.open(task.node, asked) as stream:
                await _carry(websocket, stream)

    @router.websocket("/attach")
    async def attach(websocket: WebSocket, task_id: str) -> None:
        async with _client(websocket):
            await _request(websocket, Attach)
            task = known_task(tasks, task_id)
            _audit(websocket, "attach", task)
            asked = [pb.Open(log=pb.OpenLog(task_id=task.spec.id, stream=name, follow=True)) for name in STREAMS]
            async with streams.open(task.node, asked[0]) as out, streams.open(task.node, asked[1]) as errors:
                await websocket.send_json({"opened": True})
                following = asyncio.gather(_follow(out, DATA, websocket), _follow(errors, STDERR, websocket))
                await _either(following, _until_gone(websocket))

    return router


@asynccontextmanager
async def _client(websocket: WebSocket) -> AsyncIterator[None]:
    """From its first message to its last, which says what went wrong, if anything did."""
    await websocket.accept()
    last: dict[str, object] = {"end": True}
    try:
        yield
    except (ApiError, StreamError) as error:
        last = {"error": str(error)}
    except WebSocketDisconnect:
        return
    with suppress(WebSocketDisconnect, RuntimeError):  # it left just now
        await websocket.send_json(last)
        await websocket.close()


async def _request(websocket: WebSocket, model: type[Wanted]) -> Wanted:
    """The first message. Raises ApiError that names each field that is wrong."""
    try:
        async with asyncio.timeout(REQUEST_DEADLINE_S):
            return model.model_validate_json(await websocket.receive_text())
    except TimeoutError as error:
        raise ApiError(408, f"no request within {REQUEST_DEADLINE_S:g} s") from error
    except KeyError as error:
        raise ApiError(400, "the first message must be text") from error
    except ValidationError as error:
        problems = (f"{json_path(problem['loc'])}: {problem['msg']}" for problem in error.errors())
        raise ApiError(422, f"Object is not valid: {'; '.join(problems)}") from error


def _audit(websocket: WebSocket, what: str, task: TaskRecord, **more: object) -> None:
    """Who did what to whom. There is one who may: whoever has the administrator's token."""
    address = websocket.client.host if websocket.client else ""
    log.info("audit", what=what, who="admin", address=address, task=task.spec.id, node=task.node, **more)


def _exec(task_id: str, wanted: Exec) -> pb.OpenExec:
    terminal = wanted.terminal
    return pb.OpenExec(
        task_id=task_id,
        argv=wanted.argv,
        env=[pb.Pair(key=key, value=value) for key, value in wanted.env.items()],
        user=wanted.user,
        cwd=wanted.cwd,
        stdin=wanted.stdin,
        terminal=pb.Resize(rows=terminal.rows, columns=terminal.columns) if terminal else None,
    )


async def _carry(websocket: WebSocket, stream: Stream) -> None:
    """Until either side ends. Raises StreamError, and WebSocketDisconnect when it is the client."""
    await websocket.send_json({"opened": True})
    await _either(_upwards(stream, websocket), _downwards(websocket, stream))


async def _either(*ways: Awaitable[object]) -> None:
    """Until one of them ends. Raises what it does."""
    works = [asyncio.ensure_future(way) for way in ways]
    try:
        done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
        for work in done:
            work.result()
    finally:
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)


async def _upwards(stream: Stream, websocket: WebSocket) -> None:
    while (frame := await stream.read()) is not None:
        match frame.WhichOneof("body"):
            case "data":
                await websocket.send_bytes(DATA + frame.data)
            case "stderr":
                await websocket.send_bytes(STDERR + frame.stderr)
            case "eof":
                await websocket.send_json({"eof": True})
            case "exit":
                await websocket.send_json({"exit": frame.exit})
            case "taken":
                await websocket.send_json({"taken": frame.taken})


async def _downwards(websocket: WebSocket, stream: Stream) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        data = message.get("bytes")
        await stream.write(_control(message["text"]) if data is None else _data(data))


async def _follow(stream: Stream, kind: bytes, websocket: WebSocket) -> None:
    """A part without bytes only says that the log is open."""
    while (frame := await stream.read()) is not None:
        if frame.data:
            await websocket.send_bytes(kind + frame.data)


async def _until_gone(websocket: WebSocket) -> None:
    """Whatever else the client says is of no interest."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
    raise WebSocketDisconnect


def _data(message: bytes) -> pb.Frame:
    if message[:1] != DATA:
        raise ApiError(400, "a binary message must begin with 1")
    return pb.Frame(data=message[1:])


def _control(text: str) -> pb.Frame:
    try:
        control = Control.model_validate_json(text)
    except ValidationError as error:
        raise ApiError(400, f"not a message of this protocol: {text[:100]}") from error
    if control.resize is not None:
        return pb.Frame(resize=pb.Resize(rows=control.resize.rows, columns=control.resize.columns))
    if control.signal is not None:
        return pb.Frame(signal=control.signal)
    return pb.Frame(eof=pb.Empty())
