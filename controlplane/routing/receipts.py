"""A receipt for every decision, packed; the last 100,000 in at most 64 MB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct

from controlplane.routing.load import CANDIDATES, SIGNALS, Decision, Replica, centiseconds
from controlplane.routing.policies.base import MAX_TERMS, Reason, ScoreKind
from controlplane.routing.receipt import NO_WORD, Batch, Candidate, Completed, Label, Receipt, Signal, Words
from controlplane.routing.record import KINDS, Request

__all__ = ["Batch", "Candidate", "Completed", "Label", "Receipt", "Receipts", "Signal", "Words"]

#: Receipts kept by default, and the bytes that they may take in all.
DEFAULT_CAPACITY = 100_000
MAX_BYTES = 64_000_000
#: Bytes of a request id that are kept; HAProxy's unique ids have fewer than 64.
MAX_ID_BYTES = 88

#: decided at (s), topology number, prompt bytes, label, winner, prefix blocks, left out over a load bound, kind,
#: outcome, error, reason, candidates, how scores are written, which candidates have the adapter resident, signals,
#: scores, prefix blocks held, terms of the scores, milliseconds in the queue before, whether the completion follows.
RECORD = Struct("<dQIIIHHBBBBBBB320s32s16s64sIB")
#: Whether it came, serial of the server that answered, status, first byte and total (ms), bytes, termination, retries.
COMPLETION = Struct("<BIHiqQ4sH")
COMPLETION_AT = RECORD.size - 1
WAITED = Struct("<I")
WAITED_AT = COMPLETION_AT - WAITED.size
RECORD_BYTES = COMPLETION_AT + COMPLETION.size
#: A refused request has no candidates: the model's name, as the client wrote it, stands in their place.
MODEL_BYTES_KEPT = 256

#: Receipts in one part of the ring, some 2 MB.
PART = 4_096
_SCORES = tuple(Struct(f"<{count}f") for count in range(CANDIDATES + 1))
#: Half precision: three digits of a term are enough to read.
_TERMS = tuple(Struct(f"<{count}e") for count in range(CANDIDATES * MAX_TERMS + 1))
_MAX_TERM = 65_504.0
_HELD = tuple(Struct(f"<{count}H") for count in range(CANDIDATES + 1))
OUTCOMES = ("go", "more", "error", "shed")
OUTCOME_NUMBERS = {name: number for number, name in enumerate(OUTCOMES)}
_U16 = 0xFFFF
_U32 = 0xFFFFFFFF
_I32 = 0x7FFFFFFF
_I64 = 0x7FFFFFFFFFFFFFFF


class Receipts:
    """Ring of packed receipts. Numbers start at 1 and are never reused; receipt n is in slot n % capacity."""

    def __init__(self, capacity: int, errors: Sequence[str]) -> None:
        """``errors`` are the codes that a receipt can hold, empty first. Raises ValueError for too many receipts."""
        if not 0 < capacity <= MAX_BYTES // RECORD_BYTES:
            raise ValueError(f"receipts are {RECORD_BYTES} bytes each and take at most {MAX_BYTES} in all")
        self.words = Words()
        self.last = 0
        self._capacity = capacity
        self._errors = tuple(errors)
        self._error_numbers = {code: number for number, code in enumerate(self._errors)}
        self._ids: list[bytes] = [b""] * capacity
        #: The ring in parts, each made when it is first written to: an idle router is small.
        self._parts: list[bytearray] = [bytearray()] * (-(-capacity // PART))

    def write(
        self,
        request_id: bytes,
        request: Request,
        now_s: float,
        topology_number: int,
        label: int,
        score_kind: int,
        candidates: list[Replica],
        scores: Sequence[float] | None,
        held: Sequence[int] | None,
        reason: int,
        over: int,
        resident: int,
        terms: Sequence[float] | None,
    ) -> int:
        """Keep the receipt of a request that goes to the first of ``candidates`` (at most 8); return its number."""
        self.last = number = self.last + 1
        slot = number % self._capacity
        self._ids[slot] = request_id[:MAX_ID_BYTES]
        part = self._parts[slot // PART] or self._new_part(slot // PART)
        count = len(candidates)
        RECORD.pack_into(
            part,
            slot % PART * RECORD_BYTES,
            now_s,
            topology_number,
            request.prompt_bytes,
            label,
            candidates[0].serial,
            len(request.hashes) >> 3,
            over,
            request.kind,
            0,
            0,
            reason,
            count,
            score_kind if scores is None else 0,
            resident,
            b"".join([replica.signals for replica in candidates]),
            b"" if scores is None else _SCORES[count].pack(*scores),
            b"" if held is None else _HELD[count].pack(*held),
            b"" if terms is None else _terms(terms),
            0,
            0,
        )
        return number

    def _new_part(self, index: int) -> bytearray:
        part = self._parts[index] = bytearray(min(PART, self._capacity - index * PART) * RECORD_BYTES)
        return part

    def refuse(
        self,
        request_id: bytes,
        request: Request,
        now_s: float,
        topology_number: int,
        label: int,
        decision: Decision,
        reason: Reason = Reason.REFUSED,
    ) -> int:
        """Keep the receipt of a request that goes nowhere; return its number."""
        self.last = number = self.last + 1
        slot = number % self._capacity
        self._ids[slot] = request_id[:MAX_ID_BYTES]
        part = self._parts[slot // PART] or self._new_part(slot // PART)
        if decision.outcome == "more":
            reason = Reason.BODY_NEEDED
        RECORD.pack_into(
            part,
            slot % PART * RECORD_BYTES,
            now_s,
            topology_number,
            request.prompt_bytes,
            label,
            NO_WORD,
            min(len(request.hashes) >> 3, _U16),
            0,
            request.kind,
            OUTCOME_NUMBERS[decision.outcome],
            self._error_numbers.get(decision.error, 0),
            reason,
            0,
            0,
            0,
            request.model[:MODEL_BYTES_KEPT],
            b"",
            b"",
            b"",
            0,
            0,
        )
        return number

    def waited(self, number: int, waited_s: float) -> None:
        """Add how long the request of the newest receipts had waited."""
        waited_ms = min(max(int(waited_s * 1000.0), 0), _U32)
        slot = number % self._capacity
        WAITED.pack_into(self._parts[slot // PART], slot % PART * RECORD_BYTES + WAITED_AT, waited_ms)

    def complete(
        self,
        number: int,
        serial: int,
        status: int,
        first_byte_ms: int,
        total_ms: int,
        sent: int,
        termination: bytes,
        retries: int,
    ) -> None:
        """Add how it ended, unless the receipt is gone. Numbers that do not fit are cut to what does."""
        if number <= self.last - self._capacity:
            return
        slot = number % self._capacity
        COMPLETION.pack_into(
            self._parts[slot // PART],
            slot % PART * RECORD_BYTES + COMPLETION_AT,
            1,
            serial,
            status & _U16,
            first_byte_ms if -1 <= first_byte_ms <= _I32 else -1,
            total_ms if -1 <= total_ms <= _I32 else -1,
            sent if 0 <= sent <= _I64 else 0,
            termination,
            retries & _U16,
        )

    def find(self, request_id: bytes) -> Receipt | None:
        """Return the newest receipt of a request. A search of some ms at most: people ask, not requests."""
        request_id = request_id[:MAX_ID_BYTES]
        oldest = max(1, self.last - self._capacity + 1)
        found = 0
        at = -1
        try:
            while True:
                at = self._ids.index(request_id, at + 1)
                number = self.last - (self.last - at) % self._capacity
                if oldest <= number and number > found:
                    found = number
        except ValueError:
            return self.read(found) if found else None

    def after(self, number: int, limit: int, model: str) -> Batch:
        """Return the newest ``limit`` receipts with a higher number, of one model (empty: of all)."""
        first = max(number + 1, self.last - self._capacity + 1, 1)
        kept: list[Receipt] = []
        skipped = max(0, first - 1 - number) if number < self.last else 0
        for candidate in range(self.last, first - 1, -1):
            if len(kept) == limit:
                skipped += candidate - first + 1
                break
            receipt = self.read(candidate)
            if not model or receipt.model == model:
                kept.append(receipt)
        kept.reverse()
        return Batch(tuple(kept), self.last, skipped)

    def read(self, number: int) -> Receipt:
        """Unpack one receipt that is still there."""
        slot = number % self._capacity
        (
            decided_s,
            topology_number,
            prompt_bytes,
            label_number,
            winner,
            prefix_blocks,
            over,
            kind,
            outcome,
            error,
            reason,
            count,
            score_kind,
            resident,
            signals,
            scores,
            held,
            terms,
            waited_ms,
            completed,
        ) = RECORD.unpack_from(self._parts[slot // PART], slot % PART * RECORD_BYTES)
        label = self.words.label_of(label_number)
        server, pool = self.words.server_of(winner)
        places = self._candidates(label, decided_s, count, score_kind, resident, signals, scores, held, terms)
        candidates = tuple(sorted(places, key=lambda candidate: candidate.score))  # stable: the winner stays first
        rejected = dict(label.rejected)
        if over:
            rejected["over_bound"] = over
        said = signals.rstrip(b"\0").decode(errors="replace") if not count else ""
        return Receipt(
            number=number,
            request_id=self._ids[slot],
            decided_s=decided_s,
            kind=KINDS[kind],
            model=label.model or said,
            adapter=label.adapter,
            outcome=OUTCOMES[outcome],
            error_code=self._errors[error],
            pool=pool,
            server=server,
            policy=label.policy,
            policy_number=label.policy_number,
            topology_number=topology_number,
            candidates=candidates,
            rejected=rejected,
            eligible=label.eligible,
            runner_up=candidates[1].server if count > 1 else "",
            margin=candidates[1].score - candidates[0].score if count > 1 else 0.0,
            prompt_bytes=prompt_bytes,
            prefix_blocks=prefix_blocks,
            reason=Reason(reason).name.lower(),
            completion=self._completion(slot) if completed else None,
            waited_ms=waited_ms,
        )

    def _candidates(
        self,
        label: Label,
        decided_s: float,
        count: int,
        score_kind: int,
        resident: int,
        signals: bytes,
        scores: bytes,
        held: bytes,
        terms: bytes,
    ) -> Iterator[Candidate]:
        written = _SCORES[count].unpack_from(scores)
        blocks = _HELD[count].unpack_from(held)
        for place in range(count):
            (
                serial,
                in_flight,
                waiting,
                queued_tokens,
                context_tokens,
                prefill_speed,
                first_byte_ms,
                kv_use,
                first_byte_at,
                kv_use_at,
            ) = SIGNALS.unpack_from(signals, place * SIGNALS.size)
            known = [
                Signal("in_flight", in_flight),
                Signal("waiting", waiting),
                Signal("queued_tokens", queued_tokens),
                Signal("context_tokens", context_tokens),
                Signal("prefill_tokens_per_s", round(prefill_speed, 1)),
            ]
            if label.reads_prefixes:
                known.append(Signal("prefix_blocks_hit", blocks[place]))
            if first_byte_ms >= 0:
                known.append(Signal("first_byte_ms", first_byte_ms, _age_ms(decided_s, first_byte_at)))
            if kv_use >= 0:
                known.append(Signal("kv_use", round(kv_use, 4), _age_ms(decided_s, kv_use_at)))
            if label.adapter:
                known.append(Signal("adapter_resident", float(resident >> place & 1)))
            if label.terms:
                size = 2 * len(label.terms)
                values = _TERMS[len(label.terms)].unpack_from(terms, place * size)
                known += [Signal(name, value) for name, value in zip(label.terms, values, strict=True)]
            score = written[place]
            if score_kind != ScoreKind.WRITTEN:
                score = float(in_flight if score_kind == ScoreKind.IN_FLIGHT else place)
            yield Candidate(self.words.server_of(serial)[0], tuple(known), score)

    def _completion(self, slot: int) -> Completed:
        _, serial, status, first_byte_ms, total_ms, sent, termination, retries = COMPLETION.unpack_from(
            self._parts[slot // PART], slot % PART * RECORD_BYTES + COMPLETION_AT
        )
        return Completed(
            server=self.words.server_of(serial)[0],
            status=status,
            first_byte_ms=first_byte_ms,
            total_ms=total_ms,
            bytes=sent,
            termination=termination.rstrip(b"\0").decode(errors="replace"),
            retries=retries,
        )


def _age_ms(decided_s: float, heard_at: int) -> float:
    """Return the age of a signal in ms, from its time in hundredths of a second; one of after the decision is new."""
    age = (centiseconds(decided_s) - heard_at) & _U32
    return age * 10.0 if age < 1 << 31 else 0.0


def _terms(terms: Sequence[float]) -> bytes:
    try:
        return _TERMS[len(terms)].pack(*terms)
    except OverflowError:
        return _TERMS[len(terms)].pack(*(min(term, _MAX_TERM) for term in terms))
