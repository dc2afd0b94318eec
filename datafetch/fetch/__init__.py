"""url → body or Failure. aiohttp, aiodns and tenacity live here and nowhere else."""

from datafetch.fetch.fetcher import Fetcher, FetchStatistics
from datafetch.fetch.policy import FetchPolicy, OptOut

__all__ = ["FetchPolicy", "FetchStatistics", "Fetcher", "OptOut"]
