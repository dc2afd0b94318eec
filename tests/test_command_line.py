"""The command line of a run, from its job file: it starts the same job again, and says what it can't tell."""

import shlex
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from datafetch.cli.app import main
from datafetch.cli.command_line import command_line_of
from datafetch.datasets import find_dataset
from datafetch.datasets.documents import DocumentOptions
from datafetch.datasets.mmc4 import Mmc4CoreOptions
from datafetch.engine.choices import other_settings, settings_in
from datafetch.engine.job import Job, own_spec, read_job, settings_of
from datafetch.fetch import FetchPolicy, OptOut
from datafetch.model.kinds import Payload
from datafetch.model.report import Report
from datafetch.store.job_file import write_job_file
from datafetch.store.layout import OutputLayout
from datafetch.transcode import ImageSpec, Resize

OUT = Path("/データ/my root/coyo-700m/pkl03-split")
COYO = Job("coyo", "/データ/coyo", str(OUT), image=ImageSpec(short_side_px=336))
JOBS = {
    "defaults": COYO,
    "options": replace(
        COYO,
        ids="/my ids.txt",
        limit=7,
        mirror="http://mirror.example",
        payload=Payload.BYTES,
        processes=3,
        memory_bytes=1 << 33,
        max_sample_bytes=1 << 29,
        scratch="/local/$HOME",
        world_size=8,
        image=ImageSpec(short_side_px=None, quality=90, resize=Resize.FAST, max_pixels=10**9, decode_timeout_s=2.5),
        fetch=FetchPolicy(
            connections=17,
            timeout_s=12.5,
            allow_net=("10.0.0.0/8", "::1/128"),
            nameservers=("10.0.0.53",),
            opt_out=OptOut.IGNORE,
            contact="-me@example.org",
            insecure=True,
            trust_env=True,
        ),
    ),
    "manifest's shards": replace(COYO, world_size=None),
}


@pytest.mark.parametrize("name", JOBS)
def test_it_starts_the_same_job(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command that is printed parses as the job that its file has, whatever a shell would do with it."""
    root = tmp_path / "my データ"
    job = replace(JOBS[name], out=str(root / "coyo-700m" / "pkl03-split"))
    layout = OutputLayout(Path(job.out))
    layout.state_folder.mkdir(parents=True)
    assert job.image is not None
    write_job_file(layout, {"format": 1, "dataset": "coyo", "shards": {}, "limit": None}, settings_of(job, job.image))
    assert main(["status", "--command", job.out]) == 0
    printed = capfd.readouterr()
    assert printed.out.count("\n") == 1
    remarks = "datafetch: credentials and a query that --mirror may have had are not stored; give them again\n"
    assert printed.err == (remarks if job.mirror else "")
    started: list[Job] = []

    def start(job: Job, observers: object, repeated: object) -> Report:
        started.append(job)
        assert (repeated, observers is None) == (None, False)
        raise KeyboardInterrupt

    monkeypatch.setattr("datafetch.engine.cluster.choice.run", start)
    program, *words = shlex.split(printed.out)
    assert program == "datafetch"
    assert main(words) == 130
    read, _ = read_job(layout)
    assert started == [replace(read, options=find_dataset("coyo").options)]


def test_defaults_are_left_out() -> None:
    """Only what was given is said, each word as a shell needs it."""
    assert command_line_of(COYO, OUT).text == "datafetch prepare coyo --source '/データ/coyo' --root '/データ/my root'"
    published = replace(COYO, source="hf://datasets/kakaobrain/coyo-700m")
    assert "--source" not in command_line_of(published, OUT).words


def test_a_dry_run_and_a_command_line_say_options_in_the_same_words() -> None:
    """Values that look like options, numbers in full, None by its switch; what holds for one run is left out."""
    fetch = FetchPolicy(contact="-me@example.org", timeout_s=4321.0625)
    job = replace(COYO, fetch=fetch, world_size=None, reuse=True, finish_by=datetime(2030, 12, 31, tzinfo=UTC))
    words = ["--no-reshard", "--timeout", "4321.0625", "--user-agent=-me@example.org"]
    assert shlex.split(" ".join(other_settings(job))) == words
    assert list(command_line_of(job, OUT).words[7:]) == words
    (archive,) = (one for one in settings_in(Job("llava-pretrain", "", "")) if one.option.name == "archive")
    assert [*replace(archive, value="https://me:secret@x.org/a.zip").words()] == ["--archive", "https://x.org/a.zip"]


def test_options_of_a_dataset_are_said() -> None:
    """A path that is stored as it was given may be relative, which is remarked."""
    options = Mmc4CoreOptions(keep_at_least=2, max_tokens=4096, tokenizer="tokenizer.json", fill_similarity=True)
    dataset = find_dataset("mmc4-core", options)
    assert isinstance(dataset.options, DocumentOptions)
    job = Job("mmc4-core", "/mmc4", "out", image=own_spec(dataset), options=options)
    made = command_line_of(job, Path("/data") / dataset.path)
    assert made.words[3:] == (
        *("--source", "/mmc4", "--root", "/data", "--keep-at-least", "2", "--fill-similarity"),
        *("--max-tokens", "4096", "--tokenizer", "tokenizer.json"),
    )
    assert made.remarks == ("--tokenizer is relative to the folder in which the run was started",)


def test_what_can_not_be_told_is_remarked() -> None:
    """Secrets are never stored, an output may lie elsewhere, and a program may set what no option does."""
    job = replace(COYO, source="https://x.org/list.json", ids="the URL", fetch=FetchPolicy(max_redirects=3))
    made = command_line_of(job, Path("/moved/pkl03-split"))
    assert made.words == ("datafetch", "prepare", "coyo", "--source", "https://x.org/list.json")
    assert made.remarks == (
        "credentials and a query that --source may have had are not stored; give them again",
        "--ids was a URL with credentials, and is not stored; give it again",
        "--root can't be told, since the output does not end with coyo-700m/pkl03-split",
        "max_redirects was 3, which no option sets",
    )


def test_the_command_line_is_no_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Both at once are refused, in one line."""
    assert main(["status", str(tmp_path), "--command", "--json"]) == 2
    assert capfd.readouterr().err == "datafetch: give --command or --json, not both\n"
