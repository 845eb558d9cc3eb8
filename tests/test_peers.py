"""The README's comparison with other harnesses is that of the record."""

import json

import pytest

from tests.peers.table import RECORD, ROOT, markdown


@pytest.mark.skipif(not RECORD.exists(), reason="no comparison was recorded: make bench")
def test_the_readme_shows_the_record() -> None:
    record = json.loads(RECORD.read_text())
    assert not record["void"]
    assert markdown(record) in (ROOT / "README.md").read_text()
