"""A stream in lists of a fixed length, so that what handles many things at once needs not hold all."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items in their order; the last may be shorter, and none is empty."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
