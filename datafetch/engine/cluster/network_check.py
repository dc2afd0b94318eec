"""Asking another node: whether the hosts that one node can't reach are dead, or its network is sick.

Theory of operation. A node that suspects its own network (``suspicion``) names URLs that it did not reach, and another
one requests them. That is one which has reached hosts itself, as long as there is one. A free one is waited for, and so
is a node that starts or has only begun, since two sick nodes would clear each other. Where all nodes suspect
themselves or have nothing to do, any of them is asked. A node that can't request the URLs, because it is about to end
or lacks a name server, decides nothing, and another one is asked.
"""

from __future__ import annotations

from collections.abc import Iterable

from datafetch.engine.cluster.member import Member
from datafetch.engine.cluster.messages import TriedUrls
from datafetch.engine.cluster.suspicion import MAX_URLS, is_sick
from datafetch.monitor.cluster_snapshot import NodeState

_MAX_REPORTS_WITHOUT_URLS = 20  # those of worker processes come half a second later
_MAX_FAILED_CHECKS = 5  # of nodes that can't request the URLs; then there is nothing to compare


def ask_another(suspect: Member, unreached: tuple[str, ...], members: Iterable[Member]) -> None:
    """Let another node try URLs that this one did not reach, as soon as one is free.

    Args:
        suspect: The node that suspects its own network.
        unreached: The URLs of its latest requests that no server answered.
        members: All nodes.
    """
    all_others = [one for one in members if one is not suspect]
    others = [one for one in all_others if one.is_at_work]
    urls = unreached[-MAX_URLS:]
    suspect.reports_without_urls = 0 if urls else suspect.reports_without_urls + 1
    is_in_vain = (
        suspect.reports_without_urls > _MAX_REPORTS_WITHOUT_URLS or len(suspect.could_not_check) >= _MAX_FAILED_CHECKS
    )
    sound = [one for one in others if not one.report.is_in_doubt]
    if not sound and any(one.state is NodeState.STARTING and not one.is_at_work for one in all_others):
        return
    if not others or is_in_vain:
        suspect.is_cleared = True  # there is nothing to compare
        return
    proven = [one for one in sound if one.report.statistics is not None and one.report.statistics.ok]
    if not proven and any(map(_may_reach_hosts, sound)):
        return
    free = [one for one in proven or sound or others if one.report.statistics is not None and one.asked_for is None]
    if free and urls:
        other = min(free, key=lambda one: suspect.could_not_check.count(one.holder))
        other.urls, other.asked_for = urls, (suspect, len(urls))
        suspect.is_asked_about = True


def _may_reach_hosts(member: Member) -> bool:
    """Whether a node that has reached no host yet has only begun, so that it will soon have, or suspect itself."""
    now = member.report.statistics
    return now is None or now.shards > now.shards_published


def take_answers(member: Member, tried: TriedUrls) -> None:
    """Judge the network of the node whose URLs a node has tried."""
    if member.asked_for is None:
        return
    (suspect, urls), member.asked_for = member.asked_for, None
    suspect.is_asked_about = False
    if tried.answers is None:
        suspect.could_not_check.append(member.holder)
        return
    suspect.could_not_check.clear()
    suspect.is_sick = is_sick(tried.answers, urls)
    suspect.is_cleared = not suspect.is_sick


def stop_asking(ended: Member, members: Iterable[Member]) -> None:
    """Let another node be asked instead of one that has ended, and take no answers about that."""
    if ended.asked_for is not None:
        ended.asked_for[0].is_asked_about = False
        ended.asked_for = None
    for one in members:
        if one.asked_for is not None and one.asked_for[0] is ended:
            one.asked_for, one.urls = None, ()
