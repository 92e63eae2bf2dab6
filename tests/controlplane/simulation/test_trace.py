"""Trace files: what is read, and what is said of a line that cannot be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from controlplane.simulation import trace
from controlplane.simulation.errors import InvalidTrace

GOOD = {"timestamp": 3000, "input_length": 1200, "output_length": 5, "hash_ids": [0, 7, 8]}
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_mooncake_rows_come_in_the_order_of_time_from_zero(tmp_path: Path) -> None:
    rows = trace.read(write(tmp_path / "t.jsonl", {**GOOD, "timestamp": 5500}, "", GOOD))
    assert [(row.at_s, row.prompt_tokens, row.output_tokens, row.ids) for row in rows] == [
        (0.0, 1200, 5, (0, 7, 8)),
        (2.5, 1200, 5, (0, 7, 8)),
    ]


def test_a_gzipped_trace_is_read_alike(tmp_path: Path) -> None:
    plain = write(tmp_path / "t.jsonl", GOOD)
    zipped = tmp_path / "t.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    assert trace.read(zipped) == trace.read(plain)


def test_ids_of_smaller_blocks(tmp_path: Path) -> None:
    small = {**GOOD, "hash_ids": list(range(19))}
    rows = trace.read(write(tmp_path / "t.jsonl", GOOD, small))
    assert [row.id_tokens for row in rows] == [64, 64]
    assert [row.id_tokens for row in trace.read(write(tmp_path / "t.jsonl", GOOD, GOOD))] == [512, 512]


def test_azure_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(
        f"{HEADER}\r\n2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319600,3180,8\r\n".encode()
    )
    rows = trace.read(path)
    assert [(row.prompt_tokens, row.output_tokens, row.ids) for row in rows] == [(4808, 10, ()), (3180, 8, ())]
    assert rows[1].at_s == pytest.approx(0.052)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "a JSON object with timestamp"),
        ("[1]", "a JSON object with timestamp"),
        ({**GOOD, "timestamp": -1}, "timestamp to be milliseconds, at least 0"),
        ({**GOOD, "timestamp": "soon"}, "timestamp to be milliseconds"),
        ({**GOOD, "timestamp": True}, "timestamp to be milliseconds"),
        ({**GOOD, "input_length": 0}, "input_length to be a whole number of tokens"),
        ({**GOOD, "input_length": 1.5}, "input_length to be a whole number of tokens"),
        ({**GOOD, "input_length": 1 << 40}, "input_length to be a whole number of tokens"),
        ({"timestamp": 1, "output_length": 1}, "found 'nothing'"),
        ({**GOOD, "output_length": None}, "output_length to be a whole number"),
        ({**GOOD, "hash_ids": [1, -1]}, "hash_ids to be a list of whole numbers"),
        ({**GOOD, "hash_ids": "1"}, "hash_ids to be a list of whole numbers"),
        ({**GOOD, "input_length": 2}, "at most 2 hash_ids, one for each token"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: object, expected: str) -> None:
    path = write(tmp_path / "t.jsonl", GOOD, GOOD, line, GOOD)
    with pytest.raises(InvalidTrace) as caught:
        trace.read(path)
    assert str(caught.value).startswith(f"{path}: line 3: expected ")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("2023-11-16 18:17:03.1,4808", "3 cells"),
        ("yesterday,4808,10", "TIMESTAMP as YYYY-MM-DD HH:MM:SS"),
        ("2023-11-16 18:17:03.x,4808,10", "TIMESTAMP as YYYY-MM-DD HH:MM:SS"),
        ("2023-11-16 18:17:03,many,10", "ContextTokens to be a whole number"),
        ("2023-11-16 18:17:03,10,-1", "GeneratedTokens to be a whole number"),
    ],
)
def test_a_broken_azure_line_is_named(tmp_path: Path, line: str, expected: str) -> None:
    path = write(tmp_path / "t.csv", HEADER, line)
    with pytest.raises(InvalidTrace, match="line 2: expected") as caught:
        trace.read(path)
    assert expected in str(caught.value)


def test_other_things_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidTrace, match="there is no such trace file"):
        trace.read(tmp_path / "absent.jsonl")
    with pytest.raises(InvalidTrace, match="cannot be read"):
        trace.read(tmp_path)
    with pytest.raises(InvalidTrace, match="the trace has no requests"):
        trace.read(write(tmp_path / "empty.jsonl"))
    with pytest.raises(InvalidTrace, match="line 1: expected the header"):
        trace.read(write(tmp_path / "t.csv", "a,b,c"))
    whole = gzip.compress((json.dumps(GOOD) + "\n").encode() * 1_000)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidTrace, match="cannot be read"):
        trace.read(cut)
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(whole[:20] + b"\xff" * 20 + whole[40:])
    with pytest.raises(InvalidTrace, match="cannot be read"):
        trace.read(broken)
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\n")
    with pytest.raises(InvalidTrace, match="cannot be read"):
        trace.read(binary)


def test_a_line_without_end_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("[" * (trace.MAX_LINE + 10))
    with pytest.raises(InvalidTrace, match="line 1: expected a line of at most"):
        trace.read(path)
