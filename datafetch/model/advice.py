"""What helps against failures: the option for each kind, and a sentence for a run in which nothing arrives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from datafetch.model.outcome import FailureKind, may_kind_pass

_MAX_PROPOSED_NETWORKS = 3
_NETWORK_KINDS = frozenset(
    {
        FailureKind.CONNECT,
        FailureKind.TIMEOUT,
        FailureKind.DISCONNECTED,
        FailureKind.HOST_DOWN,
        FailureKind.DNS_FAILED,
        FailureKind.DNS_NOT_FOUND,
    }
)
"""Kinds that every image has where something between this machine and the web is in the way."""
_LOOKUP_KINDS = frozenset({FailureKind.DNS_FAILED, FailureKind.DNS_NOT_FOUND})
KINDS_ON_THE_WAY: Mapping[str, frozenset[FailureKind]] = {"trust_env": _NETWORK_KINDS, "nameservers": _LOOKUP_KINDS}
"""By option, as the field that it sets, the kinds with which images fail for lack of that way to the web."""
_PROXY_STATUSES = frozenset({403, 502, 503, 504})
"""What a proxy answers where it may not, or can't, reach a host."""


@dataclass(frozen=True, slots=True)
class Advice:
    """An option that accepts images which are refused by default.

    Attributes:
        option: As it is given to a command, with a metavariable for what the operator has to choose.
        effect: What it does, following the option in a sentence.
    """

    option: str
    effect: str


ADVICE: Mapping[FailureKind, Advice] = {
    FailureKind.TLS: Advice("--insecure", "also accepts invalid certificates and outdated TLS"),
    FailureKind.BLOCKED_ADDRESS: Advice("--allow-net CIDR", "fetches those in a network that you trust"),
    FailureKind.OPTED_OUT: Advice("--opt-out ignore", "fetches them too"),
    FailureKind.TOO_LARGE: Advice("--max-body BYTES", "(or --max-sample) fetches them with a higher limit"),
    FailureKind.TOO_MANY_PIXELS: Advice("--max-pixels N", "fetches them with a higher limit"),
}
"""For each kind of failure that a permission can help against."""


def advice_against(kind: FailureKind, networks: Sequence[str]) -> Advice | None:
    """The option that helps against a kind of failure; None if none does.

    Args:
        kind: The kind.
        networks: The networks to allow, each once, as far as they are known; many are not named.
    """
    advice = ADVICE.get(kind)
    if advice is None or kind is not FailureKind.BLOCKED_ADDRESS or not 0 < len(networks) <= _MAX_PROPOSED_NETWORKS:
        return advice
    return replace(advice, option=" ".join(f"--allow-net {network}" for network in networks))


@dataclass(frozen=True, slots=True)
class FailedAlike:
    """That all images which a run has requested failed in the same way.

    Attributes:
        images: The number of images.
        not_tried: How many of them were not tried, since their hosts were down.
        kind: How they failed. Images of hosts that are down (``HOST_DOWN``) share the kind of those that were tried.
        status: The HTTP status that all of them have; None for other kinds.
        networks: The networks that would have to be allowed (``--allow-net``), each once, as far as they are known.
        is_permitted: Whether the option against this kind was in use already.
        unused_proxy: The environment variable that names a proxy which is not used; empty if there is none.
        used_proxies: The proxies that are used, with the variables that name them; empty if there are none.
        has_others: Whether the output has images that were not requested by this run, which starting over would delete.
    """

    images: int
    kind: FailureKind
    status: int | None = None
    networks: tuple[str, ...] = ()
    is_permitted: bool = False
    unused_proxy: str = ""
    used_proxies: str = ""
    not_tried: int = 0
    has_others: bool = False

    @property
    def retry_options(self) -> str:
        """The options of the retry that requests these images again once what to check is mended; may be empty."""
        if self.unused_proxy and not self.used_proxies:
            return "--trust-env"
        return "" if may_kind_pass(self.kind) and self.kind is not FailureKind.HTTP_STATUS else f"--kinds {self.kind}"

    @property
    def what_to_check(self) -> str:
        """What may be in the way between this machine and the web; empty if that is not the cause."""
        is_of_network = self.kind in _NETWORK_KINDS
        if self.used_proxies and (is_of_network or self.status in _PROXY_STATUSES):
            return f"check the proxy that is used: {self.used_proxies}"
        if not is_of_network or self.has_others:  # of those, some may have failed like this before
            return ""
        server = ", or name another name server with --nameserver" if self.kind in _LOOKUP_KINDS else ""
        proxy = f"; the proxy in {self.unused_proxy} is used only with --trust-env" if self.unused_proxy else ""
        return f"check this machine's network{server}{proxy}"

    @property
    def advice(self) -> Advice | None:
        """The option that helps, with the networks to allow in it where they are known and few; None if none does."""
        return None if self.is_permitted else advice_against(self.kind, self.networks)

    def sentence(self, *, is_over: bool) -> str:
        """What happened, and what helps.

        Args:
            is_over: Whether these are all images of the run, and not just its first ones.
        """
        how = f"with HTTP status {self.status}" if self.kind is FailureKind.HTTP_STATUS else f"as {self.kind}"
        advice = self.advice
        if advice is not None:
            fresh = "" if self.has_others else "with --fresh, or "
            help_ = f"; {advice.option} {advice.effect}: give it {fresh}to 'datafetch retry' afterwards"
        else:
            check = self.what_to_check
            help_ = f"; {check}" if check else ""
        not_tried = f", or were not tried since their host was down ({self.not_tried:,})" if self.not_tried else ""
        return f"{_subject(self.images, is_over=is_over)} failed {how}{not_tried}{help_}"


def _subject(images: int, *, is_over: bool) -> str:
    if images == 1:
        return "the only image that was requested"
    return f"all {images:,} images that were requested" if is_over else f"the first {images:,} images all"
