"""The messages in the source of a package: texts of three words or more, and what they are called with."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_MIN_WORDS = 3
_MIN_WORDS_OF_PARTS = 4
_MISUSE = frozenset({"RuntimeError", "TypeError"})
MISUSE_GROUP = "misuse"
_BUGS = frozenset({"AssertionError", "AttributeError", "NotImplementedError"})
_FIELD_ERROR = "InvalidFieldError"  # made by `invalid`, of a template that is given to it, or has a name of these
_TEMPLATES = frozenset({"template", "_VALIDATION_MESSAGES"})
_QUOTED = re.compile(r"\{(\w+)!r\}")
_WRONG_COMMAND = "ExitCode.WRONG_COMMAND"
_FIELD = re.compile(r"\{\{(\w+)\}\}")
_FIELD_SET_TO = re.compile(r"\{(\w+):(\{?\w+\}?)\}")
_FINDINGS = "verify"  # in this package even the shortest text is no part, but what is wrong with a file
_LEVELS = {"info": "info", "warning": "warning", "error": "error", "exception": "error", "log": "info or warning"}
_HELP = re.compile(r"(?:typer\.(?:Option|Argument)|Option|_\w*Option|_NoRowEffect|_Permission|_Summary)\Z")
_HELP_FIELDS = frozenset({"help", "summary", "epilog", "description", "metavar", "unset"})
_HELP_FUNCTIONS = frozenset(
    {"__repr__", "add_help", "_also_retried", "_default_text", "format_help_text", "format_options"}
)
_NOT_SAID = frozenset({"_EXHAUSTION_MESSAGES", "_STEPS", "_load_rich"})  # recognised, of help, or drawn nowhere
_LEGACY = re.compile(r"_?LEGACY_")  # texts of earlier versions, which are only recognised
_TYPING = frozenset({"TypeVar", "cast"})  # their texts are annotations
_ALIGNED = re.compile(r"[<>^]")
_VALUE = re.compile(r"\{[^{}|]*\}")
_WORD = re.compile(r"[^\W\d]")
_NO_SENTENCE = re.compile(r"[a-z]+://\S+\Z|datafetch/|import |docs_|.*[\r\n]", re.DOTALL)
_NO_PARTS = frozenset({"demo"})  # of these packages only errors and log messages are for users
_PACKAGES = {"errors.py": "model"}
_NAMES = {"strerror": "reason", "error": "reason", "exc": "reason"}
_GENERAL = frozenset({"name", "value", "path"})  # attributes that say less than what they are of
_INNER = ("value", "left", "operand", "elt", "body", "values", "elts")  # fields with what names an expression
_WRAPPERS = frozenset(
    {"ascii", "decimal", "list", "map", "max", "min", "one_line", "quote", "repr", "round", "sorted", "str", "type"}
    | {"to_printable", "without_secrets"}
    | {"_file_name", "_plain", "_safe", "_shown", "_size", "_text", "_type_name"}
)
"""Functions that give a value another form, and no other meaning."""


@dataclass(frozen=True, slots=True, order=True)
class Message:
    """A message.

    Attributes:
        group: What it is: the name of an error's class, a log level, a failure kind, or a package.
        module: The module that has it.
        text: The text, with names in place of values.
    """

    group: str
    module: str
    text: str


class Texts(ast.NodeVisitor):
    """Collects the messages of a module.

    Args:
        module: Its path in the package.
        errors: The classes of errors that stop a command, by name, each with the one that decides its exit code.
    """

    def __init__(self, module: str, errors: dict[str, str]) -> None:
        self.messages: set[Message] = set()
        self._logged: dict[str, str] = {}
        self._module = module
        self._errors = errors
        self._above: list[ast.AST] = []

    def generic_visit(self, node: ast.AST) -> None:
        """Visit what is below a node."""
        self._above.append(node)
        super().generic_visit(node)
        self._above.pop()

    def visit_Module(self, node: ast.Module) -> None:
        """Note first which constants are logged, and at which level."""
        for call in filter(lambda below: isinstance(below, ast.Call), ast.walk(node)):
            self._note_logged(call)  # type: ignore[arg-type]  # it is a call
        self.generic_visit(node)

    def _note_logged(self, call: ast.Call) -> None:
        """Note the constant of a call such as ``_log.info(_DONE)`` or ``call_later(5, _log.info, _DONE)``."""
        level = ""
        for part in (call.func, *call.args):
            if ast.unparse(part).startswith("_log."):
                level = _LEVELS.get(ast.unparse(part).rpartition(".")[2], "")
            elif level and isinstance(part, ast.Name) and part.id.isupper():
                self._logged[part.id] = level

    def visit_Constant(self, node: ast.Constant) -> None:
        """Take a plain text."""
        if isinstance(node.value, str) and not isinstance(self._above[-1], ast.Expr):  # that is a docstring
            self._take(node, node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Take a text with values in it, unless it is a row of a table; a text within one of these is part of it."""
        specs = [part.format_spec for part in node.values if isinstance(part, ast.FormattedValue) and part.format_spec]
        if any(_ALIGNED.search(ast.unparse(spec)) for spec in specs):
            return
        self._take(node, "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))

    def visit_Call(self, node: ast.Call) -> None:
        """Take the text of a log message; of any other call, all texts."""
        if not ast.unparse(node.func).startswith("_log."):
            self.generic_visit(node)
            return
        self._above.append(node)
        for text in node.args:
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                self.visit(text)
                break
        self._above.pop()

    def visit_Compare(self, node: ast.Compare) -> None:
        """Leave out what is compared with something."""

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Leave out annotations."""
        self.visit(node.value)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Leave out enumerations."""
        if not any(ast.unparse(base).endswith("Enum") for base in node.bases):
            self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Leave out what is not said."""
        if not any(_is_not_said(_name_of(target)) for target in node.targets):
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Leave out annotations."""
        if node.value is not None and _name_of(node.target) not in _HELP_FIELDS:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Leave out annotations, decorators and help."""
        if node.name in _HELP_FUNCTIONS | _NOT_SAID:
            return
        self._above.append(node)
        for part in (*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
            self.visit(part)
        self._above.pop()

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """Like any function."""
        self.visit_FunctionDef(node)  # type: ignore[arg-type]  # it has the same fields

    def visit_Assert(self, node: ast.Assert) -> None:
        """Leave out what only a bug shows."""

    def _take(self, node: ast.expr, words: str) -> None:
        group = self._group()
        text = render(node, [*self._above])
        if group and self._is_long_enough(group, words, text) and not _NO_SENTENCE.match(text):
            if group == _FIELD_ERROR:
                group = self._errors.get(group, group)
                text = _QUOTED.sub(r"'{\1}'", _FIELD.sub(r"{\1}", _FIELD_SET_TO.sub(r"{\1} \2", text)))
            self.messages.add(Message(group, self._module, " ".join(text.split())))

    def _is_long_enough(self, group: str, words: str, text: str) -> bool:
        """Whether a text says something by itself: a part of a message that hardly does is not listed."""
        if sum(word != "…" for word in words.split()) < _MIN_WORDS - 1 or len(words.split()) < _MIN_WORDS:
            return False
        if group != self._package():
            return True
        said = sum(bool(_WORD.search(word)) for word in _VALUE.sub("", text).split())
        if group == _FINDINGS:
            return said >= _MIN_WORDS
        return said >= _MIN_WORDS - 1 and len(words.split()) >= _MIN_WORDS_OF_PARTS

    def _group(self) -> str:
        """What a text is, by the call that it is in; empty for one that no user meets, or that is help."""
        for above in reversed(self._above):
            if isinstance(above, ast.keyword) and above.arg in _HELP_FIELDS:
                return ""
            group = None
            if isinstance(above, ast.Call):
                group = self._group_of_call(above)
            elif isinstance(above, ast.Assign):
                group = self._group_of_assignment(_name_of(above.targets[0]))
            if group is not None:
                return group
        return "" if self._package() in _NO_PARTS else self._package()

    def _package(self) -> str:
        return self._module.partition("/")[0] if "/" in self._module else _PACKAGES.get(self._module, "cli")

    def _group_of_assignment(self, name: str) -> str | None:
        """What a text is that a name stands for, if the name says it."""
        return _FIELD_ERROR if name in _TEMPLATES else self._logged.get(name)

    def _group_of_call(self, call: ast.Call) -> str | None:
        """What the texts of a call are; None if the call does not say."""
        called = ast.unparse(call.func)
        name = called.rpartition(".")[2]
        if name == "invalid" or any(ast.unparse(value) == _WRONG_COMMAND for value in call.args):
            return _FIELD_ERROR
        if name in _MISUSE or (name == "ValueError" and self._function() == "__post_init__"):
            return MISUSE_GROUP
        error = self._errors.get(self._class() if name == "cls" else name)
        if error is not None:
            return error
        if called.startswith("_log."):
            return _LEVELS.get(name, "")
        if name == "Failure":
            return f"`{_kind(call)}`"
        return "" if _HELP.match(called) or called.startswith("re.") or name in _BUGS | _TYPING else None

    def _function(self) -> str:
        return next((above.name for above in reversed(self._above) if isinstance(above, ast.FunctionDef)), "")

    def _class(self) -> str:
        return next((above.name for above in reversed(self._above) if isinstance(above, ast.ClassDef)), "")


def _kind(call: ast.Call) -> str:
    """The kind of a failure that a call makes."""
    if not call.args:
        return "several kinds"
    kind = ast.unparse(call.args[0])
    return kind.rpartition(".")[2].lower() if kind.startswith("FailureKind.") else "several kinds"


def _name_of(target: ast.expr) -> str:
    return target.id if isinstance(target, ast.Name) else ""


def _is_not_said(name: str) -> bool:
    return name in _NOT_SAID or _LEGACY.match(name) is not None


def render(node: ast.expr, above: list[ast.AST] | None = None) -> str:
    """The text of an expression, with the names of values in braces.

    Args:
        node: A text, with or without values in it.
        above: The nodes above it: of a log message, the call has the values.
    """
    if isinstance(node, ast.Constant):
        return _with_values(str(node.value), above or [])
    if isinstance(node, ast.JoinedStr):
        return "".join(map(render, node.values))
    if isinstance(node, ast.FormattedValue):
        text = _value(node.value)
        quote = "'" if node.conversion in (ord("r"), ord("a")) else ""
        return f"{quote}{text}{quote}"
    return _value(node)


def _with_values(text: str, above: list[ast.AST]) -> str:
    call = next((node for node in reversed(above) if isinstance(node, ast.Call)), None)
    if call is None or "%" not in text or not ast.unparse(call.func).startswith("_log."):
        return text
    first = next((number for number, one in enumerate(call.args) if isinstance(one, ast.Constant)), len(call.args))
    values = iter([part for value in call.args[first + 1 :] for part in _unpacked(value)])
    return re.sub(r"%(?:\.\d)?[sdfgr]", lambda _: _value(next(values, ast.Constant("…"))), text)


def _unpacked(value: ast.expr) -> list[ast.expr]:
    """The values of an argument, of which there are several if it is unpacked."""
    match value:
        case ast.Starred(value=ast.GeneratorExp(generators=[ast.comprehension(iter=ast.Tuple(elts=several))])):
            return several
    return [value]


def _value(node: ast.expr) -> str:
    """What stands for a value: its name in braces, or the texts that it may be."""
    texts = list(_alternatives(node))
    if texts:
        return texts[0] if len(texts) == 1 else f"{{{'|'.join(texts)}}}"
    return f"{{{_named(node)}}}"


def _alternatives(node: ast.expr) -> Iterator[str]:
    """The texts that an expression may be; none if it is a value."""
    if isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
        if all(isinstance(part, (ast.Constant, ast.JoinedStr, ast.IfExp)) for part in parts):
            for part in parts:
                yield from _alternatives(part)
    elif isinstance(node, (ast.JoinedStr, ast.Constant)):
        yield render(node)


def _named(node: ast.AST) -> str:
    """A name for a value."""
    if isinstance(node, ast.Name):
        return _NAMES.get(node.id, node.id.strip("_").lower())
    if isinstance(node, ast.Attribute):
        return _named_attribute(node)
    if isinstance(node, ast.Call):
        return _named_call(node)
    inner = next((getattr(node, field) for field in _INNER if hasattr(node, field)), None)
    if isinstance(inner, list):
        inner = inner[0] if inner else None
    return _named(inner) if isinstance(inner, ast.AST) else "value"


def _named_attribute(node: ast.Attribute) -> str:
    of, name = node.value, node.attr
    if isinstance(of, ast.Call) and ast.unparse(of.func) == "type":
        return f"type of {_named(of)}"
    if name in _GENERAL and _named(of) not in ("self", "value"):
        return _named(of)
    return _NAMES.get(name, name.strip("_").lower())


def _named_call(node: ast.Call) -> str:
    function = ast.unparse(node.func).rpartition(".")[2]
    if not node.args:
        return _named(node.func)
    first = _named(node.args[0])
    if function == "len":
        return f"number of {first}"
    if function == "counted" and isinstance(node.args[1], ast.Constant):
        return f"{first} {node.args[1].value!s}s"
    if function == "join":
        return f"{first} …"
    return first if function in _WRAPPERS else _named(node.func)


def error_classes(modules: Mapping[str, ast.Module], deciding_classes: Collection[str]) -> dict[str, str]:
    """The classes of errors that stop a command, by name, each with its base that decides the exit code.

    Args:
        modules: The modules of the package, by path.
        deciding_classes: The names of those bases.
    """
    bases = {
        node.name: [ast.unparse(base).rpartition(".")[2] for base in node.bases]
        for tree in modules.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def deciding(name: str) -> str:
        if name in deciding_classes:
            return name
        return next(filter(None, map(deciding, bases.get(name, []))), "")

    return {name: deciding(name) for name in bases if deciding(name)}


def collect(package: Path, deciding_classes: Collection[str]) -> list[Message]:
    """All messages of a package, sorted.

    Args:
        package: Its folder.
        deciding_classes: The names of the classes of errors that decide the exit code.
    """
    modules = {
        path.relative_to(package).as_posix(): ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))
    }
    errors = error_classes(modules, deciding_classes)
    messages: set[Message] = set()
    for name, tree in modules.items():
        texts = Texts(name, errors)
        texts.visit(tree)
        messages |= texts.messages
    return sorted(messages)
