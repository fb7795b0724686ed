"""Commands on data do in the tests' own process what they give to processes, which is quicker."""

import pytest
from data_shards import do_here


@pytest.fixture
def crew() -> None:
    """Work is done by processes."""


@pytest.fixture(autouse=True)
def _here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "crew" not in request.fixturenames:
        do_here(monkeypatch)
