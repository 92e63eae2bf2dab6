"""Engines that somebody else runs: probed, routed to, never started and never ended."""

from __future__ import annotations

import httpx2
import pytest

from tests.dataplane.engines.replicas import DEFAULTS, replica
from tests.integration.cluster import running, until

MODEL = str(DEFAULTS["model"])
SPEC = f"""
cluster: external
gateway: {{listen: ["127.0.0.1:GATEWAY_PORT"]}}
admin: {{page: "127.0.0.1:PAGE_PORT"}}
nodes: [{{name: local, address: 127.0.0.1, ports: ENGINE_PORTS}}]
models:
  - name: {MODEL}
    routing: {{policy: session}}
    pools:
      - name: outside
        engine: {{kind: external, endpoints: ["http://127.0.0.1:FIRST", "http://127.0.0.1:SECOND"]}}
"""


@pytest.mark.parametrize("middleware", [True, False])
def test_external_engines_are_routed_to_and_outlive_the_cluster(middleware: bool) -> None:
    with replica(middleware) as first, replica(middleware) as second:
        spec = SPEC.replace("FIRST", str(first.port)).replace("SECOND", str(second.port))
        with running(spec) as cluster:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
            with httpx2.Client(base_url=cluster.url, trust_env=False, timeout=30) as http:

                def answered_by(session: str) -> str:
                    answer = http.post("/v1/chat/completions", json=body, headers={"x-session-id": session})
                    assert answer.status_code == 200, answer.text
                    return answer.headers["x-slipstream-replica"].rpartition(".g")[0]

                homes = {session: answered_by(session) for session in (f"s{n}" for n in range(12))}
                assert set(homes.values()) == {"outside-0", "outside-1"}
                assert {session: answered_by(session) for session in homes} == homes
                second.process.kill()
                until(lambda: {answered_by(s) for s in homes}, lambda seen: seen == {"outside-0"}, "only one is left")
            assert all(record["role"] != "replica" for record in cluster.records().values())
        assert first.process.poll() is None
