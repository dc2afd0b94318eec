"""synthdog-ja: images and a list from parquet files, exactly as the recipe makes them."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import retry, run
from PIL import Image

from datafetch import Check, Job, run_check
from datafetch.datasets.synthdog_ja import SynthdogJaOptions
from datafetch.errors import ConfigurationError, ManifestError
from datafetch.store.layout import OutputLayout


def image_bytes(number: int) -> bytes:
    """A PNG with transparency, as some of the published images are."""
    buffer = BytesIO()
    Image.new("RGBA" if number % 2 else "RGB", (20 + number % 9, 16), (number % 256, 40, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, first: int, rows: int, **options: Any) -> None:
    """Write rows of the published form, the texts of which count from a number."""
    numbers = range(first, first + rows)
    images = [{"bytes": image_bytes(number), "path": f"{number}.png"} for number in numbers]
    texts = [json.dumps({"gt_parse": {"text_sequence": f'文字 {number} "引用"  終'}}) for number in numbers]
    table = pa.table({"image": images, "ground_truth": texts})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7, **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three files, and one for validation."""
    folder = tmp_path / "source"
    for number, rows in enumerate((25, 20, 15)):
        write_parquet(folder / f"data/train-{number:05d}-of-00003-0123456789abcdef.parquet", number * 1000, rows)
    write_parquet(folder / "data/validation-00000-of-00001-0123456789abcdef.parquet", 9000, 5)
    return folder


def job_for(tmp_path: Path, source: Path, count: int, **changes: Any) -> Job:
    """The job for so many rows."""
    out = str(tmp_path / "data/synthdog-ja/image")
    return replace(Job("synthdog-ja", str(source), out, processes=1, options=SynthdogJaOptions(count=count)), **changes)


def recipe(rows: Sequence[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """The list as the recipe's script makes it, of rows given by file, number in it, and text."""
    questions = [
        ("写真に写っている文字をすべて書き出してください。", "この写真に写っている文字を以下に示します。\n```\n"),
        ("画像の中の文字をすべて出力してください。", "入力された画像内の文字は以下の通りです。\n```\n"),
        ("この画像には何と書かれていますか？", "この画像に書かれているテキストを以下に表示します。\n```\n"),  # noqa: RUF001
        ("画像に書かれているテキストを全て出力しなさい。", "この画像に書かれているテキストを以下に示します。\n```\n"),
        ("与えられた画像中のテキストを全て出力しなさい。", "画像中のテキストは以下の通りです。\n```\n"),
        ("この写真内の全てのテキストを抜き出してください。", "この写真内のテキストを以下に表示します。\n```\n"),
    ]
    made = []
    for number, (file, row, text) in enumerate(rows):
        question, prefix = questions[number % 6]
        asked = "<image>\n" + question if number % 2 == 0 else question + "\n<image>"
        answer = prefix + f'文字 {text} "引用"  終'.replace(" ", "\n") + "\n```\n"
        id_ = f"synthdog-ja/image/{file:03d}/{row:05d}"
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
        made.append({"id": id_, "image": id_ + ".jpg", "conversations": turns})
    return made


@pytest.mark.rotating
@pytest.mark.parametrize("count", [30, 60])
def test_the_files_and_the_list_are_those_of_the_recipe(tmp_path: Path, source: Path, count: int) -> None:
    """Images as Pillow saves them by default, the list to the byte, and no file is read that is not needed."""
    if count == 30:
        (source / "data/train-00002-of-00003-0123456789abcdef.parquet").write_bytes(b"not needed")
    job = job_for(tmp_path, source, count)
    report = run(job)
    rows = [(file, row, file * 1000 + row) for file, rows in enumerate((25, 20, 15)) for row in range(rows)][:count]
    assert report.totals.outcomes == {"ok": count}
    written = (tmp_path / "data/synthdog-ja/synthdog_ja_0k.json").read_text()
    assert written == json.dumps(recipe(rows), ensure_ascii=False, indent=2)
    files = {path.relative_to(job.out).as_posix(): path.read_bytes() for path in Path(job.out).rglob("*.jpg")}
    assert sorted(files) == [f"{file:03d}/{row:05d}.jpg" for file, row, _ in rows]
    for file, row, text in rows:
        buffer = BytesIO()
        Image.open(BytesIO(image_bytes(text))).convert("RGB").save(buffer, "JPEG")
        assert files[f"{file:03d}/{row:05d}.jpg"] == buffer.getvalue()
    list_path = tmp_path / "data/synthdog-ja/synthdog_ja_0k.json"
    for path in (list_path, job.out):
        assert not run_check(Check(str(path))).problems
    assert run(job).reused == count


def test_another_count_takes_the_place_of_the_first(tmp_path: Path, source: Path) -> None:
    """It is another job, which is started over; the list of the first has another name and stays."""
    run(job_for(tmp_path, source, 5))
    again = job_for(tmp_path, source, 12)
    with pytest.raises(ConfigurationError, match=r"\(--count: 5, now 12\).*--fresh"):
        run(again)
    assert run(replace(again, fresh=True)).totals.ok == 12
    assert run(again).reused == 12


@pytest.mark.parametrize(("count", "name"), [(101_953, "102k"), (1500, "2k"), (2500, "2k"), (499, "0k")])
def test_the_list_is_named_by_the_number_of_rows(count: int, name: str) -> None:
    """As Python rounds thousands."""
    from datafetch.datasets import find_dataset  # noqa: PLC0415

    assert find_dataset("synthdog-ja", SynthdogJaOptions(count=count)).list_name == f"synthdog_ja_{name}.json"


def test_an_image_that_does_not_decode_is_left_out(tmp_path: Path, source: Path) -> None:
    """With its record; the others keep their ways of asking."""
    path = source / "data/train-00000-of-00003-0123456789abcdef.parquet"
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[3]["bytes"] = image_bytes(3)[:60]
    images[4] = None
    pq.write_table(table.set_column(0, "image", pa.array(images, table["image"].type)), path)
    job = job_for(tmp_path, source, 10)
    run(job)
    written = json.loads((tmp_path / "data/synthdog-ja/synthdog_ja_0k.json").read_text())
    expected = recipe([(0, row, row) for row in range(10)])
    assert written == [record for number, record in enumerate(expected) if number not in (3, 4)]
    dropped = map(json.loads, OutputLayout(Path(job.out)).dropped.read_text().splitlines())
    assert [line["record"] for line in dropped] == [3, 4]
    with pytest.raises(ConfigurationError, match="nothing to retry"):
        retry(job.out)


def test_a_file_that_is_missing_between_others_is_noticed(tmp_path: Path, source: Path) -> None:
    """All that follow would get the names of others."""
    next(source.rglob("train-00001-*")).unlink()
    with pytest.raises(ManifestError, match="lacks file 1 of the published ones, and has train-00002-of-00003"):
        run(job_for(tmp_path, source, 30))


def test_too_few_rows_are_refused(tmp_path: Path, source: Path) -> None:
    """The message says how many there are, and what to do."""
    with pytest.raises(ManifestError, match="have 60 rows, and 101,953 are needed; add the next files, or give a s"):
        run(job_for(tmp_path, source, 101_953))


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"gt_parse": {}}',
        '{"gt_parse": {"text_sequence": 5}}',
        "[" * 5000,
        '{"gt_parse": {"text_sequence": "\\ud800"}}',
        json.dumps({"gt_parse": {"text_sequence": "x" * 70_000}}),
    ],
    ids=["no json", "a list", "nothing", "a number", "nested", "a lone surrogate", "long"],
)
def test_a_row_without_a_text_stops_the_run(tmp_path: Path, source: Path, text: str) -> None:
    """In one line with its file and number, before anything is fetched."""
    path = source / "data/train-00000-of-00003-0123456789abcdef.parquet"
    table = pq.read_table(path)
    texts = table["ground_truth"].to_pylist()
    texts[2] = text
    pq.write_table(table.set_column(1, "ground_truth", pa.array(texts)), path)
    with pytest.raises(ManifestError, match=r"train-00000.* row 2: "):
        run(job_for(tmp_path, source, 10))


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"image": ["x"], "ground_truth": ["{}"]}),
        pa.table({"image": [{"path": "x"}], "ground_truth": ["{}"]}),
        pa.table({"image": [{"bytes": "text"}], "ground_truth": ["{}"]}),
        pa.table({"image": [{"bytes": b"x"}], "ground_truth": [5]}),
        pa.table({"other": ["x"]}),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, table: pa.Table) -> None:
    """By the name of the column."""
    (tmp_path / "source").mkdir()
    pq.write_table(table, tmp_path / "source/train-00000-of-00001-0123456789abcdef.parquet")
    with pytest.raises(ManifestError, match=r"column (image\.bytes|ground_truth)"):
        run(job_for(tmp_path, tmp_path / "source", 1))


@pytest.mark.rotating
def test_an_image_in_a_dictionary_is_read_a_few_rows_at_a_time(tmp_path: Path) -> None:
    """Rows that share one large image would otherwise take the memory of all of them."""
    image = random.Random(1).randbytes(2_500_000)  # its content is not looked at
    rows = [{"bytes": image, "path": ""}] * 40
    texts = [json.dumps({"gt_parse": {"text_sequence": "x"}})] * 40
    (tmp_path / "source").mkdir()
    path = tmp_path / "source/train-00000-of-00001-0123456789abcdef.parquet"
    pq.write_table(pa.table({"image": rows, "ground_truth": texts}), path)
    assert path.stat().st_size < 3 * len(image)
    from datafetch.datasets.readers import ColumnType, ParquetFile  # noqa: PLC0415

    file = ParquetFile(path, {"image.bytes": ColumnType.BINARY})
    assert max(batch.num_rows for batch in file.batches(["image.bytes"])) <= 8
