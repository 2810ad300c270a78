"""Rules for text that people send, collected so that one answer names every field that breaks one.

PostgreSQL cannot store NUL in text and Python strings may hold lone surrogates that no encoding takes: both
are refused here, so that no statement ever fails on them.
"""

from __future__ import annotations

from market.faults import Invalid

__all__ = ["BLANK", "Checks", "storable"]

BLANK = "can't be blank"


def storable(text: str) -> bool:
    """Whether PostgreSQL can hold `text`: valid Unicode without NUL."""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Checks:
    """Collects faults by field; `finish` raises Invalid when there are any."""

    __slots__ = ("_errors",)

    def __init__(self) -> None:
        self._errors: dict[str, list[str]] = {}

    def fault(self, field: str, sentence: str) -> None:
        said = self._errors.setdefault(field, [])
        if sentence not in said:
            said.append(sentence)

    def text(self, field: str, value: str, *, max_length: int, required: bool = True) -> bool:
        """Hold `value` to the common rules; True when none is broken. Lengths are in characters."""
        if required and not value.strip():
            self.fault(field, BLANK)
        elif len(value) > max_length:
            self.fault(field, f"is too long (maximum is {max_length} characters)")
        elif not storable(value):
            self.fault(field, "contains characters that cannot be stored")
        else:
            return True
        return False

    def finish(self) -> None:
        if self._errors:
            raise Invalid(self._errors)
