"""Redirects: valid ones, oddly written ones, long chains, loops, and ones that a client must not follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from datafetch.demo.behaviours.exchange import Answer, Behaviour, Exchange
from datafetch.model.outcome import FailureKind

Target = Callable[[Exchange], str]

_ANOTHER_HOST = "127.99.99.99"


def _to(target: Target, status: int = 302) -> Answer:
    async def answer(exchange: Exchange) -> None:
        exchange.send_head(status, 0, f"Location: {target(exchange)}")

    return answer


def _to_url(location: str) -> Answer:
    return _to(lambda _: location)


def _well(exchange: Exchange) -> str:
    return exchange.path("well")


def _authority(exchange: Exchange, listener: str = "http") -> str:
    return f"{exchange.host}:{exchange.ports[listener]}"


def _to_step(sent: bytes, expected: str) -> Answer:
    """Redirect to a step written like this, and send the picture if it is requested as browsers do."""

    async def answer(exchange: Exchange) -> None:
        match exchange.request.steps:
            case []:
                exchange.send_head(302, 0, f"Location: {exchange.next_path(sent.decode('latin-1'))}")
            case [step] if step == expected:
                exchange.send_ok(exchange.picture)
            case _:
                exchange.send_head(404, 0)

    return answer


def _chain(hops: int) -> Answer:
    """Redirect N times, and then send the picture."""

    async def answer(exchange: Exchange) -> None:
        hop = len(exchange.request.steps)
        if hop < hops:
            exchange.send_head(302, 0, f"Location: {exchange.next_path(*['on'] * (hop + 1))}")
        else:
            exchange.send_ok(exchange.picture)

    return answer


async def _circle(exchange: Exchange) -> None:
    exchange.send_head(302, 0, f"Location: {exchange.request.target}")


async def _nowhere(exchange: Exchange) -> None:
    exchange.send_head(302, 0)


async def _moved_at_length(exchange: Exchange) -> None:
    """Redirect with an endless body."""
    exchange.send_head(302, None, f"Location: {_well(exchange)}", "Content-Type: text/html")
    await exchange.send_without_end(b"<p>It has moved. " * 100)


async def _cookie_wall(exchange: Exchange) -> None:
    """Redirect to the same URL until the client sends a cookie."""
    if exchange.request.header("cookie"):
        exchange.send_ok(exchange.picture)
    else:
        exchange.send_head(302, 0, f"Location: {exchange.request.target}", "Set-Cookie: seen=1; Path=/")


async def _cookie_for_one_host(exchange: Exchange) -> None:
    """Set a cookie, redirect to another host, and refuse a client that sends the cookie there."""
    if exchange.request.steps:
        exchange.send_head(400, 0) if exchange.request.header("cookie") else exchange.send_ok(exchange.picture)
    else:
        target = f"http://{_ANOTHER_HOST}:{exchange.ports['http']}{exchange.next_path('on')}"
        exchange.send_head(302, 0, f"Location: {target}", "Set-Cookie: seen=1; Path=/")


async def _moved_with_words(exchange: Exchange) -> None:
    """Announce no body, and send one."""
    exchange.send_head(302, 0, f"Location: {_well(exchange)}")
    exchange.send(b"<p>It has moved.")


async def _moved_with_more_words(exchange: Exchange) -> None:
    """Announce a body, and send a longer one."""
    exchange.send_head(302, len(b"<p>It"), f"Location: {_well(exchange)}")
    exchange.send(b"<p>It has moved.")


async def _moved_to_another_host(exchange: Exchange) -> None:
    """Redirect to another host, and refuse a client that sends it the credentials for the first one."""
    if exchange.request.header("authorization") and exchange.request.steps:
        exchange.send_head(400, 0)
    elif exchange.request.steps:
        exchange.send_ok(exchange.picture)
    else:
        port = exchange.ports["http"]
        exchange.send_head(302, 0, f"Location: http://{_ANOTHER_HOST}:{port}{exchange.next_path('on')}")


_ARRIVES: Mapping[str, Answer] = {
    "moved": _to(_well),
    **{f"moved_{status}": _to(_well, status) for status in (301, 302, 303, 307, 308)},
    "moved_relative": _to(lambda exchange: ".." + _well(exchange)),
    "moved_without_scheme": _to(lambda exchange: f"//{_authority(exchange)}{_well(exchange)}"),
    "moved_absolute": _to(lambda exchange: f"http://{_authority(exchange)}{_well(exchange)}"),
    "moved_in_capitals": _to(lambda exchange: f"HTTP://{_authority(exchange)}{_well(exchange)}"),
    "moved_to_fragment": _to(lambda exchange: _well(exchange) + "#top"),
    "moved_between_blanks": _to(lambda exchange: f"  \t{_well(exchange)}  "),
    "moved_to_another_host": _moved_to_another_host,
    "moved_to_utf_8": _to_step("grün".encode(), "gr%C3%BCn"),
    "moved_to_latin_1": _to_step(b"gr\xfcn", "gr%FCn"),
    "moved_to_blanks": _to_step(b"two words", "two%20words"),
    "moved_to_escapes": _to_step(b"a%2Fb%20c+d%7Ee%C3%BC", "a%2Fb%20c+d%7Ee%C3%BC"),
    "moved_to_brackets": _to_step(b"[1]|{2}'!(3)$,;:@&=*", "[1]|%7B2%7D'!(3)$,;:@&=*"),
    "moved_at_length": _moved_at_length,
    "chain_of_10": _chain(10),
    "cookie_wall": _cookie_wall,
    "cookie_for_one_host": _cookie_for_one_host,
    "moved_with_words": _moved_with_words,
    "moved_with_more_words": _moved_with_more_words,
}
_OVER_TLS: Mapping[str, Answer] = {
    "moved_to_tls": _to(lambda exchange: f"https://{_authority(exchange, 'https')}{_well(exchange)}"),
    "moved_to_plain": _to(lambda exchange: f"http://{_authority(exchange)}{_well(exchange)}"),
}
_TOO_MANY: Mapping[str, Answer] = {"circle": _circle, "chain_of_11": _chain(11)}
_BAD_URL: Mapping[str, str] = {
    "elsewhere": "ftp://127.0.0.1/picture.jpg",
    "moved_to_file": "file:///etc/passwd",
    "moved_to_data": "data:image/png;base64,AAAA",
    "moved_to_script": "javascript:alert(1)",
    "moved_to_mail": "mailto:someone@example.org",
    "moved_to_bracket": "http://[",
    "moved_to_port_99999": "http://127.0.0.1:99999/picture.jpg",
    "moved_to_no_host": "http://",
}
_BLOCKED: Mapping[str, str] = {
    "inside": "http://10.255.255.1/secret",
    "moved_to_metadata": "http://169.254.169.254/latest/meta-data/",
    "moved_to_decimal": "http://184549121/secret",  # 10.255.255.1, like the next ones
    "moved_to_hex": "http://0x0affff01/secret",
    "moved_to_octal": "http://012.0377.0377.01/secret",
    "moved_to_trailing_dot": "http://10.255.255.1./secret",
    "moved_to_mapped": "http://[::ffff:10.255.255.1]/secret",
    "moved_to_nat64": "http://[64:ff9b::aff:ff01]/secret",
    "moved_behind_user": "http://127.0.0.1@10.255.255.1/secret",
    "moved_to_loopback_6": "http://[::1]/secret",
    "moved_to_zero": "http://0.0.0.0/secret",
}

REDIRECTS: Mapping[str, Behaviour] = {
    **{name: Behaviour(answer) for name, answer in {**_ARRIVES, **_OVER_TLS}.items()},
    "nowhere": Behaviour(_nowhere, FailureKind.HTTP_STATUS, 302),
    "nowhere_in_words": Behaviour(_to_url(""), FailureKind.HTTP_STATUS, 302),
    **{name: Behaviour(answer, FailureKind.TOO_MANY_REDIRECTS) for name, answer in _TOO_MANY.items()},
    **{name: Behaviour(_to_url(url), FailureKind.BAD_URL) for name, url in _BAD_URL.items()},
    **{name: Behaviour(_to_url(url), FailureKind.BLOCKED_ADDRESS) for name, url in _BLOCKED.items()},
    "moved_to_closed_port": Behaviour(_to_url("http://127.0.0.1:1/"), FailureKind.CONNECT, attempts=None),
}
"""Name in the path → where it redirects to. ``moved_to_tls`` needs an origin with a certificate."""
