"""Generate the protobuf stubs in ``dataplane/pb`` from ``proto/``.

The generated modules import one another absolutely (``from slipstream.v1 import topology_pb2``), which would
need an importable ``slipstream`` package; the imports are rewritten to be relative. With ``--check`` nothing is
written and a difference from the checked-in stubs is an error.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
OUT = ROOT / "dataplane" / "pb"
ABSOLUTE_IMPORT = re.compile(r"^from slipstream\.v1 import (\w+)", re.MULTILINE)
STUB_IMPORT = re.compile(r"^from slipstream\.v1 import (\w+) as (\w+)", re.MULTILINE)


def generate(out: Path) -> dict[str, str]:
    """Return file name -> text of every stub that a fresh generation makes."""
    files = sorted(str(p) for p in (PROTO / "slipstream" / "v1").glob("*.proto"))
    include = str(Path(protoc.__file__).parent / "_proto")
    arguments = ["protoc", f"-I{PROTO}", f"-I{include}", f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    arguments += [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}", *files]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    texts: dict[str, str] = {}
    for path in sorted((out / "slipstream" / "v1").iterdir()):
        text = path.read_text()
        text = STUB_IMPORT.sub(r"from . import \1 as \2", text)
        texts[path.name] = ABSOLUTE_IMPORT.sub(r"from . import \1", text)
    return texts


def main() -> None:
    """Write the stubs, or compare them."""
    # protoc finds its mypy plugins on PATH; they stand beside the interpreter that runs this.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with tempfile.TemporaryDirectory() as scratch:
        texts = generate(Path(scratch))
    kept = {"__init__.py"}
    if "--check" in sys.argv[1:]:
        here = {p.name: p.read_text() for p in OUT.iterdir() if p.is_file() and p.name not in kept}
        stale = sorted(n for n in texts.keys() | here.keys() if texts.get(n) != here.get(n))
        if stale:
            raise SystemExit(f"dataplane/pb differs from proto/: {', '.join(stale)}. Run: make proto")
        return
    OUT.mkdir(parents=True, exist_ok=True)
    for path in OUT.glob("*_pb2*"):
        path.unlink()
    for name, text in texts.items():
        (OUT / name).write_text(text)


if __name__ == "__main__":
    main()
