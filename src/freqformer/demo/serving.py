"""Where the page is served: which addresses need a password, limits, and an orderly end."""

import ipaddress
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ..errors import FreqFormerError
from .examples import write_examples
from .subject import Subject
from .uploads import MAX_BYTES

PASSWORD = "FREQFORMER_DEMO_AUTH"
"""The environment variable that may hold USER:PASSWORD, which a process list does not show."""


class Stopped(Exception):
    """A signal ended the page."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@dataclass(frozen=True)
class Address:
    """Where to serve, and to whom."""

    host: str
    port: int
    """0 is any free one."""
    auth: tuple[str, str] | None = field(default=None, repr=False)
    """User and password; None lets everyone in."""


def address(
    host: str = "127.0.0.1", port: int = 7860, auth: str | None = None, environ: Mapping[str, str] = os.environ
) -> Address:
    """Check where a page is to be served.

    Args:
        host: a name or number of this machine; any but loopback needs ``auth``.
        port: 0 is any free one.
        auth: ``USER:PASSWORD``; by default what the environment variable `PASSWORD` says.
        environ: the environment.

    Raises:
        FreqFormerError: no such host or port, one that is in use, or a missing or unusable password.
    """
    words = auth if auth is not None else environ.get(PASSWORD) or None
    pair = None
    if words is not None:
        user, _, password = words.partition(":")
        # The message does not repeat what may be half a password.
        if not user or not password:
            raise FreqFormerError(f"--auth (or {PASSWORD}) needs USER:PASSWORD, neither of them empty")
        pair = user, password
    if pair is None and not _is_loopback(host):
        raise FreqFormerError(
            f"--host {host or '(empty)'} lets other machines in: add --auth USER:PASSWORD, or set {PASSWORD}"
        )
    if not 0 <= port <= 65535:
        raise FreqFormerError(f"--port must be from 0 (any free one) to 65535, not {port}")
    _free_port(host, port)
    return Address(host, port, pair)


def serve(subject: Subject, where: Address) -> None:
    """Serve a model's page until a signal ends it; prints the page's address on a line.

    Args:
        subject: the model.
        where: as `address` gives it.

    Raises:
        FreqFormerError: the port has been taken since.
        KeyboardInterrupt, Stopped: SIGINT or SIGTERM ended it; uploads are deleted and the port is free again.
    """
    with _sigterm_raises(), tempfile.TemporaryDirectory(prefix="freqformer-demo-") as folder:
        # Gradio reads these when it is imported: where uploads go, and to ask nothing of the network.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        no_proxy = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "", "127.0.0.1,localhost,::1"]
        os.environ["no_proxy"] = ",".join(filter(None, [*no_proxy, where.host]))
        from .app import CSS, THEME, build

        page = build(subject, write_examples(Path(folder) / "examples", subject), Path(folder))
        try:
            page.launch(
                server_name=f"[{where.host}]" if ":" in where.host else where.host,
                server_port=_free_port(where.host, where.port),
                auth=where.auth,
                max_file_size=MAX_BYTES,
                theme=THEME,
                css=CSS,
                footer_links=[],
                run_history=False,
                share=False,
                show_error=False,
                ssr_mode=False,
                mcp_server=False,
                num_workers=0,
                enable_monitoring=False,
                quiet=True,
                prevent_thread_lock=True,
            )
            print(f"{subject.name} is at {page.local_url} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _free_port(host: str, port: int) -> int:
    """The port, or a free one for 0, if a server can listen there."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As servers do: connections that have just ended do not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            return probe.getsockname()[1]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such host"
        raise FreqFormerError(
            f"cannot listen on {host}:{port} ({reason}): choose another --port (0 is any free one) or --host"
        ) from error


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends the page as Ctrl-C does, so that what is to be tidied up is."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
