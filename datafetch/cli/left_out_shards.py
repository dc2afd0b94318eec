"""What a command that looks at an output says of shards whose ledgers are damaged, and what it ends with."""

from __future__ import annotations

from datafetch.cli.exit_code import ExitCode, write_line
from datafetch.store.layout import OutputLayout


class LeftOutShards:
    """Says of each shard that it is left out, on standard error.

    Args:
        layout: The paths of the output.
        as_json: Whether the lines are JSON objects.
    """

    def __init__(self, layout: OutputLayout, *, as_json: bool = False) -> None:
        self._layout = layout
        self._as_json = as_json
        self.exit_code = ExitCode.COMPLETE

    def __call__(self, shard: str) -> None:
        """Say it of one shard."""
        ledger = self._layout.ledger(shard)
        write_line(
            f"{ledger} is not a ledger of datafetch, so shard {shard} is left out; put back a copy",
            as_json=self._as_json,
        )
        self.exit_code = ExitCode.WRONG_COMMAND
