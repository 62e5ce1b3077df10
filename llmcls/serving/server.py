"""Running the application on a socket, with a graceful end."""

from __future__ import annotations

import logging
import signal
import socket
from types import FrameType

import uvicorn

from llmcls.common.user_error import UserError
from llmcls.serving.guard import Guard
from llmcls.serving.protocol import Protocol
from llmcls.serving.service import Service

log = logging.getLogger(__name__)

# Connections at a time; more get 503.
CONNECTIONS = 2048
# Seconds for which an answer may take to be sent after the texts are classified, when the server stops.
SENDING = 10


class Server(uvicorn.Server):
    """A web server that, told to stop, answers or refuses every request that it has accepted.

    SIGTERM or Ctrl-C close the socket. Requests that wait are classified for up to ``drain_seconds`` and then refused.
    A second Ctrl-C ends the process at once.

    Parameters
    ----------
    app : Guard
    service : Service
    drain_seconds : float
    ready : str
        What is logged once the server listens, so that whoever reads it can connect.
    """

    def __init__(self, app: Guard, service: Service, drain_seconds: float, ready: str = "") -> None:
        config = uvicorn.Config(
            app,
            http=Protocol,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=int(drain_seconds + app.limits.body_seconds + SENDING),
        )
        super().__init__(config)
        self.service, self.drain_seconds, self.ready = service, drain_seconds, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.ready:
            log.info(self.ready)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop. Without the base class, which would end the process by the same signal afterwards."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        self.service.stop(self.drain_seconds)


def open_socket(host: str, port: int) -> socket.socket:
    """A socket for a server. Connections are refused until the server listens.

    Raises
    ------
    UserError
        If the address cannot be used.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"cannot serve on {host} port {port}: ports are 0 to 65535; choose another --port")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sends small packets at once only if it is told that this is TCP. Otherwise the body of an answer waits
        # some 40 ms until the client has acknowledged its head.
        opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot serve on {host} port {port}: {error}; choose another --host or --port") from None
    return opened
