"""The table of architectures says what the matrix of tests shows."""

from pathlib import Path

from tests.architectures import PACKED, UNPACKED
from tests.conftest import ROOT

PAGE = Path(ROOT, "docs", "architectures.md")
ONE_PER_ROW = "one document per row"


def test_the_table_names_every_family_and_how_it_is_packed():
    rows = [
        line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    ]
    said = {family.removeprefix("| "): packed for family, packed, _ in rows[1:]}
    assert said == {
        **{family.name: "yes" for family in PACKED},
        **{family.name: ONE_PER_ROW for family in UNPACKED},
    }
    assert all("mixture of experts" in note for family, _, note in rows if family.endswith("MoE"))
