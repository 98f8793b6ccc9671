"""Out of a nursery comes a group; who called wants to know of the error."""

from __future__ import annotations

from typing import TypeVar

Error = TypeVar("Error", bound=BaseException)


def first_error(errors: BaseExceptionGroup[Error]) -> Error:
    """The first error of a group, or of the first group in it."""
    error = errors.exceptions[0]
    return first_error(error) if isinstance(error, BaseExceptionGroup) else error
