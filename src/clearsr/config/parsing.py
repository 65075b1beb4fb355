"""YAML and JSON of strangers as values: whatever is wrong with a text is a `ValueError` of one line.

Both parsers raise more than their own errors (a date that does not exist, nesting deeper than Python's
stack), and YAML can name a part in many places, by which a few lines become more than the memory holds.
"""

import json
import reprlib
from typing import Any

import yaml

_DEEPEST = 100
_MOST_KEYS = 10_000  # of one mapping, by what it takes over from others
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


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
