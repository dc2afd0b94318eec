"""File names from untrusted data: none leads out of its folder, and no two give the same file."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafetch.datasets import find_dataset
from datafetch.datasets.filenames import DuplicateNames, why_refused
from datafetch.model.sample import REFUSED


@pytest.mark.parametrize(
    "name",
    [
        *("../a.jpg", "/etc/passwd", "a/../../b.jpg", "a//b.jpg", "./a.jpg", "..", ".", "", "a/", "a/./b"),
        *("a\0.jpg", "a\n.jpg", "\x1b[2J.jpg", "a\\..\\b.jpg", "C:a.jpg", "a?.jpg", "\ud800.jpg", "a\u202eb.jpg"),
        *("CON", "con.jpg", "a/NUL.png", "lpt1.jpg", "a.", "a ", " a", "x" * 241, "é" * 121, "/".join("abcdefghij")),
        *("/".join(["x" * 200] * 6), 7, None, ["a.jpg"]),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(name: object) -> None:
    """It leads out of the folder, to a device, to nowhere, or to another file on some filesystem."""
    assert why_refused(name)


@pytest.mark.parametrize("name", ["000000001.jpg", "00453/004539375.jpg", "桜.png", "a.b.c", "x" * 240, "-", "a b.jpg"])
def test_an_ordinary_name_is_accepted(name: str) -> None:
    """Names with folders are accepted, too."""
    assert not why_refused(name)


@given(st.text())
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    """Every accepted name is a relative path that stays below the folder."""
    if not why_refused(name):
        assert os.path.normpath(f"/out/{name}") == f"/out/{name}"
        assert "\0" not in name


_NAMES = ["a", "A", "b", "a/b", "A/c", "a/b/c", "a/B/d", "b/a", "c", "ß", "SS", "ss", "é", "e\u0301"]


def as_seen(name: str) -> str:
    """Return a name as a filesystem sees it that ignores case and composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@pytest.mark.rotating
@given(st.lists(st.none() | st.sampled_from(_NAMES), max_size=12))
def test_of_names_that_clash_the_first_is_accepted(names: list[str | None]) -> None:
    """A name is refused if and only if an accepted one before it is the same file, its folder, or below it."""
    clashes, accepted = DuplicateNames(names), list[str]()
    for number, name in enumerate(names):
        if name is None:
            assert not clashes.why_refused(number, "")
            continue
        seen = as_seen(name)
        is_free = all(
            seen != other and not seen.startswith(f"{other}/") and not other.startswith(f"{seen}/")
            for other in accepted
        )
        assert bool(clashes.why_refused(number, name)) != is_free
        if is_free:
            accepted.append(seen)
        assert clashes.has_namesake(number) == (sum(as_seen(one or "?") == seen for one in names) > 1)


def test_records_that_the_trainer_could_not_use_are_not_fetched(tmp_path: Path) -> None:
    """Each keeps its reason. The others keep their positions, even beyond the first shard."""
    turns = [{"from": "human", "value": "<image>\na"}, {"from": "gpt", "value": "b"}]
    good = [
        {"id": str(n), "image": f"{n}.jpg", "url": f"http://e.org/{n}", "conversations": turns} for n in range(2100)
    ]
    good[3]["image"] = "../3.jpg"
    good[5]["conversations"] = turns[:1]
    good[6]["conversations"] = [turns[0], {"from": "gpt", "value": 7}]
    good[7]["conversations"] = [{"from": "human", "value": "no mark"}, turns[1]]
    good[9]["image"] = "../" + "桜" * 300
    good[2050]["image"] = "4.JPG"
    good[2060]["image"] = "4.jpg/odd.jpg"  # costs none but itself, although a folder of this name would hide a file
    records: list[object] = [*good]
    records[8] = "not a record"
    good[10]["url"] = "http://e.org/\ud800.jpg"  # JSON can hold a lone surrogate, and UTF-8 can't
    path = tmp_path / "llm-jp_mm_pair_step0_558k.json"
    path.write_text(json.dumps(records))
    manifest = find_dataset("llm-jp-pairs-step0").bind(tmp_path, None)
    shards = manifest.shards()
    assert [(shard.name, shard.size) for shard in shards] == [("part-00000", 2000), ("part-00001", 100)]
    first, second = (list(manifest.samples(shard)) for shard in shards)
    refused = {sample.position: sample.row[REFUSED] for sample in first if not sample.urls}
    assert refused == {
        3: "the name of its file leads out of the folder, or nowhere: ../3.jpg",
        5: "the record has not 2 turns",
        6: "its turns are not one of human and one of gpt, with texts",
        7: "there is no <image> in its first turn",
        8: "the record is not an object",
        9: "the name of its file leads out of the folder, or nowhere: ../" + "桜" * 197 + "…",
    }
    assert first[10].urls == ("",)
    assert {sample.position: sample.row[REFUSED] for sample in second if not sample.urls} == {
        50: "an earlier record has the name of its file, but perhaps for the case of letters: 4.JPG",
        60: "an earlier record has the name of its folder as a file: 4.jpg/odd.jpg",
    }
    assert second[99].row == {"image": "2099.jpg"}
    assert (second[99].key, second[99].urls) == ("2099", ("http://e.org/2099",))
