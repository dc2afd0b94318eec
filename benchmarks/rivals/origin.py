"""The origin of the pictures: nginx where it is installed, else the built-in host farm.

Rules: it listens on the loopback device alone, on ports that the kernel chose, and speaks HTTP and HTTPS to the same
addresses. On fresh connections each picture is at one of many loopback addresses, and the connection is closed after
it; kept connections all lead to one address. The time it takes is not the clients'.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Self
from urllib.request import urlopen

from benchmarks.host_farm import Behaviour, HostFarm
from benchmarks.rivals.certificates import issue_certificates, write_bundle

ADDRESSES = [f"127.77.0.{number}" for number in range(1, 251)]
"""The hosts: as many as one certificate can name without becoming larger than those of the web."""

_BACKLOG = 4096
_CONFIGURATION = """
daemon off;
worker_processes 1;
{user}
error_log {folder}/log crit;
pid {folder}/pid;

events {{ worker_connections 8192; }}
http {{
    access_log off;
    types {{ }}
    default_type image/jpeg;
    sendfile on;
    tcp_nopush on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    open_file_cache max=20000 inactive=600s;
    keepalive_requests 1000000;
    ssl_protocols TLSv1.3;
    ssl_certificate {chain};
    ssl_certificate_key {key};
{servers}
}}
"""
_SERVER = """
    server {{
        listen 0.0.0.0:{port}{tls};
        keepalive_timeout {keepalive_s};
        root {pictures};
        location = /requests {{ stub_status; }}
    }}
"""


class Scheme(StrEnum):
    """How the origin is spoken to."""

    HTTP = "http"
    HTTPS = "https"


class Hosts(StrEnum):
    """Whether each picture needs a connection of its own."""

    FRESH = "fresh"
    KEPT = "kept"


class PictureOrigin(ABC):
    """Serves the pictures of a folder while the ``with`` block lasts.

    Attributes:
        bundle: What clients must trust (``SSL_CERT_FILE``).
        authorities: The number of certificates in it.
    """

    bundle: Path
    authorities: int
    name: str

    @abstractmethod
    def url(self, number: int, *, scheme: Scheme, hosts: Hosts) -> str:
        """The URL of a picture; numbers beyond those of the pictures begin again, with other URLs."""

    @abstractmethod
    def requests(self) -> int:
        """The number of requests since the start."""


@contextmanager
def picture_origin(folder: Path, pictures: Path, names: Sequence[str]) -> Iterator[PictureOrigin]:
    """Start nginx if it is there, else the host farm.

    Args:
        folder: For its files; must exist.
        pictures: The folder of the pictures.
        names: Their names, sorted.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    origin = Nginx(program, folder, pictures, names) if program else Farms(folder, pictures, names)
    with origin:
        yield origin


class Nginx(PictureOrigin):
    """nginx, with one worker.

    Args:
        program: Its path.
        folder: For its configuration and certificates.
        pictures: The folder of the pictures.
        names: Their names.
    """

    name = "nginx"

    def __init__(self, program: str, folder: Path, pictures: Path, names: Sequence[str]) -> None:
        self._program = program
        self._folder = folder
        self._pictures = pictures
        self._names = names
        self._resources = ExitStack()
        self._ports: dict[tuple[Scheme, Hosts], int] = {}
        self._own_requests = 0
        certificates = issue_certificates(folder, ADDRESSES)
        self.bundle, self.authorities = certificates.bundle, certificates.authorities
        self._files = {"chain": certificates.chain, "key": certificates.key}

    def __enter__(self) -> Self:
        with ExitStack() as resources:
            listeners = {kind: resources.enter_context(_listener()) for kind in _KINDS}
            self._ports = {kind: listener.getsockname()[1] for kind, listener in listeners.items()}
            configuration = self._folder / "nginx.conf"
            configuration.write_text(self._configuration())
            descriptors = [listener.fileno() for listener in listeners.values()]
            # nginx takes over the sockets that are named here, so each port is bound from the moment it is chosen.
            environment = {**os.environ, "NGINX": "".join(f"{descriptor};" for descriptor in descriptors)}
            process = subprocess.Popen(
                [self._program, "-p", str(self._folder), "-e", str(self._folder / "log"), "-c", str(configuration)],
                pass_fds=descriptors,
                env=environment,
                start_new_session=True,
            )
            self._resources.callback(_end, process)
        self.requests()  # connections wait in the backlog until it is up
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def url(self, number: int, *, scheme: Scheme, hosts: Hosts) -> str:
        """The URL of a picture."""
        host = ADDRESSES[number % len(ADDRESSES)] if hosts is Hosts.FRESH else ADDRESSES[0]
        return f"{scheme}://{host}:{self._ports[scheme, hosts]}/{self._names[number % len(self._names)]}?{number}"

    def requests(self) -> int:
        """The number of requests since the start."""
        port = self._ports[Scheme.HTTP, Hosts.FRESH]
        with urlopen(f"http://{ADDRESSES[0]}:{port}/requests") as response:
            counters = response.read().split(b"\n")[2]  # accepted, handled, requests
        self._own_requests += 1
        return int(counters.split()[2]) - self._own_requests

    def _configuration(self) -> str:
        servers = [
            _SERVER.format(
                port=port,
                tls=" ssl" if scheme is Scheme.HTTPS else "",
                keepalive_s=0 if hosts is Hosts.FRESH else 75,
                pictures=self._pictures,
            )
            for (scheme, hosts), port in self._ports.items()
        ]
        user = "user root;" if os.geteuid() == 0 else ""  # else the worker could not read the pictures
        return _CONFIGURATION.format(folder=self._folder, user=user, servers="".join(servers), **self._files)


class Farms(PictureOrigin):
    """Host farms, one for each scheme.

    Args:
        folder: For the certificates.
        pictures: The folder of the pictures.
        names: Their names.
    """

    name = "host farm"

    def __init__(self, folder: Path, pictures: Path, names: Sequence[str]) -> None:
        self._authority = folder / "authority.pem"
        self._pictures = len(names)
        self._farms = {
            Scheme.HTTP: HostFarm(pictures=pictures),
            Scheme.HTTPS: HostFarm(authority=self._authority, pictures=pictures),
        }
        self._resources = ExitStack()
        self.bundle = folder / "authorities.pem"

    def __enter__(self) -> Self:
        for farm in self._farms.values():
            self._resources.enter_context(farm)
        self.authorities = write_bundle(self.bundle, self._authority.read_bytes())
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def url(self, number: int, *, scheme: Scheme, hosts: Hosts) -> str:
        """The URL of a picture."""
        is_fresh = hosts is Hosts.FRESH
        return self._farms[scheme].url(
            Behaviour.ONCE if is_fresh else Behaviour.GOOD,
            host=ADDRESSES[number % len(ADDRESSES)] if is_fresh else ADDRESSES[0],
            body=number % self._pictures,
            number=number,
        )

    def requests(self) -> int:
        """The number of requests since the start."""
        return sum(farm.requests() for farm in self._farms.values())


_KINDS = [(scheme, hosts) for scheme in Scheme for hosts in Hosts]


def _listener() -> socket.socket:
    listener = socket.create_server(("0.0.0.0", 0), backlog=_BACKLOG)  # noqa: S104 - bound to the loopback device
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    return listener


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()
