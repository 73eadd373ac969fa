"""Flags from typed dataclasses, spelt with dashes or underscores."""

import difflib
import re
from collections.abc import Container
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser

from .errors import FreqFormerError


class Flags:
    """The flags of one command.

    Args:
        prog: what is typed before the flags.
        summary: what the command does, for ``--help``.
    """

    def __init__(self, prog: str, summary: str) -> None:
        self.parser = ArgumentParser(
            prog=prog, description=summary, exit_on_error=False, allow_abbrev=False, print_config=None
        )
        self.types: dict[str, Any] = {}
        self.optional_value: dict[str, str] = {}
        self.takes_several = False

    def value(self, name: str, type_: Any, text: str, *, default: Any = None, required: bool = False) -> None:
        """Add a flag that takes a value, or for a list one or more."""
        self.types[name] = type_
        if type_ is bool:
            self.parser.add_argument(
                _dashed(name), action=ActionYesNo(no_prefix="no-"), nargs="?", default=default, help=text
            )
        elif get_origin(type_) is list:
            (element,) = get_args(type_)
            self.parser.add_argument(
                _dashed(name), nargs="+", type=element, default=default, required=required, help=text
            )
        else:
            self.parser.add_argument(_dashed(name), type=type_, default=default, required=required, help=text)

    def switch(self, name: str, text: str) -> None:
        """Add a flag that is off unless given."""
        self.types[name] = bool
        self.parser.add_argument(_dashed(name), action="store_true", help=text)

    def positional(
        self, name: str, text: str, *, default: str | None = None, several: bool = False, optional: bool = False
    ) -> None:
        """Add a word without a flag, optional when it has a default or is said to be, or several words."""
        if several:
            self.takes_several = True
            self.parser.add_argument(name, nargs="*" if optional else "+", type=str, help=text)
        elif default is None and not optional:
            self.parser.add_argument(name, type=str, help=text)
        else:
            self.parser.add_argument(name, nargs="?", type=str, default=default, help=text)

    def fields(
        self,
        config: type,
        *,
        optional_value: dict[str, str] | None = None,
        unset: bool = False,
        without: Container[str] = (),
    ) -> None:
        """Add a flag for each field of a dataclass, explained by the string below the field.

        Args:
            config: the dataclass.
            optional_value: flags that may stand without a value, and the value they then have.
            unset: let a flag that is not given be None, whatever the field's default is.
            without: fields that are no flags.
        """
        self.optional_value |= optional_value or {}
        types = get_type_hints(config)
        texts = {
            parameter.arg_name: parameter.description or ""
            for base in reversed(config.__mro__[:-1])
            for parameter in docstring_parser.parse_from_object(base).params
        }
        # What the class itself defines is nearer to the command than what its bases have.
        own = [name for base in config.__mro__ for name in vars(base).get("__annotations__", {})]
        for field in sorted(fields(config), key=lambda field: own.index(field.name)):
            if field.name in without:
                continue
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            required = default is MISSING and not unset
            text = texts[field.name].rstrip(".")
            if unset:
                self.value(field.name, types[field.name] | None, f"{text} ({default})")
            else:
                self.value(
                    field.name, types[field.name], text, default=None if required else default, required=required
                )

    def defaults(self, values: dict[str, Any]) -> None:
        """Let other values stand where neither a flag nor a config file gives one."""
        self.parser.set_defaults(values)

    def config_file(self) -> None:
        """Add ``--config``: a YAML file of fields, such as a run's ``config.yaml``."""
        self.types["config"] = str
        self.parser.add_argument(
            "--config", action="config", help="YAML file of these flags, such as a run's config.yaml"
        )

    def parse(self, words: list[str], *, defaults: Path | None = None) -> dict[str, Any]:
        """The flags' values by field name.

        Args:
            words: the command line after the command.
            defaults: a YAML file whose values stand where no flag is given.

        Raises:
            FreqFormerError: an unknown flag, or a value of another type.
            SystemExit: ``--help`` was asked for.
        """
        given = [] if defaults is None else ["--config", str(defaults)]
        try:
            parsed = self.parser.parse_args([*given, *_config_first(self._words_first(self._normalise(words)))])
        except (ArgumentError, TypeError, ValueError) as error:
            raise FreqFormerError(self._explain(str(error))) from error
        return {key: value for key, value in parsed.as_dict().items() if key != "config"}

    def _normalise(self, words: list[str]) -> list[str]:
        """One spelling for every flag: dashes, ``null`` for none, a value for flags that may lack it."""
        result: list[str] = []
        words = self._pairs(words)
        for place, word in enumerate(words):
            if not word.startswith("--") or word == "--":
                previous = result[-1] if result else ""
                result.append(self._plain_value(previous.removeprefix("--").replace("-", "_"), word))
                continue
            flag, equals, value = word.partition("=")
            name = flag.removeprefix("--").replace("-", "_")
            self._require_known(flag, name)
            # Below a dictionary the key is the user's own.
            head, dot, tail = flag.removeprefix("--").partition(".")
            flag = _dashed(head) + dot + tail
            following = words[place + 1] if place + 1 < len(words) else "--"
            if equals:
                result.append(f"{flag}={self._plain_value(name, value)}")
            elif name in self.optional_value and following.startswith("--"):
                result.append(f"{flag}={self.optional_value[name]}")
            else:
                result.append(flag)
        return result

    def _words_first(self, words: list[str]) -> list[str]:
        """Words without a flag before the flags where a command takes several: argparse takes them from one place."""
        if not self.takes_several:
            return words
        free: list[str] = []
        flags: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                return [*flags, word, *free, *rest]
            if not word.startswith("--"):
                free.append(word)
                continue
            flags.append(word)
            type_ = self.types.get(word.removeprefix("--").replace("-", "_").split(".")[0])
            if "=" in word or type_ is None:
                continue
            most = len(rest) if _takes_list(type_) else 1
            if type_ is bool:
                most = int(bool(rest) and rest[0] in ("true", "yes", "false", "no"))
            while rest and most and not rest[0].startswith("--"):
                flags.append(rest.pop(0))
                most -= 1
        return [*free, *flags]

    def _pairs(self, words: list[str]) -> list[str]:
        """The two numbers after a flag that takes a pair as one word ``[a, b]``; such a word for a list as several."""
        result: list[str] = []
        rest = list(words)
        while rest:
            result.append(rest.pop(0))
            name = result[-1].removeprefix("--").replace("-", "_")
            if result[-1].startswith("--") and _takes_pair(self.types.get(name)) and all(map(_is_number, rest[:2])):
                result += [f"[{', '.join(rest[:2])}]"] if len(rest) > 1 else rest[:1]
                del rest[:2]
            elif result[-1].startswith("--") and _takes_list(self.types.get(name)) and rest and _is_bracketed(rest[0]):
                # A list as YAML has it, in place of a word for each element.
                result += [element.strip() for element in rest.pop(0)[1:-1].split(",") if element.strip()]
        return result

    def _plain_value(self, name: str, value: str) -> str:
        """``none`` means no value, except for text, which may be the word."""
        optional = type(None) in get_args(self.types.get(name))
        return "null" if optional and value.lower() == "none" else value

    def _require_known(self, flag: str, name: str) -> None:
        known = {"help", *self.types, *(f"no_{n}" for n, type_ in self.types.items() if type_ is bool)}
        if name.split(".")[0] in known:
            return
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {_dashed(near[0])}?" if near else f"`{self.parser.prog} --help` lists the flags"
        raise FreqFormerError(f"there is no flag {flag}: {hint}")

    def _explain(self, message: str) -> str:
        """jsonargparse's several lines as one, about the flag."""
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        if lines and lines[0].startswith('Parser key "'):
            name = lines[0].split('"')[1]
            given = lines[-1].rpartition(":")[2].strip()
            type_ = self.types.get(name.split(".")[0])
            wanted = getattr(type_, "__name__", None) if not get_args(type_) else str(type_)
            return f"{_dashed(name)} does not take {given!r}: it needs {_readable(wanted)}"
        text = " ".join(lines)
        for name in self.types:
            text = re.sub(rf"(?<![\w-]){name}(?!\w)", _dashed(name), text)
        return text


def _config_first(words: list[str]) -> list[str]:
    """The config file before the other flags, so that what is typed wins wherever it stands."""
    first: list[str] = []
    rest: list[str] = []
    for place, word in enumerate(words):
        is_value = place > 0 and words[place - 1] == "--config"
        (first if word == "--config" or word.startswith("--config=") or is_value else rest).append(word)
    path = Path(first[-1].removeprefix("--config=")) if first else None
    if path is not None and not path.is_file():
        raise FreqFormerError(f"there is no config file {path}")
    return [*first, *rest]


def _takes_pair(type_: Any) -> bool:
    return any(get_origin(choice) is tuple for choice in (type_, *get_args(type_)))


def _takes_list(type_: Any) -> bool:
    return get_origin(type_) is list


def _is_bracketed(word: str) -> bool:
    return word.startswith("[") and word.endswith("]")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


def _readable(wanted: str | None) -> str:
    words = {
        "int": "a whole number",
        "float": "a number",
        "str": "text",
        "bool": "true or false",
        "list[int]": "whole numbers",
    }
    return words.get(str(wanted), str(wanted).replace("None", "none").replace("NoneType", "none"))
