"""The best and the worst of an evaluation's images: those of the smallest and the largest values, kept as they come."""

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

EXAMPLES = "examples.csv"
"""The table of them in a run's folder."""
CONFUSIONS = "confusions.csv"
"""The table of the classes that are most often taken for another."""


@dataclass(frozen=True)
class Example:
    """An evaluated image."""

    value: float
    """What it is ranked by."""
    index: int
    """Which image it is."""
    found: Any
    """What was predicted."""

    @property
    def place(self) -> tuple[float, int]:
        """Where it stands; a value that is no number comes last, equal ones come in the images' order."""
        return (math.inf if math.isnan(self.value) else self.value, self.index)


class Extremes:
    """The examples of the smallest and the largest values among those that pass by; no others are held.

    Args:
        count: how many of each.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._low: list[Example] = []
        self._high: list[Example] = []

    def add(self, value: float, index: int, found: Callable[[], Any]) -> None:
        """Keep an example if it is among the extremes; only then ``found`` is called."""
        candidate = Example(value, index, None)
        is_low = len(self._low) < self.count or candidate.place < self._low[-1].place
        is_high = len(self._high) < self.count or candidate.place > self._high[0].place
        if not (is_low or is_high):
            return
        example = Example(value, index, found())
        if is_low:
            insort(self._low, example, key=lambda one: one.place)
            del self._low[self.count :]
        if is_high:
            insort(self._high, example, key=lambda one: one.place)
            del self._high[: -self.count]

    def smallest(self) -> list[Example]:
        """The smallest first; where there are few examples each is among either these or the largest."""
        every = self._every()
        return every[: min(self.count, math.ceil(len(every) / 2))]

    def largest(self) -> list[Example]:
        """The largest first."""
        every = self._every()
        return every[::-1][: min(self.count, len(every) // 2)]

    def agree(self, gathered: Callable[[list[Any]], list[Any]]) -> None:
        """Go on with the extremes of all processes.

        Args:
            gathered: the lists of all processes, one after another; all have to call it.
        """
        own = {example.place: example for example in self._every()}
        # Predictions may be large: only those that are kept are sent.
        places = sorted(gathered(list(own)))
        kept = {*places[: self.count], *places[max(0, len(places) - self.count) :]}
        every = sorted(gathered([own[place] for place in kept if place in own]), key=lambda one: one.place)
        self._low, self._high = every[: self.count], every[max(0, len(every) - self.count) :]

    def _every(self) -> list[Example]:
        return sorted({one.place: one for one in (*self._low, *self._high)}.values(), key=lambda one: one.place)
