"""What the origin can do with a request, and what must become of the image: one flat table.

Rules: a behaviour is a function from an exchange to bytes on the wire; what a client must make of it stands beside it
in the table. Names are paths: ``/<behaviour>/<picture>``.
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
