"""Suspicion: by it, a node whose network is sick is told from hosts that are dead, before it publishes anything.

Theory of operation. A node whose name server or firewall is at fault can't reach hosts that others reach; where hosts
are dead, no node does. Its failures are fast, so it would soon have used up the shards of all others. So once most of a
node's latest requests were answered by no server, it publishes nothing until it is cleared: another node requests a few
of these URLs. If that one gets answers to half of them or more, the first one is sick; otherwise the hosts are dead,
and it goes on. It is then asked again only after twice as many requests as before, since a dataset may be of dead hosts
for the most part. What a node finds out by itself, such as that no name server answers at all, is not judged here
(``fetch.means``).

Rules: the share of failures alone decides nothing. Pure: counts are passed in.
"""

from __future__ import annotations

_LEAST_CALLS = 16  # fewer say nothing; so many images may be filed as failed by a node that turns out to be sick
_MAX_CALLS = 4096
_SUSPECT_SHARE = 0.5
_SOUND_SHARE = 0.5  # of the URLs, if another node gets answers to so many
MAX_URLS = 8
"""How many URLs another node is asked to try."""


class Suspicion:
    """What a node suspects of its own network.

    Attributes:
        is_in_doubt: Whether most of its latest requests were answered by no server, and it has not been cleared.
    """

    def __init__(self) -> None:
        self.is_in_doubt = False
        self._least_calls = _LEAST_CALLS
        self._calls = self._unreached = 0  # up to when they have been judged

    def look(self, calls: int, unreached: int) -> bool:
        """Take note of the counts; return whether the node is in doubt.

        Args:
            calls: The number of its requests that have ended.
            unreached: Of them, those that no server answered.
        """
        latest = calls - self._calls
        if not self.is_in_doubt and latest >= self._least_calls:
            if unreached - self._unreached >= latest * _SUSPECT_SHARE:
                self.is_in_doubt = True
            else:
                self._calls, self._unreached = calls, unreached
        return self.is_in_doubt

    def clear(self, calls: int, unreached: int) -> None:
        """Record that the hosts are dead. The arguments are those of ``look``."""
        self.is_in_doubt = False
        self._least_calls = min(self._least_calls * 2, _MAX_CALLS)
        self._calls, self._unreached = calls, unreached


def is_sick(answers: int, urls: int) -> bool:
    """Whether a node is sick, by how many of the URLs that it did not reach another one got an answer to."""
    return urls > 0 and answers >= urls * _SOUND_SHARE
