"""docs/doctor.md is written from the checks and is current."""

from __future__ import annotations

from pathlib import Path

from ktops_doctor import all_checks
from ktops_doctor.check import result_of, skip
from ktops_doctor.docs import render_docs

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"


def test_the_page_is_current():
    hint = "run: python -m ktops_doctor.docs > docs/doctor.md"
    assert PAGE.read_text(encoding="utf-8") == render_docs(), hint


def test_every_result_links_to_a_heading_of_the_page():
    headings = {
        "#" + line.removeprefix("### ").replace(".", "").replace(" ", "-").lower()
        for line in render_docs().splitlines()
        if line.startswith("### ")
    }
    for check in all_checks():
        link = result_of(check, skip("")).docs
        assert link.removeprefix("docs/doctor.md") in headings
