"""Declarations of options that several datasets have."""

from __future__ import annotations

from datafetch.model.options import Effect, Option

SKIP_BAD_LINES = Option(help="Skip and count lines and rows that can't be read.", effect=Effect.PERMITS)
URL_KEY = Option(help="Key of the URL in a record.", metavar="KEY", unset="detected", effect=Effect.MANIFEST)
