"""url → body or Failure. aiohttp, aiodns, tenacity and their like live here and nowhere else."""

from datafetch.fetch.fetcher import Fetcher
from datafetch.fetch.limiter import Limiter
from datafetch.fetch.memory import BodyBudget, Reservation
from datafetch.fetch.policy import MAX_BYTES, FetchPolicy, OptOut
from datafetch.fetch.statistics import FetchStatistics

__all__ = ["MAX_BYTES", "BodyBudget", "FetchPolicy", "FetchStatistics", "Fetcher", "Limiter", "OptOut", "Reservation"]
