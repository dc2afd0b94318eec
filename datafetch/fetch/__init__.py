"""Fetches URLs over HTTP. Only this package touches the network, and only here are the libraries for that used."""

from datafetch.fetch.fetcher import Fetcher
from datafetch.fetch.limiter import Limiter
from datafetch.fetch.memory import BodyBudget, Reservation
from datafetch.fetch.policy import MAX_BYTES, FetchPolicy, OptOut
from datafetch.fetch.statistics import FetchStatistics

__all__ = ["MAX_BYTES", "BodyBudget", "FetchPolicy", "FetchStatistics", "Fetcher", "Limiter", "OptOut", "Reservation"]
