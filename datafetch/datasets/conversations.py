"""What the trainer's loader of step 0 demands of a record: one turn of a human with an image, and one of the model."""

from __future__ import annotations

_TURNS = 2


def why_no_pair(record: object) -> str:
    """Return why the loader can't use a record; an empty string if it can."""
    if not isinstance(record, dict):
        return "the record is not an object"
    turns: object = record.get("conversations")
    if not isinstance(turns, list) or len(turns) != _TURNS:
        return f"the record has not {_TURNS} turns"
    values = [turn.get("value") if isinstance(turn, dict) else None for turn in turns]
    speakers = [turn.get("from") if isinstance(turn, dict) else None for turn in turns]
    if not all(isinstance(value, str) for value in values) or speakers != ["human", "gpt"]:
        return "its turns are not one of human and one of gpt, with texts"
    if "<image>" not in str(values[0]):
        return "there is no <image> in its first turn"
    return ""
