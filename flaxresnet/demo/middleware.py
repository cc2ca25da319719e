"""ASGI middleware for the demo's server: limits uploads, and hides local paths, which Gradio's responses contain."""

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

BUFFERED_TYPES = (b"text/html", b"application/json", b"text/plain")  # joined and sent as one message
EVENT_STREAM = b"text/event-stream"  # each message holds complete events


class PathRedactionMiddleware:
    """Replaces the path of a folder with `ALIAS` in text responses, and `ALIAS` with the path in requests."""

    ALIAS = "/demo-files"

    def __init__(self, app: App, folder: Path) -> None:
        self.app = app
        self.path = str(folder)
        self.json_path = json.dumps(self.path)[1:-1].encode()
        self.spellings = {self.path.encode(), self.json_path, quote(self.path).encode()}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].replace(self.ALIAS, self.path)
            scope = scope | {"path": path, "raw_path": quote(path).encode()}
            if _header(scope, b"content-type").startswith(b"application/json"):
                receive = self._resolve_requests(receive)
            send = self._redact_responses(send)
        await self.app(scope, receive, send)

    def _resolve_requests(self, receive: Receive) -> Receive:
        """Returns a `receive` that resolves aliases in the joined body; two messages may share an alias."""

        async def receive_all() -> Message:
            body = b""
            while (message := await receive())["type"] == "http.request":
                body += message.get("body", b"")
                if not message.get("more_body"):
                    return message | {"body": body.replace(self.ALIAS.encode(), self.json_path)}
            return message

        return receive_all

    def _redact_responses(self, send: Send) -> Send:
        """Returns a `send` that joins and redacts text bodies, and corrects their length."""
        start: Message = {}
        body = b""

        async def send_redacted(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message | {"headers": [(name, self._redact(value)) for name, value in message["headers"]]}
                if not _header(start, b"content-type").startswith(BUFFERED_TYPES):
                    await send(start)
                return
            content_type = _header(start, b"content-type")
            if message["type"] == "http.response.body" and content_type.startswith(BUFFERED_TYPES):
                body += message.get("body", b"")
                if not message.get("more_body"):
                    redacted = self._redact(body)
                    await send(_with_length(start, len(redacted)))
                    await send(message | {"body": redacted})
                return
            if content_type.startswith(EVENT_STREAM):
                message = message | {"body": self._redact(message.get("body", b""))}
            await send(message)

        return send_redacted

    def _redact(self, text: bytes) -> bytes:
        for spelling in self.spellings:
            text = text.replace(spelling, self.ALIAS.encode())
        return text


class UploadLimitMiddleware:
    """Rejects large POST requests with status 413, and deletes the oldest uploads if their folder exceeds its limits.

    A POST request without a content length is rejected as well. Files that exist at the start are never deleted.
    """

    def __init__(self, app: App, folder: Path, max_request: int, max_bytes: int, max_files: int) -> None:
        """Sets the limits.

        Args:
          app: the application to wrap.
          folder: folder of the uploads.
          max_request: maximum bytes of a request.
          max_bytes: maximum bytes of all uploads in the folder.
          max_files: maximum number of uploads in the folder.
        """
        self.app = app
        self.folder = folder
        self.max_request = max_request
        self.max_bytes = max_bytes
        self.max_files = max_files
        self.permanent = set(_files(folder))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length) <= self.max_request:
            await self.app(scope, receive, send)
            self._delete_oldest()
            return
        while (await receive()).get("more_body"):  # clients read the response only after they have sent the request
            pass
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def _delete_oldest(self) -> None:
        """Deletes uploads, the oldest first, until the folder is within its limits."""
        uploads = []
        for path in set(_files(self.folder)) - self.permanent:
            with contextlib.suppress(OSError):  # another request deleted the file
                info = path.stat()
                uploads.append((info.st_mtime_ns, info.st_size, path))
        num_bytes = 0
        for index, (_, size, path) in enumerate(sorted(uploads, reverse=True)):
            num_bytes += size
            if num_bytes > self.max_bytes or index >= self.max_files:
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # the folder contains another file
                    path.parent.rmdir()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _header(message: Message, name: bytes) -> bytes:
    return dict(message.get("headers", ())).get(name, b"")


def _with_length(start: Message, length: int) -> Message:
    """Returns the start of a response with another content length."""
    headers = []
    for name, value in start["headers"]:
        headers.append((name, b"%d" % length if name == b"content-length" else value))
    return start | {"headers": headers}
