"""One replica for all tests of a module that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dataplane.engines.replicas import Running, replica


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with replica() as running:
        yield running
