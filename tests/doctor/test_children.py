"""Probes: children that report line by line, are judged by how they end, and never outstay."""

from __future__ import annotations

import pytest

from ktops_doctor import children
from ktops_doctor.children import run_probe


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """`probe(source, limit, patience)` runs a probe with that source."""
    monkeypatch.setattr(children, "_PROBES", tmp_path)

    def run(source: str, time_limit: float = 10, patience: float | None = None):
        (tmp_path / "p.py").write_text(source)
        return run_probe("p", (), time_limit=time_limit, patience=patience)

    return run


def test_facts_of_all_lines_are_merged_and_other_output_is_ignored(probe):
    output = probe("print('{\"a\": 1}'); print('noise'); print('[1]'); print('{\"b\": null}')")
    assert output.facts == {"a": 1, "b": None}
    assert output.error == ""


def test_a_traceback_is_reported_by_its_last_line_with_what_was_said_before(probe):
    output = probe("print('{\"a\": 1}', flush=True); raise ValueError('no')")
    assert (output.facts, output.error) == ({"a": 1}, "ValueError: no")


def test_a_signal_is_named(probe):
    source = "import os, signal; os.kill(os.getpid(), signal.SIGABRT)"
    assert probe(source).error == "ended by SIGABRT"


def test_a_probe_that_hangs_is_ended_at_its_limit(probe):
    source = "print('{\"a\": 1}', flush=True); import time; time.sleep(60)"
    output = probe(source, time_limit=0.5)
    assert output.facts == {"a": 1}
    assert output.error == "no answer within 0.5 s"


def test_after_its_patience_a_probe_that_knows_enough_is_ended_without_an_error(probe):
    source = 'print(\'{"a": 1, "enough": true}\', flush=True); import time; time.sleep(60)'
    output = probe(source, time_limit=30, patience=0.2)
    assert (output.facts, output.error) == ({"a": 1}, "")


def test_a_probe_that_does_not_know_enough_is_waited_for_beyond_the_patience(probe):
    source = "import time; time.sleep(0.5); print('{\"late\": true}')"
    assert probe(source, time_limit=10, patience=0.1).facts == {"late": True}


def test_much_output_on_both_streams_does_not_block(probe):
    source = (
        "import sys\n"
        "for i in range(2000): print('{\"i\": %d}' % i); sys.stderr.write('x' * 100 + '\\n')\n"
        "sys.exit(3)"
    )
    output = probe(source)
    assert output.facts == {"i": 1999}
    assert output.error == "x" * 100
