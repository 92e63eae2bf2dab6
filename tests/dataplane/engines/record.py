"""Record the shapes of a real vLLM: ``python -m tests.dataplane.engines.record http://127.0.0.1:8000``.

The server is ``vllm serve`` of the tiny model under the name ``tiny`` with the adapter ``tiny-lora``, and
``--max-model-len 2048 --enable-prompt-tokens-details``, VLLM_ENABLE_RESPONSES_API_STORE=1, VLLM_SERVER_DEV_MODE=1.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import httpx2

from tests.dataplane.engines.exchanges import EXCHANGES, ask

FOLDER = Path(__file__).parent / "recorded"
SHAPES = FOLDER / "shapes.json"
METRICS = FOLDER / "metrics.txt"

_SAMPLE = re.compile(r"(vllm:[a-z0-9_]+)(?:\{(.*)\})? \S+")
_LABEL = re.compile(r'([a-z_]+)="')


def metric_names(text: str) -> dict[str, set[str]]:
    """Return sample name -> label names, of vLLM's own metrics in a /metrics page."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match:
            found.setdefault(match[1], set()).update(_LABEL.findall(match[2] or ""))
    return found


def main(url: str) -> None:
    """Write both files."""
    with httpx2.Client(base_url=url, timeout=60) as client:
        shapes = {name: ask(client, name) for name in EXCHANGES}
        lines = [
            f"{name} {' '.join(sorted(labels))}" for name, labels in metric_names(client.get("/metrics").text).items()
        ]
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in shapes.items())
    SHAPES.write_text("{\n" + rows + "\n}\n")
    METRICS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
