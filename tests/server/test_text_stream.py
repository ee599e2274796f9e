"""The path from tokens to text: stop strings, reasoning, whole characters, for every split."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktops_engine.server.reasoning import Delta, ReasoningSplit
from ktops_engine.server.stop_strings import StopStrings
from ktops_engine.server.text_stream import TextStream

relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))
FRAGMENTS = ["<think>", "</think>", "<", "</th", "\n", " ", "a", "stop", "st", "世界", "é", "op"]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)
stop_lists = st.lists(st.sampled_from(["stop", "st", "</think>", "op", "\n\n", "界"]), max_size=3)


@st.composite
def split_texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text and one way of cutting it into pieces."""
    text = draw(texts)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)))))
    bounds = [0, *cuts, len(text)]
    return text, [text[a:b] for a, b in itertools.pairwise(bounds)]


def split_reasoning(pieces: list[str], *, opened: bool) -> tuple[str, str]:
    split = ReasoningSplit(opened=opened)
    delta = sum((split.push(piece) for piece in pieces), Delta()) + split.finish()
    return delta.reasoning, delta.content


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("Hm.\n</think>\n\nYes.", True, "Hm.", "Yes."),
        ("<think>\nHm.</think>Yes.", True, "Hm.", "Yes."),
        ("\n<think>\nHm.\n\n</think>\nYes.", False, "Hm.", "Yes."),
        ("cut off", True, "cut off", ""),
        ("cut off</thi", True, "cut off</thi", ""),
        ("no tags", False, "", "no tags"),
        ("  indented", False, "", "  indented"),
        ("a <think> later</think>", False, "", "a <think> later</think>"),
        ("</think>\n\nYes.", True, "", "Yes."),
        ("\n\n</think>\n\nYes.", True, "", "Yes."),
        ("a</think>b</think>c", True, "a", "b</think>c"),
        ("x < y and </ z\n\nmore</think>ok", True, "x < y and </ z\n\nmore", "ok"),
        ("</think>\n  code", True, "", "  code"),
        ("", True, "", ""),
        ("<thi", False, "", "<thi"),
        (" \n", False, "", " \n"),
    ],
)
def test_reasoning_is_split_from_content(text, opened, reasoning, content):
    assert split_reasoning([text], opened=opened) == (reasoning, content)
    assert split_reasoning(list(text), opened=opened) == (reasoning, content)


@relaxed
@given(split_texts(), st.booleans())
def test_the_split_does_not_depend_on_how_the_text_is_cut(split, opened):
    text, pieces = split
    assert split_reasoning(pieces, opened=opened) == split_reasoning([text], opened=opened)


def stopped(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    stream = StopStrings(stops)
    text = "".join(stream.push(piece) for piece in pieces)
    return text + stream.finish(), stream.matched


@relaxed
@given(split_texts(), stop_lists)
def test_stop_strings_cut_the_same_text_however_it_arrives(split, stops):
    text, pieces = split
    shown, matched = stopped(pieces, stops)
    assert (shown, matched) == stopped(list(text), stops)
    assert not any(stop in shown for stop in stops)
    assert shown == text if matched is None else text.startswith(shown + matched)


@relaxed
@given(split_texts(), stop_lists)
def test_no_part_of_a_stop_string_is_shown_before_it_is_complete(split, stops):
    text, pieces = split
    final, _ = stopped([text], stops)
    stream, shown = StopStrings(stops), ""
    for piece in pieces:
        shown += stream.push(piece)
        assert final.startswith(shown)


def test_the_stop_string_completed_first_counts():
    assert stopped(["abcde"], ["abcde", "bcd"]) == ("a", "bcd")
    assert stopped(["abc"], ["bc", "abc"]) == ("", "abc")


def run_stream(tokenizer, ids, *, stop=(), opened=True, min_tokens=0):
    """The joined deltas of one answer and its reasoning tokens."""
    stream = TextStream(
        tokenizer, stop=stop, min_tokens=min_tokens, split=ReasoningSplit(opened=opened)
    )
    total = Delta()
    for token_id in ids:
        total += stream.push(token_id)
        if stream.stopped:
            return total, stream.num_reasoning_tokens
    return total + stream.finish(), stream.num_reasoning_tokens


@relaxed
@given(text=texts, stops=stop_lists, opened=st.booleans())
def test_deltas_of_tokens_add_up_to_the_text_as_one_piece(tokenizer, text, stops, opened):
    delta, _ = run_stream(tokenizer, tokenizer.encode(text), stop=stops, opened=opened)
    cut, _ = stopped([text], stops)
    assert (delta.reasoning, delta.content) == split_reasoning([cut], opened=opened)


@relaxed
@given(ids=st.lists(st.integers(0, 261), max_size=30))
def test_any_token_ids_make_valid_text(tokenizer, ids):
    delta, num_reasoning = run_stream(tokenizer, ids)
    (delta.reasoning + delta.content).encode()
    assert 0 <= num_reasoning <= len(ids)


def test_half_a_character_at_the_end_becomes_a_replacement_character(tokenizer):
    ids = tokenizer.encode("ab世")[:-1]
    delta, _ = run_stream(tokenizer, ids, opened=False)
    assert delta.content == "ab\ufffd"


@pytest.mark.parametrize(
    ("text", "opened", "num_reasoning"),
    [
        ("ab</think>\ncd", True, 3),
        ("<think>ab</think>cd", False, 4),
        ("abcd", True, 4),
        ("abcd", False, 0),
        ("</think>ab", True, 1),
    ],
)
def test_reasoning_tokens_are_those_up_to_the_closing_tag(tokenizer, text, opened, num_reasoning):
    assert run_stream(tokenizer, tokenizer.encode(text), opened=opened)[1] == num_reasoning


def test_tags_written_in_plain_letters_count_as_tags_too(tokenizer):
    ids = [i for letter in "ab</think>cd" for i in tokenizer.encode(letter)]
    delta, num_reasoning = run_stream(tokenizer, ids)
    assert (delta.reasoning, delta.content, num_reasoning) == ("ab", "cd", 10)


def test_stop_strings_wait_for_min_tokens(tokenizer):
    ids = tokenizer.encode("a.b.c")
    assert run_stream(tokenizer, ids, stop=["."], opened=False)[0].content == "a"
    late, _ = run_stream(tokenizer, ids, stop=["."], opened=False, min_tokens=2)
    assert late.content == "a.b"


def test_a_stop_string_in_the_reasoning_ends_the_answer(tokenizer):
    delta, _ = run_stream(tokenizer, tokenizer.encode("a\n\nb</think>c"), stop=["\n\n"])
    assert delta == Delta(reasoning="a")
