"""What ComfyUI tells a front end while a prompt runs: a WebSocket client for the few parts of RFC 6455 that it uses."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10
_PREVIEW_WITH_METADATA, _NODE_TEXT = 4, 3  # ComfyUI's protocol.py


@dataclass
class Event:
    """kind: ComfyUI's name for the message, or "preview" and "text"; node: the node's id, if there is one."""

    kind: str
    node: str | None
    data: Any
    """The message's data; for "preview" the Pillow picture, for "text" the string."""
    seconds: float
    """When it arrived (`time.monotonic`)."""


class Events:
    """A front end's connection with its own id, which a prompt gives as its `client_id`."""

    def __init__(self, url: str, client: str, seconds: float = 120):
        place = urlsplit(url)
        self.client, self._end = client, time.monotonic() + seconds
        self._socket = socket.create_connection((place.hostname, place.port), timeout=seconds)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws?clientId={client} HTTP/1.1\r\nHost: {place.netloc}\r\nUpgrade: websocket\r\nConnection: "
            "Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        status = self._stream.readline()
        assert b" 101 " in status, status
        while self._stream.readline().strip():
            pass
        self._send(_TEXT, json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}).encode())

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()

    def __iter__(self) -> Iterator[Event]:
        """Yield messages as they arrive. Raises AssertionError on a timeout, or if the server closes the connection."""
        while True:
            assert time.monotonic() < self._end, "the expected message did not come in time"
            opcode, payload = self._frame()
            assert opcode != _CLOSE, "the server closed the connection"
            if opcode == _PING:
                self._send(_PONG, payload)
            elif opcode == _TEXT:
                message = json.loads(payload)
                data = message.get("data") or {}
                yield Event(message["type"], data.get("node"), data, time.monotonic())
            elif opcode == _BINARY and (event := _decoded(payload)):
                yield event

    def _frame(self) -> tuple[int, bytes]:
        """Read a message of one or more frames."""
        kind, message, last = 0, b"", False
        while not last:
            first, second = self._read(2)
            length = second & 127
            if length > 125:
                length = int.from_bytes(self._read(2 if length == 126 else 8), "big")
            kind, message, last = kind or first & 15, message + self._read(length), bool(first & 128)
        return kind, message

    def _read(self, count: int) -> bytes:
        read = self._stream.read(count)
        assert len(read) == count, "the server hung up"
        return read

    def _send(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        assert len(payload) < 126
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        self._socket.sendall(bytes([128 | opcode, 128 | len(payload)]) + mask + masked)


def _decoded(payload: bytes) -> Event | None:
    kind, now = struct.unpack(">I", payload[:4])[0], time.monotonic()
    length = struct.unpack(">I", payload[4:8])[0]
    head, body = payload[8 : 8 + length], payload[8 + length :]
    if kind == _NODE_TEXT:
        return Event("text", head.decode(), body.decode(), now)
    if kind == _PREVIEW_WITH_METADATA:
        return Event("preview", json.loads(head)["node_id"], Image.open(io.BytesIO(body)), now)
    return None
