"""Flags for the fields of a configuration: help, value and error message all come from the pydantic field.

A command holds a table `flag -> dotted path`, adds it to its parser with `add_config_flags`, and turns what
was given (flags over `--set` over `--config`) into a configuration with `collect` and `build`.
"""

import re
from argparse import Namespace, _ActionsContainer
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from clearsr.cli.parser import UsageError
from clearsr.config.base import (
    FrozenConfig,
    build_config,
    merge,
    nested,
    parse_override,
    read_number,
    read_yaml,
)
from clearsr.errors import ClearSRError

ConfigT = TypeVar("ConfigT", bound=FrozenConfig)


class Overrides(NamedTuple):
    """Values that the user gave, over whatever the defaults are.

    Attributes:
        values: nested as in the configuration.
        origins: dotted path of each value -> what the user wrote there, for messages.
    """

    values: dict[str, Any]
    origins: dict[str, str]

    def section(self, name: str) -> "Overrides":
        """What lies under one key, with that key taken off."""
        inside = self.values.get(name, {})
        if not isinstance(inside, Mapping):
            raise UsageError(f"{self.origins.get(name, name)}: must hold settings by name (got {inside!r})")
        prefix = f"{name}."
        origins = {
            path.removeprefix(prefix): o for path, o in self.origins.items() if path.startswith(prefix)
        }
        return Overrides(dict(inside), origins)

    def without(self, name: str) -> "Overrides":
        """Everything but what lies under one key."""
        return Overrides({key: value for key, value in self.values.items() if key != name}, self.origins)

    def given(self, path: str) -> bool:
        """Whether the user gave a value for this field."""
        return path in self.origins


def add_config_flags(
    parser: _ActionsContainer, flags: Mapping[str, str], defaults: FrozenConfig, section: str = ""
) -> None:
    """Add a flag for each field of `flags` (flag -> dotted path below `section`); all default to None.

    Args:
        defaults: the configuration whose values the help shows as defaults.
    """
    for flag, path in flags.items():
        below = path.removeprefix(f"{section}.") if section else path
        field, default = _find(defaults, below)
        shown = "" if default in (None, "", False) else f" (default: {_shown(default)})"
        text = f"{field.description}{shown}".replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag, dest=path, action="store_const", const=True, help=text)
        else:
            parser.add_argument(
                flag, dest=path, type=_reader(field), metavar=_metavar(field, flag), help=text
            )


def add_config_files(parser: _ActionsContainer, example: str, with_files: bool = True) -> None:
    """Add `--set a.b=c` and, unless the command takes files otherwise, `--config FILE`; both repeatable."""
    if with_files:
        parser.add_argument(
            "--config",
            type=Path,
            action="append",
            default=[],
            metavar="FILE",
            help="YAML file of settings; flags win over it",
        )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"any setting by its dotted name, such as {example}; wins over files",
    )


def collect(args: Namespace, flags: Mapping[str, str]) -> Overrides:
    """What the user gave, in the order --config, --set, flags; the later wins.

    Raises:
        UsageError: a file cannot be read, or a `--set` is not KEY=VALUE.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    try:
        for file in getattr(args, "config", []):
            layer = read_yaml(file)
            values = merge(values, layer)
            origins.update({path: f"{file}: {path}" for path in _leaves(layer)})
        for text in getattr(args, "set", []):
            layer = parse_override(text)
            values = merge(values, layer)
            origins.update({path: f"--set {path}" for path in _leaves(layer)})
    except UsageError:
        raise
    except ClearSRError as error:
        raise UsageError(str(error)) from None
    for flag, path in flags.items():
        if (value := getattr(args, path)) is not None:
            values = merge(values, nested(path, value))
            origins[path] = flag
    return Overrides(values, origins)


def build(schema: type[ConfigT], overrides: Overrides, base: Mapping[str, Any] | None = None) -> ConfigT:
    """The configuration: `base` with the user's values over it.

    Raises:
        UsageError: a value is not accepted; names what the user wrote, such as the flag.
    """
    try:
        return build_config(schema, merge(base or {}, overrides.values))
    except ClearSRError as error:
        raise UsageError(_in_the_users_words(str(error), overrides.origins)) from None


def _in_the_users_words(message: str, origins: Mapping[str, str]) -> str:
    """pydantic's report with dotted paths replaced by what the user wrote."""
    for path, origin in origins.items():
        words = origin.replace("\\", r"\\")  # a Windows path; re.sub would read escapes into it
        message = re.sub(rf"(^|; ){re.escape(path)}(?:\.\d+)*: ", rf"\g<1>{words}: ", message)
    return message.replace("Input should be ", "must be ").removeprefix("configuration: ")


def _find(config: FrozenConfig, path: str) -> tuple[FieldInfo, Any]:
    """The field at a dotted path, and its value in `config`."""
    *parents, name = path.split(".")
    for parent in parents:
        config = getattr(config, parent)
    return type(config).model_fields[name], getattr(config, name)


def _choices(field: FieldInfo) -> dict[str, Any]:
    """The values of a field that has a closed list of them, by how they are written; else nothing."""
    kinds = _alternatives(field.annotation)
    values = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    return {str(value): value for value in values}


def _alternatives(annotation: Any) -> list[Any]:
    """The types that a union stands for, `Annotated` taken off."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [annotation]


def _reader(field: FieldInfo) -> Any:
    """What turns a flag's text into the value that pydantic judges."""
    choices = _choices(field)
    is_text = str in _alternatives(field.annotation) or Path in _alternatives(field.annotation)

    def read(text: str) -> Any:
        if choices or is_text:
            return choices.get(text, text)
        return read_number(text)

    return read


def _metavar(field: FieldInfo, flag: str) -> str:
    choices = _choices(field)
    if choices:
        return "{" + ",".join(choices) + "}"
    kinds = _alternatives(field.annotation)
    return "N" if int in kinds else "X" if float in kinds else flag.rpartition("-")[2].upper()


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of everything that is not a mapping, and of the mappings above."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        yield path
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.")
