"""How a configuration is built: frozen pydantic models, filled by YAML files and by `a.b=c` overrides.

Unknown keys are errors that name the nearest valid key; nothing here knows what is configured.

At the end YAML and JSON of strangers as values: whatever is wrong with a text is a `ValueError` of one line.
Both parsers raise more than their own errors (a date that does not exist, nesting deeper than Python's
stack), and YAML can name a part in many places, by which a few lines become more than the memory holds.
"""

import difflib
import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from clearsr.errors import ClearSRError

_MOST_MISTAKES = 20  # that are explained at once
_DEEPEST = 100
_MOST_KEYS = 10_000  # of one mapping, by what it takes over from others
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60

ConfigT = TypeVar("ConfigT", bound="FrozenConfig")


class FrozenConfig(BaseModel):
    """Base of every configuration: immutable, and strict about the names of its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def load_config(
    schema: type[ConfigT], files: Sequence[Path | str] = (), overrides: Sequence[str] = ()
) -> ConfigT:
    """A configuration from YAML files (later ones win, key by key) and `a.b=c` overrides (these win).

    A file may name others to start from with a top-level `extends:` (a path or a list, relative to the file).

    Raises:
        ClearSRError: a file cannot be read, a key is unknown, or a value is outside what its field accepts.
    """
    values: dict[str, Any] = {}
    for file in files:
        values = merge(values, read_yaml(Path(file)))
    for override in overrides:
        values = merge(values, parse_override(override))
    return build_config(schema, values)


def build_config(schema: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """`schema(**values)`, with pydantic's report turned into one line per mistake.

    Raises:
        ClearSRError: names each bad key with its path, the value and what is accepted.
    """
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(schema, item) for item in error.errors()[:_MOST_MISTAKES]]
        raise ClearSRError("; ".join(lines)) from None


def read_yaml(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping that a YAML file holds, with the files that it `extends` merged beneath it.

    Args:
        extended_by: the files that led here, resolved.

    Raises:
        ClearSRError: a file cannot be read, holds no mapping, or extends itself.
    """
    if path.resolve() in extended_by:
        raise ClearSRError(f"{path}: extends itself; remove one of the `extends:` that lead back to it")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ClearSRError(f"{path}: cannot be read ({error}); expected a YAML file") from None
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise ClearSRError(f"{path}: is not valid YAML ({error})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ClearSRError(f"{path}: must hold a mapping of settings, got {type(values).__name__}")
    bases = values.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ClearSRError(f"{path}: extends must be a path or a list of paths, got {shortened(bases)}")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = merge(merged, read_yaml(path.parent / base, (*extended_by, path.resolve())))
    return merge(merged, values)


def write_yaml(config: FrozenConfig, path: Path) -> None:
    """Write the whole resolved configuration, so that the run can be repeated from this file alone."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with `above` laid over it: mappings are merged key by key, everything else is replaced."""
    result = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def nested(path: str, value: Any) -> dict[str, Any]:
    """`a.b` and 1 as {"a": {"b": 1}}."""
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def read_number(text: str) -> int | float | str:
    """The number that a text is, or the text itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=1` as {"a": {"b": 1}}; the value is read as YAML, so lists and null work."""
    name, separator, value = text.partition("=")
    if not separator or not all(part.isidentifier() for part in name.split(".")):
        raise ClearSRError(f"--set {text}: expected KEY=VALUE with a dotted key, such as train.steps=1000")
    try:
        read = parse_yaml(value)
    except ValueError:
        raise ClearSRError(f"--set {text}: the value is not valid YAML") from None
    return nested(name, read)


def _explain(schema: type[FrozenConfig], item: Any) -> str:
    """One mistake in pydantic's list as `path: what is wrong (got value)`."""
    location = [str(part) for part in item["loc"]]
    name = ".".join(location) or "configuration"
    if item["type"] == "extra_forbidden":
        known = _fields_at(schema, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known))}"
        return f"{name}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{name}: must be given"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "finite_number":
        message = "must be a number"
    if item["type"] == "byte_size":
        message = "must be a size such as 500MB or 4GB"
    if isinstance(item["input"], Mapping | BaseModel):  # a whole section: it says nothing
        return f"{name}: {message}"
    return f"{name}: {message} (got {shortened(item['input'])})"


def _fields_at(schema: type[FrozenConfig], location: Sequence[str]) -> list[str]:
    """Names of the fields of the nested configuration that `location` leads to."""
    current: type[BaseModel] = schema
    inside_mapping = False
    for part in location:
        if part.isdigit() or inside_mapping:  # a place in a list, or a name of the user's
            inside_mapping = False
            continue
        field = current.model_fields.get(part)
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not models:
            return []
        current = models[0]
        inside_mapping = field is not None and get_origin(field.annotation) is Mapping
    return list(current.model_fields)


def parse_yaml(text: str) -> Any:
    """The value of a YAML document, of plain types alone.

    Raises:
        ValueError: it is none; one line.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:  # of a date or a number
        raise ValueError(f"it holds a value that does not exist: {error}") from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON document.

    Raises:
        ValueError: it is none; one line.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shortened(value: Any) -> str:
    """A value for a message, as Python writes it but never long, however much it holds."""
    return _SHORT.repr(value)


class _Loader(yaml.SafeLoader):
    """A mapping may take over the keys of others (`<<`), but not of millions; brackets nest 100 deep."""

    def fetch_flow_collection_start(self, token: type) -> None:
        if self.flow_level >= _DEEPEST:  # the scanner looks at all open ones with each token
            raise yaml.scanner.ScannerError(None, None, "it is nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(token)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_KEYS:
            raise yaml.constructor.ConstructorError(None, None, "it has too many keys", node.start_mark)
