"""Clusters that several tests share: starting one costs seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.cluster import Cluster, running

TWO_MODELS = """
cluster: two-models
gateway: {listen: ["127.0.0.1:GATEWAY_PORT"]}
limits: {max_body: 32MiB}
admin: {page: "127.0.0.1:PAGE_PORT"}
nodes: [{name: local, address: 127.0.0.1, ports: ENGINE_PORTS}]
models:
  - name: alpha
    adapters: [{name: alpha-sql}]
    routing: {policy: prefix}
    pools:
      - {name: alpha, replicas: 2, engine: {kind: simulated}}
  - name: beta
    routing: {policy: session}
    pools:
      - {name: beta, replicas: 2, engine: {kind: simulated}}
"""

ONE_MODEL = """
cluster: one-model
gateway: {listen: ["127.0.0.1:GATEWAY_PORT"]}
admin: {page: "127.0.0.1:PAGE_PORT"}
nodes: [{name: local, address: 127.0.0.1, ports: ENGINE_PORTS}]
models:
  - name: demo
    adapters: [{name: demo-sql}]
    pools:
      - {name: demo, replicas: 3, engine: {kind: simulated}}
"""


@pytest.fixture(scope="module")
def two_models() -> Iterator[Cluster]:
    with running(TWO_MODELS) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def one_model() -> Iterator[Cluster]:
    with running(ONE_MODEL) as cluster:
        yield cluster
