"""The README's comparison with other harnesses is that of the record."""

import json

import pytest

from tests.bench.peers.table import RECORD, markdown
from tests.support import costs
from tests.support.readmes import TEXT


@pytest.mark.skipif(not RECORD.exists(), reason="no comparison was recorded: make bench")
def test_the_readme_shows_the_record() -> None:
    record = json.loads(RECORD.read_text())
    assert not [void for void in record["void"] if " 1 " in void], "what is compared in one process"
    assert markdown(record) in TEXT


@pytest.mark.skipif(not all((costs.RESULTS / f"{name}.json").exists() for name in costs.RECORDS), reason="not recorded")
def test_the_readme_says_what_a_start_and_a_checkpoint_cost() -> None:
    assert costs.text() in TEXT
