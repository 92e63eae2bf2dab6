"""Reads the texts from which HAProxy's files are rendered."""

from __future__ import annotations

from pathlib import Path

from dataplane.gateway.site import Templates

#: `haproxy/` of the distribution, beside the packages.
FOLDER = Path(__file__).resolve().parents[2] / "haproxy"


def load_templates(folder: Path = FOLDER) -> Templates:
    """Return the templates and Lua sources in ``folder``. Raises FileNotFoundError when one is missing."""

    def text(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    return Templates(
        haproxy=text("templates/haproxy.cfg.j2"),
        spoe=text("templates/spoe.cfg.j2"),
        error=text("errors/error.http.j2"),
        features_lua=text("lua/features.lua"),
        gateway_lua=text("lua/gateway.lua"),
    )
