"""HTTP on a connection, with limits for the head of a request: the line with its path, and the headers.

The web server leaves these limits to a proxy before it, which a laptop does not have. `llmcls.serving.guard` limits
bodies.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger(__name__)

# Bytes of a head, and the seconds in which it has to arrive.
HEAD_BYTES = 64 * 2**10
HEAD_SECONDS = 30.0


class Protocol(HttpToolsProtocol):
    """HTTP/1.1, parsed by a library in C. Heads that are too long get 400, those that arrive too slowly no answer."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head, self._head_bytes = True, 0
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._end is None:
                self._wait_for_head()
        # Sets the count back if the head is complete.
        super().data_received(data)
        if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            log.warning("a request has more than %d bytes before its body", HEAD_BYTES)
            self.send_400_response(f"path and headers of a request must have at most {HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Called by the parser: the head is complete."""
        self._in_head, self._head_bytes = False, 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser: the body is complete, and the next head may come."""
        self._in_head = True
        super().on_message_complete()

    def _wait_for_head(self) -> None:
        self._end = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None
