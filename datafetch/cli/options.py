"""The options that every run takes, and those that choose of a dataset, declared once for all commands."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, get_args, get_type_hints

import typer

from datafetch.datasets.choices import Choices, IdsIndex
from datafetch.engine.job import Job
from datafetch.errors import ConfigurationError
from datafetch.fetch import FetchPolicy, OptOut
from datafetch.model.kinds import Payload
from datafetch.model.outcome import FailureKind, Permission
from datafetch.transcode import Encoding, ImageSpec, Pixels, Resize

# Numbers may be longer than any option takes: then its greatest value is named where that is known.
_SIZE = re.compile(r"([0-9]{1,100})(\.[0-9]{1,9})?\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_COUNT = re.compile(r"[0-9]{1,100}")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(option: str, text: str) -> int:
    """``33554432``, ``32M``, ``32MiB`` → bytes; the powers are those of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{option} takes bytes, or a number with K, M, G or T, not {text!r}")
    unit_bytes: int = 1024 ** _POWERS[match[3].lower()]
    return int(match[1]) * unit_bytes + int(float(match[2] or 0) * unit_bytes)


def parse_count(option: str, text: str, word: str) -> int | None:
    """A whole number above 0, or None for the word that stands for no number."""
    if text == word:
        return None
    if not (_COUNT.fullmatch(text) and int(text) > 0):
        raise ConfigurationError(f"{option} takes a whole number above 0, or {word!r}, not {text!r}")
    return int(text)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the contract lists under "Options that every run takes", as far as it is built."""

    connections: Annotated[str, typer.Option(metavar="N|auto", help="Requests open at once.")] = "auto"
    processes: Annotated[int | None, typer.Option(help="Codec processes.", show_default="CPU count")] = None
    per_host: Annotated[int, typer.Option(help="Requests open at once to one host.")] = 8
    timeout: Annotated[float, typer.Option(help="Seconds for one attempt, from sending to the last byte.")] = 30.0
    retries: Annotated[int, typer.Option(help="Further attempts after a failure that may be temporary.")] = 2
    max_body: Annotated[str, typer.Option(metavar="BYTES", help="Refuse larger bodies.")] = "32MiB"
    max_sample: Annotated[
        str,
        typer.Option(
            metavar="BYTES",
            help="Limit for all images of one sample together; an image that exceeds it fails as too_large.",
        ),
    ] = "256MiB"
    max_pixels: Annotated[int, typer.Option(help="Refuse larger images, from their header.")] = 89_478_485
    memory: Annotated[
        str, typer.Option(metavar="BYTES", help="Budget for bodies that wait for the codec; reading pauses above it.")
    ] = "1GiB"
    short_side: Annotated[
        str | None,
        typer.Option(
            metavar="PX|none",
            help="Shrink so that the shorter side is PX; never enlarge.",
            show_default="the dataset's own",
        ),
    ] = None
    quality: Annotated[int, typer.Option(help="JPEG quality, 1 to 95.")] = 75
    resize: Annotated[
        Resize | None,
        typer.Option(
            help=(
                "Shrink from all pixels, or decode large JPEGs at reduced size first "
                "(photographs: median 53 dB, at least 39)."
            ),
            show_default="exact for recipe pixels, else fast",
        ),
    ] = None
    decode_timeout: Annotated[float, typer.Option(help="CPU seconds one image may take in the codec.")] = 20.0
    encode: Annotated[
        Encoding | None,
        typer.Option(
            help="Encode every image again, keep JPEGs that need no change, or keep every image that decodes.",
            show_default="received where images become files, else recipe",
        ),
    ] = None
    pixels: Annotated[
        Pixels,
        typer.Option(help="The recipe's, or correct ones: upright, over white, sRGB, 16 bits scaled."),
    ] = Pixels.RECIPE
    payload: Annotated[Payload, typer.Option(help="What a pickle row holds: image as base64 text, or rawbytes.")] = (
        Payload.BASE64
    )
    allow_net: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR", help="Non-public addresses that may be connected to. Repeatable.", show_default="none"
        ),
    ] = None
    opt_out: Annotated[
        OptOut, typer.Option(help="Whether a response may forbid the use of its image (X-Robots-Tag).")
    ] = OptOut.OBEY
    nameserver: Annotated[
        list[str] | None,
        typer.Option(metavar="IP[:PORT]", help="Name server. Repeatable.", show_default="the system's"),
    ] = None
    scratch: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder for shards in progress.", show_default="in the state folder"),
    ] = None
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False
    no_lock: Annotated[
        bool,
        typer.Option(
            "--no-lock",
            help="Run without a lock, on filesystems that have none. Make sure that no other run uses this output.",
        ),
    ] = False
    no_reshard: Annotated[
        bool,
        typer.Option(
            "--no-reshard",
            help="Keep the manifest's shards and row order instead of making equal shards.",
        ),
    ] = False
    world_size: Annotated[int, typer.Option(help="Number of ranks to make equal shards for.")] = 64
    min_success: Annotated[float, typer.Option(help="Exit with 3 if a smaller share of the images arrives.")] = 0.0
    user_agent: Annotated[
        str, typer.Option(metavar="TEXT", help="A contact, added to the User-Agent.", show_default="none")
    ] = ""
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Also accept invalid certificates and outdated TLS; the ledger marks these images.",
        ),
    ] = False
    trust_env: Annotated[bool, typer.Option("--trust-env", help="Use the proxies that the environment names.")] = False
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output at the end.")] = False

    def fetch_policy(self) -> FetchPolicy:
        """The part of them that is about fetching."""
        return FetchPolicy(
            connections=parse_count("--connections", self.connections, "auto"),
            per_host=self.per_host,
            timeout_s=self.timeout,
            retries=self.retries,
            max_body_bytes=parse_bytes("--max-body", self.max_body),
            allow_net=tuple(self.allow_net or ()),
            nameservers=tuple(self.nameserver or ()),
            opt_out=self.opt_out,
            contact=self.user_agent,
            insecure=self.insecure,
            trust_env=self.trust_env,
        )

    def image_spec(self, own: ImageSpec) -> ImageSpec:
        """The part of them that is about images.

        Args:
            own: What an image of the dataset becomes where nothing was said.
        """
        short_side_px = own.short_side_px
        if self.short_side is not None:
            short_side_px = parse_count("--short-side", self.short_side, "none")
        return replace(
            own,
            short_side_px=short_side_px,
            quality=self.quality,
            pixels=self.pixels,
            resize=self.resize,
            encode=own.encode if self.encode is None else self.encode,
            max_pixels=self.max_pixels,
            decode_timeout_s=self.decode_timeout,
        )

    def ranks(self) -> int | None:
        """For how many ranks the shards are made equal; None leaves them as they are."""
        return None if self.no_reshard else self.world_size

    def memory_bytes(self) -> int:
        """The budget for bodies that wait for the codec."""
        return parse_bytes("--memory", self.memory)

    def max_sample_bytes(self) -> int:
        """What the images of one sample may take together."""
        return parse_bytes("--max-sample", self.max_sample)


@dataclass(frozen=True, slots=True)
class ChoiceOptions:
    """What may be chosen of a dataset, as ``Choices`` has it; each dataset takes some of them."""

    ids_index: Annotated[
        IdsIndex | None,
        typer.Option(
            help="What the index in the id list counts: documents as published, or those that were kept.",
            show_default="document",
        ),
    ] = None
    keep_at_least: Annotated[
        int | None,
        typer.Option(
            metavar="K", help="Keep documents of which K images arrive, without the others.", show_default="all"
        ),
    ] = None
    fill_similarity: Annotated[
        bool, typer.Option("--fill-similarity", help="Give documents without a similarity matrix one of zeros.")
    ] = False
    max_images: Annotated[
        int | None, typer.Option(metavar="N", help="Leave out documents with more images.", show_default="none")
    ] = None
    min_similarity: Annotated[
        float | None,
        typer.Option(metavar="S", help="Leave out documents with an image of lower similarity.", show_default="none"),
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Leave out documents with more tokens: those of the text, and 729 an image.",
            show_default="none",
        ),
    ] = None
    tokenizer: Annotated[
        str | None, typer.Option(metavar="FILE", help="A tokenizer.json, for --max-tokens.", show_default="none")
    ] = None
    url_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Key of the URL in a record.", show_default="detected")
    ] = None
    text_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Key of the text in a record.", show_default="detected")
    ] = None
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Skip and count lines and rows that can't be read.")
    ] = False
    only_referenced: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Only images that this JSON list of a training names.", show_default="all"),
    ] = None

    def choices(self) -> Choices:
        """What was chosen."""
        return Choices(**{option.name: getattr(self, option.name) for option in fields(self)})


# Options that a retry may set differently from the run before it: they don't decide the rows, or only permit what was
# refused. Each maps to its field of the job.
_POLICY_FIELDS = {
    "connections": "connections",
    "per_host": "per_host",
    "timeout": "timeout_s",
    "retries": "retries",
    "max_body": "max_body_bytes",
    "allow_net": "allow_net",
    "opt_out": "opt_out",
    "insecure": "insecure",
    "nameserver": "nameservers",
    "user_agent": "contact",
    "trust_env": "trust_env",
}
_JOB_FIELDS = {
    "processes": "processes",
    "memory": "memory_bytes",
    "max_sample": "max_sample_bytes",
    "scratch": "scratch",
    "no_lock": "no_lock",
}
_SPEC_FIELDS = {"decode_timeout": "decode_timeout_s", "max_pixels": "max_pixels"}
# Options that permit what is refused by default.
_PERMISSIONS = {permission.replace("-", "_"): permission for permission in Permission}
_SAID_ALWAYS = ("json", "min_success")
_SAID_EACH_TIME = (*_SAID_ALWAYS, "no_lock")


@dataclass(frozen=True, slots=True)
class RetryOptions:
    """What was said to a retry; the rest is as the run before it had it.

    Attributes:
        given: Names of options, as in ``RunOptions``, to what they were given.
    """

    given: Mapping[str, Any]

    @property
    def json(self) -> bool:
        """Whether one JSON object is asked for."""
        return bool(self.given.get("json"))

    @property
    def cured(self) -> frozenset[FailureKind]:
        """The failure kinds that the permissions given here can cure; a retry requests those as well."""
        given = (permission for option, permission in _PERMISSIONS.items() if self.given.get(option))
        return frozenset(
            permission.cures
            for permission in given
            if permission is not Permission.OPT_OUT or self.given["opt_out"] == OptOut.IGNORE
        )

    @property
    def min_success(self) -> float:
        """The least share of images that is to arrive."""
        return float(self.given.get("min_success", 0.0))

    def change(self, job: Job) -> Job:
        """The job of the run before, with what was said."""
        options = RunOptions(**self.given)
        image = job.image or ImageSpec()
        policy, spec = options.fetch_policy(), options.image_spec(ImageSpec())
        policy = replace(policy, allow_net=tuple(dict.fromkeys((*job.fetch.allow_net, *policy.allow_net))))
        own: dict[str, Any] = {
            "processes": options.processes,
            "memory_bytes": options.memory_bytes(),
            "max_sample_bytes": options.max_sample_bytes(),
            "scratch": options.scratch,
            "no_lock": options.no_lock,
        }
        return replace(
            job,
            fetch=replace(
                job.fetch, **{to: getattr(policy, to) for said, to in _POLICY_FIELDS.items() if self._has(said)}
            ),
            image=replace(image, **{to: getattr(spec, to) for said, to in _SPEC_FIELDS.items() if self._has(said)}),
            **{to: own[to] for said, to in _JOB_FIELDS.items() if self._has(said)},
        )

    def _has(self, option: str) -> bool:
        return option in self.given


def with_run_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options of ``RunOptions``; it gets them as its last parameter, ``options``."""
    parameters = [
        _add_help(parameter, "May be given to retry later.") if parameter.name in _PERMISSIONS else parameter
        for parameter in _parameters(RunOptions)
    ]
    return _with_options(command, "options", parameters, lambda values: RunOptions(**values))


def _add_help(parameter: inspect.Parameter, sentence: str) -> inspect.Parameter:
    kind, option = get_args(parameter.annotation)
    option = copy(option)
    option.help = f"{option.help} {sentence}"
    return parameter.replace(annotation=_annotated(kind, option))


def with_choice_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options of ``ChoiceOptions``; it gets them as its parameter ``choice_options``."""
    return _with_options(command, "choice_options", _parameters(ChoiceOptions), lambda values: ChoiceOptions(**values))


def _parameters(options: type[RunOptions | ChoiceOptions]) -> list[inspect.Parameter]:
    hints = get_type_hints(options, include_extras=True)
    return [
        inspect.Parameter(
            option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=hints[option.name]
        )
        for option in fields(options)
    ]


def with_retry_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command those of them that a retry may have; it gets them as its last parameter, ``options``."""
    hints = get_type_hints(RunOptions, include_extras=True)
    shared = []
    for name in (*_POLICY_FIELDS, *_JOB_FIELDS, *_SPEC_FIELDS, *_SAID_ALWAYS):
        kind, option = get_args(hints[name])
        option = copy(option)
        option.show_default = False if name in _SAID_EACH_TIME else "as in the run"
        annotation = _annotated(kind | None, option)
        parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        if name in _PERMISSIONS:
            parameter = _add_help(parameter, f"Also retries {_PERMISSIONS[name].cures}, unless --kinds is given.")
        shared.append(parameter)
    return _with_options(
        command,
        "options",
        shared,
        lambda values: RetryOptions({name: value for name, value in values.items() if value is not None}),
    )


def _annotated(kind: Any, option: object) -> object:
    """The same as writing it down, for a type that is only known when this runs."""
    return Annotated[kind, option]


def _with_options(
    command: Callable[..., int],
    gathered: str,
    shared: Sequence[inspect.Parameter],
    gather: Callable[[dict[str, Any]], object],
) -> Callable[..., int]:
    """Give a command these parameters in place of one, which it gets as what they are gathered to."""
    own = [
        parameter
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
        if name != gathered
    ]
    names = [parameter.name for parameter in shared]

    @functools.wraps(command)
    def wrapped(**values: Any) -> int:
        options = gather({name: values.pop(name) for name in names})
        return command(**values, **{gathered: options})

    wrapped.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
    return wrapped
