"""``docs/messages.md`` is written from the code, and can't go stale."""

import ast
import subprocess
import sys
from pathlib import Path

import messages as script
import pytest
from lib.messages_in_code import Texts

from datafetch.model.outcome import FailureKind

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "messages.py"
PAGE = (ROOT / "docs" / "messages.md").read_text()


def test_the_page_is_what_the_code_says() -> None:
    """A message that was added, changed or deleted is so on the page; ``scripts/messages.py`` writes it."""
    checked = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_page_has_messages_of_every_kind() -> None:
    """Errors by exit code, log messages, failure kinds and their details, lines of summaries, what verify finds."""
    for title in (
        "## Exit 2: the command or a setting",
        "## Exit 2: a manifest, an id list or another published file",
        "## Exit 4: this machine",
        "## Exit 1: a bug",
        "## Wrong use of the library",
        "### Warning",
        "### Info",
        "### Details",
        "### What `datafetch verify` finds",
    ):
        section = PAGE.partition(f"\n{title}\n")[2].partition("\n#")[0]
        assert "\n* " in section, title
    for kind in FailureKind:
        assert f"\n| `{kind}` | " in PAGE, kind
    assert "\n* errors: `there is no {what} '{name}'; {did_you_mean}there are: {names …}`\n" in PAGE
    assert "\n* model/fields: `{field} must be from {minimum} to {maximum}, not {shown}`\n" in _section(
        "## Exit 2: the command"
    )
    assert "{{" not in PAGE
    assert "help=" not in PAGE


def test_what_to_do_is_said_for_each_error_and_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the message, or by the script; what the script says is said of a message that there is."""
    assert script.faults() == []
    monkeypatch.setitem(script._WHAT_TO_DO, "of a message that was deleted", "wait")
    monkeypatch.delitem(script._WHAT_TO_DO, "is not among the datasets")
    silent, unused = script.faults()
    assert silent.startswith("says not what to do: ")
    assert silent.endswith("is not among the datasets: {names …}")
    assert unused == "no message has this part: of a message that was deleted"


def _section(title: str) -> str:
    return PAGE.partition(f"\n{title}")[2].partition("\n#")[0]


def test_each_text_is_found_and_its_values_are_named() -> None:
    """Whatever it is called with; help, tables, annotations, comparisons and what is not said are left out."""
    source = '''
"""A docstring of many words."""
_DONE = "all of it is done"
LEGACY_PREFIX = "a prefix of earlier versions"
class OwnError(ResourceError):
    """Another docstring of words."""
def work(path: "a type of words", error, names):
    """A docstring, too, of words."""
    _log.warning("%s is lost, and %d more of %s", path, len(names), self.dataset.name)
    if "a text that is compared" in str(error):
        raise ConfigurationError(f"there is no {what!r}; {'one' if names else 'none'} of {', '.join(names)} fits")
    option(1, Option(help="What an option is for."))
    if path:
        raise invalid(self, f"{{limit}} must be below {names}, or {{pixels:{what}}}")
    template = "{encode:received} takes no {limit}, but {reason}"
    unsaid = TypeVar("unsaid", bound="a type in text")
    text = f"a {path:<9}  column  of a  table"
    option(2, replace(LIMIT, unset="that of the output, or 2"))
    few = f"all {names} names"
    part = f"some of {path} and of {names} fit"
    call_at(5, _log.info, _DONE)
    complain(f"{what} is of no use here", ExitCode.WRONG_COMMAND)
    if names is None:
        raise TypeError(f"give names, not {path} of any kind")
    raise OwnError("this machine is" f" full: {error.strerror or error}")
    return Failure(FailureKind.EMPTY, f"not one of {size:,} bytes")
'''
    texts = Texts(
        "store/made_up.py",
        dict.fromkeys(("ConfigurationError", "InvalidFieldError"), "ConfigurationError")
        | {"OwnError": "ResourceError"},
    )
    texts.visit(ast.parse(source))
    assert {(message.group, message.text) for message in texts.messages} == {
        ("warning", "{path} is lost, and {number of names} more of {dataset}"),
        ("ConfigurationError", "there is no '{what}'; {one|none} of {names …} fits"),
        ("ResourceError", "this machine is full: {reason}"),
        ("ConfigurationError", "{limit} must be below {names}, or {pixels} {what}"),
        ("ConfigurationError", "{encode} received takes no {limit}, but {reason}"),
        ("store", "some of {path} and of {names} fit"),
        ("info", "all of it is done"),
        ("ConfigurationError", "{what} is of no use here"),
        ("misuse", "give names, not {path} of any kind"),
        ("`empty`", "not one of {size} bytes"),
    }
