"""The few HTTP requests that the harness itself makes."""

from __future__ import annotations

import http.client
import json
from typing import Any

TIMEOUT_S = 5.0


def get(port: int, path: str) -> tuple[int, bytes]:
    """Return status and body of ``GET path`` from 127.0.0.1; raises OSError or HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def answers(port: int, path: str) -> bool:
    """Whether ``GET path`` gives 200 now."""
    try:
        return get(port, path)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def completes(port: int, model: str) -> bool:
    """Whether a one-token chat completion through ``port`` gives 200 now."""
    body = {"messages": [{"role": "user", "content": "ready?"}], "model": model, "max_tokens": 1}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        return False
    else:
        return response.status == 200
    finally:
        connection.close()


def get_json(port: int, path: str) -> Any:
    """Return the JSON body of ``GET path``; raises ValueError for another status than 200."""
    status, body = get(port, path)
    if status != 200:
        raise ValueError(f"GET {path} on port {port} gives {status}")
    return json.loads(body)
