"""``python -m dataplane.engines.simulated --config-json JSON [--middleware NAME ...]``."""

from __future__ import annotations

import argparse
import sys

import uvloop

from dataplane.engines.simulated.server import serve
from dataplane.engines.simulated.settings import parse


def main(argv: list[str] | None = None) -> int:
    """Run one replica; 0 after a stop, 2 for settings that are wrong."""
    parser = argparse.ArgumentParser(prog="simulated", description="A stand-in for `vllm serve` without a model.")
    parser.add_argument(
        "--config-json", required=True, help="settings, as JSON (dataplane/engines/simulated/settings.py)"
    )
    parser.add_argument("--middleware", action="append", default=[], help="ASGI class to wrap the application in")
    given = parser.parse_args(argv)
    try:
        settings = parse(given.config_json)
    except ValueError as error:
        parser.error(str(error))
    uvloop.run(serve(settings, given.middleware))
    return 0


if __name__ == "__main__":
    sys.exit(main())
