"""In which settings two jobs on the same output differ, in words for the operator.

Rules: options are named as they are given to the command. Hashes tell nobody anything, so a file that is identified by
its hash is named as it was given. Names and values come from a file of the state folder: they are printable and short.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafetch.model.location import is_remote
from datafetch.model.untrusted import to_printable
from datafetch.store.job_file import Identity

_NO_OPTIONS = frozenset({"dataset", "format", "least_pixels"})  # parts of the identity that no option sets
_WORDS = {
    "images": "other images are wanted",
    "resizer": "--resize fast gives other pixels than in the version of datafetch that was used",
    "fallback": "with another list of URLs next to the published one, or without one",
}
"""The difference, by the part of the identity, where no option names it."""
_OTHER_FLAGS = {"output_format": "--format", "input_formats": "--input-format"}
_COLUMN_OPTIONS = ("url", "caption", "keep", "id", "sha256", "md5")  # --url-col …
_MAX_VALUE_CHARS = 200
_HASH = re.compile(r"[0-9a-f]{64}")


def describe_differences(
    before: Identity, now: Identity, settings_before: Mapping[str, Any], settings_now: Mapping[str, Any]
) -> str:
    """All differences of two identities, each in a few words; of manifest files only the first is named.

    Args:
        before: The identity of the earlier job.
        now: That of the new one.
        settings_before: The settings of the earlier job (``job.settings_of``); empty if they are not known.
        settings_now: Those of the new one.
    """
    names = sorted(name for name in before | now if name != "shards" and before.get(name) != now.get(name))
    # Parts that differ only because another one does, and were given by nobody: without --short-side or --resize-mode
    # nothing is resized, and each --resize has its own resizer.
    is_implied = {"short_side", "resize_mode"} & {*names} and None in (before.get("resize"), now.get("resize"))
    implied = {"resize"} if is_implied else set()
    if "resize" in names:
        implied.add("resizer")
    differences = [
        difference
        for name in names
        if name not in implied
        for difference in _describe(
            name,
            (before.get(name), now.get(name)),
            (_setting(settings_before, name), _setting(settings_now, name)),
        )
    ]
    have_changed = before.get("shards") != now.get("shards")
    if have_changed and (not differences or _are_files_others(before, now)):  # an option may decide which are read
        differences.append(f"manifest files that have changed: {_describe_shards(before, now)}")
    return "; ".join(differences)


def _setting(settings: Mapping[str, Any], name: str) -> object:
    """The value of an option in the settings of a job, whether it is of all jobs or of the dataset."""
    options = settings.get("choices")
    return settings.get(name) or (options.get(name) if isinstance(options, Mapping) else None)


def _describe(name: str, values: tuple[Any, Any], settings: tuple[object, object]) -> Iterator[str]:
    """The difference in one part of the identity.

    Args:
        name: The part.
        values: Its earlier and its present value.
        settings: What was given for it, then and now.
    """
    before, now = values
    if name in _WORDS:
        yield _WORDS[name]
    elif name == "keys" and isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before | now):
            if before.get(key) != now.get(key):
                yield f"--{key}-key: {_text(before.get(key))}, now {_text(now.get(key))}"
    elif name == "columns":
        yield from _describe_columns(before, now)
    elif name == "ids" or any(isinstance(value, str) and _HASH.fullmatch(value) for value in values):
        yield f"{_flag(name)}: {_describe_files(values, settings)}"
    else:
        yield f"{_flag(name)}: {_text(before)}, now {_text(now)}"


def _flag(name: str) -> str:
    return name if name in _NO_OPTIONS else _OTHER_FLAGS.get(name, f"--{name.replace('_', '-')}")


def _describe_columns(before: object, now: object) -> Iterator[str]:
    """The difference in what the columns of a list are taken for, of which files may have several ways."""
    are_same = True
    for option in _COLUMN_OPTIONS:
        texts = [_text(_columns_for(option, files)) for files in (before, now)]
        if texts[0] != texts[1]:
            are_same = False
            yield f"--{option}-col: {texts[0]}, now {texts[1]}"
    if are_same:
        yield "the files have their columns in other combinations"


def _columns_for(option: str, files: object) -> list[str]:
    """The columns that are taken for something, each once."""
    found: list[str] = []
    for columns in files if isinstance(files, list) else ():
        value = columns.get(option) if isinstance(columns, Mapping) else None
        found += map(str, value if isinstance(value, list) else [] if value is None else [value])
    return list(dict.fromkeys(found))


def _text(value: object) -> str:
    """A value in words; several of an option that is given for each."""
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value)) or None
    text = "not set" if value is None else to_printable(str(value))
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[:_MAX_VALUE_CHARS]} …"


def _describe_files(hashes: tuple[Any, Any], given: tuple[object, object]) -> str:
    """The difference between two files that are identified by their content."""
    before, now = ("none" if content is None else _file_name(path) for content, path in zip(hashes, given, strict=True))
    return f"{now}, whose content has changed" if before == now else f"{before} before, now {now}"


def _file_name(given: object) -> str:
    """A file as the operator may have given it: relative, where it lies below the working directory."""
    if not isinstance(given, str):
        return "another file"
    if is_remote(given):
        return _text(given)
    relative = os.path.relpath(Path(given))
    return _text(given if relative.startswith("..") else relative)


@dataclass(frozen=True, slots=True)
class ManifestPart:
    """What an identity has of a shard: its manifest file, the size of its part of that, and the file's fingerprint."""

    source: str
    size: int
    fingerprint: str


def parts_of(identity: Identity) -> dict[str, ManifestPart]:
    """The shards of an identity by name, without those that a damaged file describes."""
    parts = {}
    shards = identity.get("shards")
    for name, part in shards.items() if isinstance(shards, dict) else ():
        match part:
            case [str(source), int(size), str(fingerprint)]:
                parts[name] = ManifestPart(source, size, fingerprint)
    return parts


def _are_files_others(before: Identity, now: Identity) -> bool:
    """Whether a manifest file has another content, or all files have other names."""
    contents = [{part.source: part.fingerprint for part in parts_of(one).values()} for one in (before, now)]
    common = contents[0].keys() & contents[1].keys()
    return not common or any(contents[0][source] != contents[1][source] for source in common)


def _describe_shards(before: Identity, now: Identity) -> str:
    """The first manifest file that has changed, has another name or is missing now."""
    earlier_parts, parts = parts_of(before), parts_of(now)
    changed = {
        part.source: earlier_parts.get(shard) for shard, part in parts.items() if earlier_parts.get(shard) != part
    }
    gone = {part.source for shard, part in earlier_parts.items() if shard not in parts} - changed.keys()
    if not changed:
        return f"{_text(min(gone))} is missing" if gone else "their description is damaged"
    source = min(changed)
    earlier = changed[source]
    return _text(source) if earlier is None or earlier.source == source else f"{source}, before {_text(earlier.source)}"
