"""What the demo's server lets in and out: so much of uploads, and nothing of where they lie on this machine.

Both are ASGI middleware, around Gradio's own application, whose answers name files by their absolute paths.
"""

import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

TEXTS = (b"text/html", b"application/json", b"text/plain")  # answers that come as a whole
EVENTS = b"text/event-stream"  # each piece of which is whole events


class PathRedactionMiddleware:
    """Calls a folder `NAME` in all answers that are text, and takes that name for the folder in requests."""

    NAME = "/demo-files"

    def __init__(self, app: App, folder: Path) -> None:
        self.app, self.place = app, str(folder)
        self.in_json = json.dumps(self.place)[1:-1].encode()
        self.written = {self.place.encode(), self.in_json, quote(self.place).encode()}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            named = scope["path"].replace(self.NAME, self.place)
            scope = scope | {"path": named, "raw_path": quote(named).encode()}
            if _header(scope, b"content-type").startswith(b"application/json"):
                receive = self._located(receive)
            send = self._unlocated(send)
        await self.app(scope, receive, send)

    def _located(self, receive: Receive) -> Receive:
        """The body as a whole, for a name may lie across two pieces."""

        async def whole() -> Message:
            body = b""
            while (message := await receive())["type"] == "http.request":
                body += message.get("body", b"")
                if not message.get("more_body"):
                    return message | {"body": body.replace(self.NAME.encode(), self.in_json)}
            return message

        return whole

    def _unlocated(self, send: Send) -> Send:
        start: Message = {}
        body = b""

        async def sent(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message | {"headers": [(name, self._hidden(value)) for name, value in message["headers"]]}
                if not _header(start, b"content-type").startswith(TEXTS):
                    await send(start)
            elif message["type"] != "http.response.body" or not _header(start, b"content-type").startswith(TEXTS):
                is_text = _header(start, b"content-type").startswith(EVENTS)
                await send(message | {"body": self._hidden(message.get("body", b""))} if is_text else message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body"):
                    hidden = self._hidden(body)
                    await send(_longer(start, len(hidden) - len(body)))
                    await send(message | {"body": hidden})

        return sent

    def _hidden(self, text: bytes) -> bytes:
        for place in self.written:
            text = text.replace(place, self.NAME.encode())
        return text


class UploadLimitMiddleware:
    """Refuses requests that are too large, and deletes the oldest files in a folder where an upload makes it too full.

    Files that are there from the beginning stay.
    """

    def __init__(self, app: App, folder: Path, largest: int, most: int, most_files: int) -> None:
        """`largest` bytes of a request; `most` bytes and `most_files` files in the folder after an upload."""
        self.app, self.folder, self.largest, self.most, self.most_files = app, folder, largest, most, most_files
        self.stay = set(_files(folder))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif not (length := _header(scope, b"content-length")).isdigit() or int(length) > self.largest:
            while (await receive()).get("more_body"):  # who still sends does not listen
                pass
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self.app(scope, receive, send)
            self._make_room()

    def _make_room(self) -> None:
        files, left = [], self.most
        for path in set(_files(self.folder)) - self.stay:
            with contextlib.suppress(OSError):  # gone by now
                files.append(((about := path.stat()).st_mtime_ns, about.st_size, path))
        for number, (_, size, path) in enumerate(sorted(files, reverse=True)):
            left -= size
            if left < 0 or number >= self.most_files:
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # another file is in its folder
                    path.parent.rmdir()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _header(message: Message, name: bytes) -> bytes:
    return dict(message.get("headers", ())).get(name, b"")


def _longer(start: Message, more: int) -> Message:
    """The start of an answer whose body has become longer by so many bytes."""
    length = b"content-length"
    headers = [(n, b"%d" % (int(value) + more) if n == length else value) for n, value in start["headers"]]
    return start | {"headers": headers}
