"""The behaviours of the origin, and the outcomes that they must cause, in one flat table.

Rules: a behaviour sends a response for one exchange. The table also says what outcome a client must arrive at. Its keys
are part of URLs: ``/<behaviour>/<picture>``.
"""

from collections.abc import Mapping

from datafetch.demo.behaviours.bodies import BODIES
from datafetch.demo.behaviours.encodings import ENCODINGS
from datafetch.demo.behaviours.exchange import Behaviour, Exchange, Request
from datafetch.demo.behaviours.heads import HEADS
from datafetch.demo.behaviours.optouts import OPTOUTS
from datafetch.demo.behaviours.redirects import REDIRECTS
from datafetch.demo.behaviours.statuses import STATUSES

__all__ = ["BEHAVIOURS", "Behaviour", "Exchange", "Request"]

BEHAVIOURS: Mapping[str, Behaviour] = {**BODIES, **HEADS, **STATUSES, **REDIRECTS, **ENCODINGS, **OPTOUTS}
"""Name in the path → behaviour."""
