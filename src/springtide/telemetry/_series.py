"""A bounded set of label values for one metric, with its children kept at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from springtide.context import OTHER

__all__ = ["Series"]

Child = TypeVar("Child", covariant=True)


class _Metric(Protocol[Child]):
    def labels(self, *values: str) -> Child: ...


class Series(Generic[Child]):
    """Children of `metric` by label values, at most `max_series` of them.

    Past the bound the values at the positions `open_ended` (the ones that have no bound of their own) are
    replaced by `OTHER`, so that sums stay right. Looking up a known child is one dictionary access.
    """

    def __init__(self, metric: _Metric[Child], *, max_series: int, open_ended: Sequence[int]) -> None:
        if max_series < 1:
            raise ValueError(f"max_series must be >= 1, got {max_series}")
        self._metric = metric
        self._max_series = max_series
        self._open_ended = frozenset(open_ended)
        self._children: dict[tuple[str, ...], Child] = {}

    def __len__(self) -> int:
        return len(self._children)

    def child(self, *values: str) -> Child:
        child = self._children.get(values)
        if child is not None:
            return child
        if len(self._children) >= self._max_series:
            values = tuple(OTHER if at in self._open_ended else value for at, value in enumerate(values))
            # What is left of the values is bounded, so this second set of children is too.
            return self._metric.labels(*values)
        child = self._children[values] = self._metric.labels(*values)
        return child
