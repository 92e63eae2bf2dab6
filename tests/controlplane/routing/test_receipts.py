from __future__ import annotations

import tracemalloc

import pytest

from controlplane.routing.core import RoutingCore
from controlplane.routing.receipt import MAX_WORDS, Label, Words
from controlplane.routing.receipts import DEFAULT_CAPACITY, MAX_BYTES, MAX_ID_BYTES, RECORD_BYTES
from tests.controlplane.routing import worlds


def test_the_last_hundred_thousand_fit_in_64_megabytes() -> None:
    count = DEFAULT_CAPACITY + 5_000
    request = worlds.request(blocks=range(8))
    tracemalloc.start()
    try:
        core = RoutingCore()
        core.install(worlds.topology(8, "round_robin"), 0.0)
        before, _ = tracemalloc.get_traced_memory()  # the ring's bytes are taken at once, and count
        for number in range(count):
            request_id = b"%036d" % number
            decision = core.decide(request_id, request, float(number))
            core.finished(worlds.completion(request_id, decision.server), float(number))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert before < after < MAX_BYTES
    assert core.receipt(b"%036d" % (count - DEFAULT_CAPACITY - 1)) is None
    oldest = core.receipt(b"%036d" % (count - DEFAULT_CAPACITY))
    assert oldest is not None
    assert oldest.completion is not None
    assert len(oldest.candidates) == 8


def test_longer_request_ids_stay_within_the_bound() -> None:
    assert DEFAULT_CAPACITY * (RECORD_BYTES + 8 + 33 + MAX_ID_BYTES) < MAX_BYTES


def test_a_ring_that_would_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes each"):
        RoutingCore(receipt_capacity=MAX_BYTES)


def test_the_newest_receipt_of_an_id_is_found_after_the_ring_went_round() -> None:
    core = RoutingCore(receipt_capacity=4)
    core.install(worlds.topology(2, "round_robin"), 0.0)
    for number in range(6):
        core.decide(b"same" if number in (1, 4) else b"%d" % number, worlds.request(), float(number))
    found = core.receipt(b"same")
    assert found is not None
    assert (found.number, found.decided_s) == (5, 4.0)
    assert core.receipt(b"0") is None
    assert core.receipt(b"") is None
    assert core.receipt(b"5") is not None


def test_watching() -> None:
    core = RoutingCore(receipt_capacity=8)
    core.install(worlds.topology(2, "round_robin", adapters=["lora"]), 0.0)
    assert core.receipts_after(0).receipts == ()
    for number in range(5):
        core.decide(b"%d" % number, worlds.request(), 0.0)
    batch = core.receipts_after(2)
    assert [receipt.number for receipt in batch.receipts] == [3, 4, 5]
    assert (batch.last, batch.skipped) == (5, 0)
    batch = core.receipts_after(0, limit=2)
    assert [receipt.number for receipt in batch.receipts] == [4, 5]
    assert batch.skipped == 3
    for number in range(20):
        core.decide(b"%d" % number, worlds.request(), 0.0)
    batch = core.receipts_after(5)
    assert (len(batch.receipts), batch.last, batch.skipped) == (8, 25, 12)
    assert core.receipts_after(0, model="other").receipts == ()


def test_a_completion_for_a_receipt_that_is_gone_is_not_written_over_another() -> None:
    core = RoutingCore(receipt_capacity=2)
    core.install(worlds.topology(2, "round_robin"), 0.0)
    first = core.decide(b"a", worlds.request(), 0.0)
    core.decide(b"b", worlds.request(), 0.0)
    core.decide(b"c", worlds.request(), 0.0)
    core.finished(worlds.completion(b"a", first.server), 1.0)
    newest = core.receipt(b"c")
    assert newest is not None
    assert newest.completion is None


def test_numbers_out_of_range_do_not_stop_a_completion() -> None:
    core = worlds.core(1, "round_robin")
    decision = core.decide(b"a", worlds.request(), 0.0)
    wild = worlds.completion(b"a", decision.server)._replace(
        status=70_000, first_byte_ms=-9, total_ms=2**40, bytes=-1, termination=b"long word", retries=-1
    )
    assert core.finished(wild, 1.0)
    receipt = core.receipt(b"a")
    assert receipt is not None
    assert receipt.completion is not None
    assert receipt.completion.first_byte_ms == -1


def test_words_are_bounded() -> None:
    words = Words()
    for number in range(MAX_WORDS + 10):
        words.server(f"s{number}", "p")
        words.label(Label(model=f"m{number}"))
    assert words.server_of(1) == ("", "")
    assert words.label_of(2) == Label()
    number = words.label(Label(model="kept"))
    assert words.label(Label(model="kept")) == number
    assert words.label_of(number).model == "kept"


def test_receipts_outlive_topologies() -> None:
    core = worlds.core(2, "round_robin")
    core.decide(b"a", worlds.request(), 0.0)
    core.install(worlds.topology(0, "prefix", number=2, replicas=[worlds.replica("p-9")]), 1.0)
    receipt = core.receipt(b"a")
    assert receipt is not None
    assert (receipt.server, receipt.pool, receipt.policy, receipt.topology_number) == ("p-0.g1", "p", "round_robin", 1)
