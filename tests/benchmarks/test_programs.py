from pathlib import Path

import pytest

from benchmarks.programs import CannotCompile, program


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["replica", "load"])
def test_compiles_without_a_warning_and_only_once(own_cache: Path, name: str) -> None:
    made = program(name)
    assert made.is_relative_to(own_cache / "slipstream")
    stamp = made.stat().st_mtime_ns
    assert program(name) == made
    assert made.stat().st_mtime_ns == stamp


def test_says_when_there_is_no_compiler(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(CannotCompile, match="no C compiler"):
        program("load")
