"""A ledger under a driver, whose invariants are checked after every event and at the end."""

from collections.abc import Iterator

import pytest

from ..ledger_kit import Driver


@pytest.fixture
def ledger() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.tick()
    driver.ledger.validate()
    driver.restart()
    driver.tick(driver.rules.lease_s)
