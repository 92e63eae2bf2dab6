"""The replicas of a model in the order of their load, and how fast they usually are."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, log

from controlplane.routing.load import CANDIDATES, Replica

#: Weight of the newest lesson in the usual speed of a model's replicas.
SPEED_WEIGHT = 0.05


class LoadOrder:
    """Replicas sorted by requests in flight; one request more or fewer costs O(1), whatever their number.

    ``replicas`` is sorted by ``in_flight``; ``ends[k]`` is the number of replicas with at most k in flight. A load
    changes by one at a time, so a replica is swapped with the last (or first) of its equals and the border between
    the two loads moves past it: the list is sorted again after two writes.
    """

    __slots__ = ("_log_speed", "_turn", "ends", "lessons", "replicas", "total")

    def __init__(self, replicas: Iterable[Replica] = ()) -> None:
        self._turn = -1
        #: Prefills from which the usual speed here was learned, and its logarithm.
        self.lessons = 0
        self._log_speed = 0.0
        self.replicas: list[Replica] = []
        self.ends: list[int] = [0]
        self.total = 0
        self.fill(replicas)

    def fill(self, replicas: Iterable[Replica]) -> None:
        """Start again with these replicas, each with the load that it has."""
        for replica in self.replicas:
            replica.order = None
        self.replicas = sorted(replicas, key=lambda replica: (replica.in_flight, replica.info.name))
        self.total = sum(replica.in_flight for replica in self.replicas)
        highest = self.replicas[-1].in_flight if self.replicas else 0
        self.ends = [0] * (highest + 1)
        for position, replica in enumerate(self.replicas):
            replica.order = self
            replica.position = position
            self.ends[replica.in_flight] = position + 1
        for load in range(1, highest + 1):
            self.ends[load] = max(self.ends[load], self.ends[load - 1])

    def learn(self, prefill_tokens_per_s: float) -> None:
        """Take what one member is believed to do; those that have shown nothing yet are believed to do as the mean.

        Else the first to work would look the fastest, or the slowest, and get everything, or nothing. Members are told
        after 1, 2, 4, 8 ... lessons: what they all do is known soon, and telling thousands takes milliseconds.
        """
        self.lessons += 1
        weight = max(SPEED_WEIGHT, 1.0 / self.lessons)
        self._log_speed += weight * (log(prefill_tokens_per_s) - self._log_speed)
        if self.lessons.bit_count() == 1:
            self.tell()

    def tell(self) -> None:
        """Let the members that have shown nothing believe in the usual speed."""
        if not self.lessons:
            return
        usual = exp(self._log_speed)
        for replica in self.replicas:
            if not replica.rates.prefill_samples:
                replica.rates.assume(usual)
                replica.sign()

    def raise_load(self, replica: Replica) -> None:
        """Count one more request in flight at a member."""
        load = replica.in_flight
        ends = self.ends
        last = ends[load] - 1
        position = replica.position
        if position != last:
            replicas = self.replicas
            other = replicas[last]
            replicas[position] = other
            other.position = position
            replicas[last] = replica
            replica.position = last
        ends[load] = last
        load += 1
        replica.in_flight = load
        if len(ends) == load:
            ends.append(last + 1)
        self.total += 1

    def lower_load(self, replica: Replica) -> None:
        """Count one request fewer in flight at a member that has some."""
        load = replica.in_flight - 1
        ends = self.ends
        first = ends[load]
        position = replica.position
        if position != first:
            replicas = self.replicas
            other = replicas[first]
            replicas[position] = other
            other.position = position
            replicas[first] = replica
            replica.position = first
        ends[load] = first + 1
        replica.in_flight = load
        self.total -= 1

    def least(self) -> list[Replica]:
        """Return the (at most 8) least loaded, best first; equals take turns. Needs at least one member.

        The turn runs over one place fewer than there are equals: the chosen one is swapped to their end when its
        load rises, and returns to that place when it falls, so that an idle fleet is used in strict rotation.
        """
        replicas = self.replicas
        equals = self.ends[replicas[0].in_flight]
        if equals == 1:
            return replicas[:CANDIDATES]
        self._turn = turn = (self._turn + 1) % (equals - 1)
        if turn + CANDIDATES <= equals:
            return replicas[turn : turn + CANDIDATES]
        if equals >= CANDIDATES:
            return replicas[turn:equals] + replicas[: CANDIDATES + turn - equals]
        window = replicas[:CANDIDATES]
        window[0], window[turn] = window[turn], window[0]
        return window
