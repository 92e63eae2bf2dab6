"""Every kind of error, with its exact line."""

from __future__ import annotations

import pytest

from controlplane.errors import InvalidSpec
from controlplane.spec import from_yaml

GOOD = """\
cluster: test
gateway:
  listen: ["127.0.0.1:8000"]
nodes:
  - {name: a, ports: 21000-21009}
  - {name: b, address: 10.0.0.2, ports: 21000-21009}
models:
  - name: m
    adapters:
      - {name: m-sql, path: /adapters/sql}
    routing: {policy: prefix}
    pools:
      - name: p
        replicas: 2
        nodes: [a]
        engine: {kind: simulated}
"""


def errors(text: str, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(InvalidSpec) as caught:
        from_yaml(text, "f.yaml", environment)
    return str(caught.value).split("\n")


def test_the_text_that_the_cases_change_is_good() -> None:
    from_yaml(GOOD)


ENGINE = "engine: {kind: simulated}"
POOL = "      - name: p\n"

#: what is replaced, by what, the one line that comes out
CASES = [
    # keys
    ("replicas: 2", "replicass: 2", "14: models[0].pools[0].replicass: unknown key, did you mean 'replicas'?"),
    ("cluster: test", "cluster: test\nzzz: 1", "2: zzz: unknown key"),
    ("cluster: test", "cluster: test\nmodel: 1", "2: model: unknown key, did you mean 'models'?"),
    ("  listen", "  listens: 1\n  listen", "3: gateway.listens: unknown key, did you mean 'listen'?"),
    (
        '["127.0.0.1:8000"]',
        '\n    - {address: "127.0.0.1:8000", certificat: /x}',
        "4: gateway.listen[0].certificat: unknown key, did you mean 'certificate'?",
    ),
    ("{name: a, ", "{nam: a, name: a, ", "5: nodes[0].nam: unknown key, did you mean 'name'?"),
    (
        ENGINE,
        "engine:\n          kind: simulated\n          start_s: 1",
        "18: models[0].pools[0].engine.start_s: unknown key, did you mean 'startup_s'?",
    ),
    (
        ENGINE,
        "engine: {kind: simulated, simulated: 1}",
        "16: models[0].pools[0].engine.simulated: unknown key",
    ),
    ("cluster: test", "cluster: test\n'a\\nb': 1", "2: 'a\\\\nb': unknown key"),
    ("cluster: test", 'cluster: test\n"a\\nb": 1', "2: 'a\\nb': unknown key"),
    (
        "replicas: 2",
        "replicas: 2\n        replicas: 3",
        "15: models[0].pools[0].replicas: repeated key, first on line 14",
    ),
    ("cluster: test\n", "\n", "2: cluster: missing"),
    ("        engine: {kind: simulated}\n", "", "13: models[0].pools[0].engine: missing"),
    # types
    ("replicas: 2", "replicas: two", "14: models[0].pools[0].replicas: must be a whole number"),
    ("replicas: 2", "replicas: 2.5", "14: models[0].pools[0].replicas: must be a whole number"),
    ("replicas: 2", "replicas: true", "14: models[0].pools[0].replicas: must be a whole number"),
    ("replicas: 2", "replicas: '2'", "14: models[0].pools[0].replicas: must be a whole number"),
    ("replicas: 2", "replicas:", "14: models[0].pools[0].replicas: must be a whole number"),
    ("replicas: 2", "replicas: -1", "14: models[0].pools[0].replicas: must be greater than or equal to 0"),
    ("replicas: 2", "replicas: 5000", "14: models[0].pools[0].replicas: must be less than or equal to 4096"),
    ("cluster: test", "cluster: 12", "1: cluster: must be text: put it in quotes"),
    ("cluster: test", "cluster: [x]", "1: cluster: must be text"),
    ("nodes: [a]", "nodes: a", "15: models[0].pools[0].nodes: must be a list"),
    ("routing: {policy: prefix}", "routing: prefix", "11: models[0].routing: must be a mapping"),
    ("  listen", "  replica_header: yes\n  listen", "3: gateway.replica_header: must be true or false"),
    ("  listen", "  queue_timeout_s: soon\n  listen", "3: gateway.queue_timeout_s: must be a number"),
    ("  listen", "  queue_timeout_s: 1e999\n  listen", "3: gateway.queue_timeout_s: must be a finite number"),
    ('["127.0.0.1:8000"]', "[]", "3: gateway.listen: must have at least 1"),
    (ENGINE, "engine: {}", "16: models[0].pools[0].engine.kind: missing: simulated, vllm or external"),
    (
        ENGINE,
        "engine: {kind: simulatd}",
        "16: models[0].pools[0].engine.kind: must be simulated, vllm or external, did you mean 'simulated'?",
    ),
    (
        "nodes: [a]",
        "role: decoder",
        "15: models[0].pools[0].role: must be mixed, prefill or decode, did you mean 'decode'?",
    ),
    (
        "{policy: prefix}",
        "{policy: prefx}",
        "11: models[0].routing.policy: must be cost, round_robin, least_loaded, power_of_two, "
        "session, prefix, cache_aware, sticky_until_saturated, kv_overlap, prefix_tree or weighted_blend, "
        "did you mean 'prefix'?",
    ),
    # values
    (
        "replicas: 2",
        "replicas: ${N}",
        "14: models[0].pools[0].replicas: the environment variable N is not set (a default is written ${N:-default})",
    ),
    (
        "cluster: test",
        "cluster: Test",
        "1: cluster: name 'Test' is not allowed: lower-case letters, digits and - between them, at most 63 characters",
    ),
    (
        "- name: m\n",
        '- name: "m\\n"\n',
        "8: models[0].name: name 'm\\n' is not allowed: letters, digits and . _ : / + - between them, "
        "at most 128 characters",
    ),
    (
        "path: /adapters/sql",
        "path: adapters",
        "10: models[0].adapters[0].path: path 'adapters' is not allowed: "
        "write an absolute path of letters, digits and . _ / @ + = : , ~ -",
    ),
    (
        "10.0.0.2",
        '"10.0.0.2 x"',
        "6: nodes[1].address: address '10.0.0.2 x' is not allowed: "
        "write an IP address (IPv6 without brackets) or a DNS name",
    ),
    (
        "{name: a, ports: 21000-21009}",
        "{name: a, ports: 21000}",
        "5: nodes[0].ports: must be text: put it in quotes",
    ),
    (
        "{name: a, ports: 21000-21009}",
        "{name: a, ports: 21009-21000}",
        "5: nodes[0].ports: ports 21009-21000 are not allowed: the first is above the last",
    ),
    (
        "{name: a, ports: 21000-21009}",
        "{name: a, ports: 21000-40000}",
        "5: nodes[0].ports: ports 21000-40000 are not allowed: the kernel gives those from 32768 on to clients",
    ),
    (
        "{name: a, ports: 21000-21009}",
        "{name: a, ports: 80-90}",
        "5: nodes[0].ports: ports 80-90 are not allowed: those below 1024 need a privilege",
    ),
    (
        "127.0.0.1:8000",
        "127.0.0.1",
        "3: gateway.listen[0].address: '127.0.0.1' is not allowed: write host:port, or [address]:port for IPv6",
    ),
    (
        "127.0.0.1:8000",
        "127.0.0.1:0",
        "3: gateway.listen[0].address: port 0 is not between 1 and 65535",
    ),
    (
        "  listen",
        "  buffer_bytes: 1 MB\n  listen",
        "3: gateway.buffer_bytes: size '1 MB' is not allowed: write bytes as a number, or like 64KiB, 64MiB, 1GiB",
    ),
    (
        "  listen",
        "  buffer_bytes: 1KiB\n  listen",
        "3: gateway.buffer_bytes: must be 0, which lets the gateway choose, or at least 163840",
    ),
    (
        ENGINE,
        "engine: {kind: simulated, kv_events_endpoint: 'ipc://x'}",
        "16: models[0].pools[0].engine.kv_events_endpoint: endpoint 'ipc://x' is not allowed: write tcp://host:port",
    ),
    # between the parts
    ("nodes: [a]", "nodes: [aa, a]", "15: models[0].pools[0].nodes[0]: there is no node 'aa', did you mean 'a'?"),
    ("nodes: [a]", "nodes: [a, a]", "15: models[0].pools[0].nodes[1]: the node 'a' is listed twice"),
    ("{name: b,", "{name: a,", "6: nodes[1].name: 'a' is the name of another node"),
    ("address: 10.0.0.2, ", "", "6: nodes[1].ports: overlap the ports of another node at the same address"),
    ("name: m-sql", "name: m", "10: models[0].adapters[0].name: 'm' is the name of another model or adapter"),
    (
        POOL,
        f"      - {{name: p, {ENGINE}}}\n{POOL}",
        "14: models[0].pools[1].name: 'p' is the name of another pool",
    ),
    (
        "replicas: 2",
        "replicas: 11",
        "14: models[0].pools[0].replicas: 11 replicas in all are to run on a, where there are 10 ports",
    ),
    (
        "nodes: [a]",
        "role: prefill",
        "12: models[0].pools: are all of role prefill: one of role mixed or decode must answer",
    ),
    (
        "{name: m-sql, path: /adapters/sql}\n    routing: {policy: prefix}\n    pools:\n",
        "{name: m-sql}\n    pools:\n      - {name: v, engine: {kind: vllm, model: org/m}}\n",
        "10: models[0].adapters[0].path: missing: vLLM loads the adapter from this directory",
    ),
    (
        "127.0.0.1:8000",
        "127.0.0.1:21005",
        "3: gateway.listen[0]: port 21005 is one of the first node's ports for engines (21000-21009)",
    ),
    (
        '["127.0.0.1:8000"]',
        '\n    - "127.0.0.1:8000"\n    - 0.0.0.0:8000',
        "5: gateway.listen[1]: port 8000 is listened on twice (gateway.listen, admin.page)",
    ),
    (
        "127.0.0.1:8000",
        "127.0.0.1:8001",
        "3: gateway.listen[0]: port 8001 is listened on twice (gateway.listen, admin.page)",
    ),
    (
        "{policy: prefix}",
        "{policy: prefix, parameters: {load_wait: 1}}",
        "11: models[0].routing.parameters.load_wait: is no parameter of prefix, did you mean 'load_weight'?",
    ),
    (
        "{policy: prefix}",
        "{policy: prefix, parameters: {load_weight: -1}}",
        "11: models[0].routing.parameters.load_weight: must be 0 to 1000",
    ),
    # YAML
    ("cluster: test", "cluster: test\n<<: 1", "2: '<<': unknown key"),
    ("nodes: [a]", "nodes: [a", "16: is not YAML: did not find expected ',' or ']'"),
    ("cluster: test", "cluster: &x test\nadmin: *x", "2: admin: YAML aliases are not allowed: write the value out"),
    ("cluster: test", "cluster: !!str test", "1: cluster: YAML tags are not allowed"),
    ("cluster: test", "cluster: !!python/name:os.system ''", "1: cluster: YAML tags are not allowed"),
    ("cluster: test", "? [a]\n: 1\ncluster: test", "1: a key must be text"),
    (
        "        engine: {kind: simulated}\n",
        "        engine: {kind: simulated}\n---\na: 1\n",
        "17: holds a second document",
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), CASES, ids=[case[2].split(": ", 1)[1][:60] for case in CASES])
def test_one_mistake_is_one_line(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    # The tag case leaves an empty name, which is an error too.
    found = errors(GOOD.replace(old, new, 1))
    assert [line for line in found if "name '' is not" not in line] == [f"f.yaml:{expected}"]


VLLM = GOOD.replace(ENGINE, "engine:\n          kind: vllm\n          model: org/m\n          X")

VLLM_CASES = [
    ('args: ["--port=1"]', "args[0]: --port is not allowed here: Slipstream sets it itself"),
    ("args: [--host]", "args[0]: --host is not allowed here: Slipstream sets it itself"),
    ("args: [--middlew, x]", "args[0]: --middleware is not allowed here: Slipstream sets it itself"),
    ("args: [a, --served_model_name]", "args[1]: --served-model-name is not allowed here: Slipstream sets it itself"),
    (
        "args: [-tp=2]",
        "args[0]: --tensor-parallel-size is not allowed here: write the key 'tensor_parallel_size' instead",
    ),
    ("args: [--max_num_seqs]", "args[0]: --max-num-seqs is not allowed here: write the key 'max_running' instead"),
    ('args: ["a\\0b"]', "args[0]: must not hold a control character (newline, tab, NUL, ...)"),
    ('args: ["a\\nb"]', "args[0]: must not hold a control character (newline, tab, NUL, ...)"),
    ("args: [1.5]", "args[0]: must be text: put it in quotes"),
    ("env: {A: true}", "env.A: must be text: put it in quotes"),
    ("env: {PYTHONPATH: x}", "env.PYTHONPATH: PYTHONPATH is not allowed here: Slipstream sets it itself"),
    ("env: {SLIPSTREAM_PIN: x}", "env.SLIPSTREAM_PIN: SLIPSTREAM_PIN is not allowed here: Slipstream sets it itself"),
    (
        "env: {a-b: x}",
        "env.a-b: environment variable 'a-b' is not allowed: letters, digits and _, "
        "not a digit first, at most 128 characters",
    ),
    ('env: {A: "secret\\n"}', "env.A: must not hold a control character (newline, tab, NUL, ...)"),
    (
        "python: python3",
        "python: path 'python3' is not allowed: write an absolute path of letters, digits and . _ / @ + = : , ~ -",
    ),
    ("gpu_memory_utilization: 1.5", "gpu_memory_utilization: must be less than or equal to 1"),
    ("gpus: [0, 0]", "gpus: name a GPU twice"),
    ("gpus: [0]", "gpus: are 1: 2 replicas of 1 need 2"),
    ("tensor_parallel_size: 2\n          gpus: [0, 1, 2]", "gpus: are 3: 2 replicas of 2 need 4"),
    ("gpus: [0, 1]\n          env: {CUDA_VISIBLE_DEVICES: 0}", "env.CUDA_VISIBLE_DEVICES: is set from 'gpus'"),
]


@pytest.mark.parametrize(("keys", "expected"), VLLM_CASES)
def test_vllm_engines(keys: str, expected: str) -> None:
    line = 19 + keys.count("\n")
    assert errors(VLLM.replace("X", keys)) == [f"f.yaml:{line}: models[0].pools[0].engine.{expected}"]


def test_gpus_need_one_named_node_and_are_not_shared() -> None:
    two = VLLM.replace("X", "gpus: [0, 1]")
    assert errors(two.replace("        nodes: [a]\n", ""))[0].endswith(
        "engine.gpus: need a pool that names its one node: numbers mean other GPUs on each machine"
    )
    more = "      - {name: q, nodes: [a], engine: {kind: vllm, model: org/m, gpus: [1]}}\n"
    assert errors(two + more)[0].endswith("pools[1].engine.gpus: name a GPU that another pool has on this node")


EXTERNAL_CASES = [
    ("endpoints: [https://a:1]", "endpoints[0]: endpoint 'https://a:1' is not allowed: write http://host:port"),
    (
        "endpoints: [http://a:1/v1]",
        "endpoints[0]: 'a:1/v1' is not allowed: write host:port, or [address]:port for IPv6",
    ),
    ("endpoints: [http://a:1, http://a:1]", "endpoints: endpoint http://a:1 is listed twice"),
    ("endpoints: []", "endpoints: must have at least 1"),
    ("endpoints: [1, http://a:0]", "endpoints[0]: must be text: put it in quotes"),
]


@pytest.mark.parametrize(("keys", "expected"), EXTERNAL_CASES)
def test_external_engines(keys: str, expected: str) -> None:
    text = GOOD.replace("        replicas: 2\n", "").replace(ENGINE, f"engine: {{kind: external, {keys}}}")
    assert errors(text)[0] == f"f.yaml:15: models[0].pools[0].engine.{expected}"


def test_external_replicas_are_the_endpoints() -> None:
    text = GOOD.replace(ENGINE, "engine: {kind: external, endpoints: [http://a:1]}")
    assert errors(text) == ["f.yaml:14: models[0].pools[0].replicas: is 2, but there are 1 endpoints: leave it out"]


def test_isolation_needs_our_middleware() -> None:
    text = GOOD.replace("    adapters:", "    isolate_cache: true\n    adapters:").replace("        replicas: 2\n", "")
    from_yaml(text)
    assert errors(text.replace(ENGINE, "engine: {kind: external, endpoints: [http://a:1]}")) == [
        "f.yaml:16: models[0].pools[0].engine: is external, but isolate_cache needs the middleware, which only our own "
        "engines run"
    ]


def test_every_mistake_is_told_at_once_in_the_order_of_the_lines() -> None:
    text = (
        GOOD.replace("cluster: test", "cluster: Test")
        .replace("{name: b,", "{name: a, prots: 1,")
        .replace("replicas: 2", "replicas: x\n        replicass: 1")
        .replace("nodes: [a]", "nodes: [c]")
    )
    keys = [line.split(": ")[:2] for line in errors(text)]
    assert keys == [
        ["f.yaml:1", "cluster"],
        ["f.yaml:6", "nodes[1].name"],
        ["f.yaml:6", "nodes[1].prots"],
        ["f.yaml:14", "models[0].pools[0].replicas"],
        ["f.yaml:15", "models[0].pools[0].replicass"],
        ["f.yaml:16", "models[0].pools[0].nodes[0]"],
    ]


def test_ten_thousand_mistakes_are_one_readable_error() -> None:
    found = errors(GOOD + "".join(f"k{i}: 1\n" for i in range(10_000)))
    assert len(found) == 101
    assert found[-1].startswith("f.yaml: and ")


def test_a_key_in_place_of_its_digest_is_not_shown() -> None:
    found = errors(GOOD + "api_keys:\n  keys:\n    - {name: k, tenant: t, sha256: sk-very-secret}\n")
    assert len(found) == 1
    assert found[0].startswith("f.yaml:19: api_keys.keys[0].sha256: must be the SHA-256")
    assert "very-secret" not in found[0]


def test_keys_of_clients_differ() -> None:
    one, two = "1" * 63 + "a", "2" * 63 + "b"
    entry = "    - {{name: {}, tenant: t, sha256: {}}}\n"
    head = GOOD + "api_keys:\n  keys:\n"
    from_yaml(head + entry.format("k", one) + entry.format("l", two))
    assert errors(head + entry.format("k", one) + entry.format("k", two)) == [
        "f.yaml:20: api_keys.keys[1].name: 'k' is the name of another key"
    ]
    assert errors(head + entry.format("k", one) + entry.format("l", one)) == [
        "f.yaml:20: api_keys.keys[1].sha256: is the digest of another key"
    ]


PRECISE = GOOD.replace("policy: prefix", "precise: true")
PUBLISHING = "engine: {kind: vllm, model: org/m, args: ['--kv-events-config={}']}"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "ports: 21000-21009}\n  - {name: b",
            "ports: 21000-21004}\n  - {name: b",
            "14: models[0].pools[0].replicas: 2 replicas in all are to run on a, where there are 5 ports, and need 6",
        ),
        (
            "replicas: 2\n        nodes: [a]\n        engine: {kind: simulated}",
            'engine: {kind: external, endpoints: ["http://x:1"]}',
            "11: models[0].routing.precise: needs engines that Slipstream starts: an external one does not publish",
        ),
        (
            ENGINE,
            PUBLISHING.replace(", args: ['--kv-events-config={}']", ""),
            "11: models[0].routing.tokenizer: missing: the folder that has the model's tokenizer.json",
        ),
        (
            ENGINE,
            PUBLISHING.replace("org/m", "/m"),
            "16: models[0].pools[0].engine.args[0]: is set by routing.precise",
        ),
        (
            "{precise: true}",
            "{precise: true, policy: round_robin}",
            "11: models[0].routing.precise: changes nothing: round_robin does not look at what replicas cache",
        ),
        (
            ENGINE,
            'engine: {kind: simulated, kv_events_endpoint: "tcp://*:5557"}',
            "16: models[0].pools[0].engine.kv_events_endpoint: is set by routing.precise",
        ),
    ],
)
def test_what_a_precise_model_may_not_have(old: str, new: str, expected: str) -> None:
    from_yaml(PRECISE)
    assert old in PRECISE
    assert errors(PRECISE.replace(old, new, 1)) == [f"f.yaml:{expected}"]
