"""Text to ids and back: both sources agree, and streams never show half a character."""

from pathlib import Path

import pytest
import tiny_gguf
import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from ktops_engine.gguf import GgufModel
from ktops_engine.tokenizer import IncrementalDecoder, Tokenizer, load_tokenizer

from .conftest import edit_json, with_metadata

quick = settings(max_examples=150, deadline=None)

# Text with what pre-tokenizers and special tokens care about.
TEXTS = st.lists(
    st.text(max_size=12)
    | st.sampled_from(
        [
            "hello world", " the", "123456", "１２３", "你好，阶乘", "ひらがなカタカナ", "한국어",
            "\r\n\n \t", "   ", "é", "e\u0301", "😀👩‍👩‍👧", "don't", "x_y->z", "ÀÉ", "Ωλ",
            "<think>", "</think>\n", tiny_tokenizer.BOS, "<｜User｜>", "<｜tool▁sep｜>",
            "<｜end▁of",
        ]
    ),
    max_size=8,
).map("".join)  # fmt: skip


@quick
@given(text=TEXTS)
def test_the_rebuilt_tokenizer_and_tokenizer_json_agree(
    rebuilt: Tokenizer, from_json: Tokenizer, text: str
) -> None:
    ids = from_json.encode(text)
    assert rebuilt.encode(text) == ids
    for skip in (True, False):
        assert rebuilt.decode(ids, skip) == from_json.decode(ids, skip)


@quick
@given(text=TEXTS)
def test_both_tokenizers_of_the_demo_model_agree(
    demo: tuple[Tokenizer, Tokenizer], text: str
) -> None:
    rebuilt, from_json = demo
    ids = from_json.encode(text)
    assert rebuilt.encode(text) == ids
    assert rebuilt.decode(ids) == from_json.decode(ids)
    assert rebuilt.decode(ids, skip_special_tokens=False) == text


def test_what_surrounds_the_demo_models_tokens_agrees_too(
    demo: tuple[Tokenizer, Tokenizer],
) -> None:
    rebuilt, from_json = demo
    for name in ("vocab_size", "bos_token", "eos_token", "bos_token_id", "eos_token_id"):
        assert getattr(rebuilt, name) == getattr(from_json, name)
    special = [id for id in range(from_json.vocab_size) if from_json.is_special(id)]
    assert special == [id for id in range(rebuilt.vocab_size) if rebuilt.is_special(id)]


@quick
@given(text=TEXTS)
def test_text_survives_encoding_and_decoding(rebuilt: Tokenizer, text: str) -> None:
    assert rebuilt.decode(rebuilt.encode(text), skip_special_tokens=False) == text


@quick
@given(ids=st.lists(st.integers(-2, 400), max_size=60), skip=st.booleans())
def test_pushes_and_flush_add_up_to_the_whole_decode(
    rebuilt: Tokenizer, ids: list[int], skip: bool
) -> None:
    decoder = IncrementalDecoder(rebuilt, skip)
    pieces = [decoder.push(id) for id in ids]
    assert "".join(pieces) + decoder.flush() == rebuilt.decode(ids, skip)
    assert decoder.flush() == ""


@quick
@given(ids=st.lists(st.integers(0, 300), max_size=40), skip=st.booleans())
def test_decoding_matches_the_tokenizers_library(
    from_json: Tokenizer, tiny: tiny_gguf.TinyModel, ids: list[int], skip: bool
) -> None:
    import tokenizers

    library = tokenizers.Tokenizer.from_file(str(tiny.config_folder / "tokenizer.json"))
    assert from_json.decode(ids, skip) == library.decode(ids, skip_special_tokens=skip)


def test_a_character_of_four_tokens_appears_whole(rebuilt: Tokenizer) -> None:
    ids = rebuilt.encode("a😀b")
    assert len(ids) == 6
    decoder = IncrementalDecoder(rebuilt)
    assert [decoder.push(id) for id in ids] == ["a", "", "", "", "😀", "b"]
    assert decoder.flush() == ""


def test_bytes_that_never_become_a_character_come_out_as_replacements(rebuilt: Tokenizer) -> None:
    first, second, *_ = rebuilt.encode("😀")
    letter = rebuilt.encode("a")[0]
    decoder = IncrementalDecoder(rebuilt)
    assert [decoder.push(first), decoder.push(second), decoder.push(letter)] == ["", "", "\ufffda"]
    assert decoder.push(first) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.push(letter) == "a"


def test_special_tokens_are_hidden_and_markers_of_the_answer_are_not(rebuilt: Tokenizer) -> None:
    text = f"{tiny_tokenizer.BOS}<｜User｜>hi<think></think><｜tool▁sep｜>{tiny_tokenizer.EOS}"
    ids = rebuilt.encode(text)
    assert rebuilt.decode(ids) == "<｜User｜>hi<think></think><｜tool▁sep｜>"
    assert rebuilt.decode(ids, skip_special_tokens=False) == text
    assert ids[0] == rebuilt.bos_token_id == 0
    assert ids[-1] == rebuilt.eos_token_id == 1
    decoder = IncrementalDecoder(rebuilt, skip_special_tokens=False)
    assert decoder.push(0) == tiny_tokenizer.BOS


def test_the_beginning_token_is_added_once_and_only_when_asked(rebuilt: Tokenizer) -> None:
    plain = rebuilt.encode("hello")
    assert rebuilt.encode("hello", add_special_tokens=True) == [0, *plain]
    assert rebuilt.encode(tiny_tokenizer.BOS + "hello", add_special_tokens=True) == [0, *plain]
    assert rebuilt.encode("", add_special_tokens=True) == [0]
    assert rebuilt.encode("") == []


def test_a_model_that_wants_no_beginning_token_gets_none(
    gguf: GgufModel, tiny: tiny_gguf.TinyModel, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(with_metadata(gguf, add_bos_token=False), None)
    assert tokenizer.encode("a", add_special_tokens=True) == tokenizer.encode("a")
    tiny_tokenizer.write_tokenizer_files(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", add_bos_token=False)
    tokenizer = load_tokenizer(gguf, tmp_path)
    assert tokenizer.encode("a", add_special_tokens=True) == tokenizer.encode("a")


def test_lone_surrogates_are_read_as_replacement_characters(rebuilt: Tokenizer) -> None:
    assert rebuilt.encode("a\ud800b😀") == rebuilt.encode("a\ufffdb😀")


def test_ids_outside_the_vocabulary_are_nothing(rebuilt: Tokenizer) -> None:
    for id in (-1, rebuilt.vocab_size, 383, 10**12):
        assert rebuilt.token_bytes(id) == b""
    assert rebuilt.decode([-1, 383]) == ""
    assert rebuilt.token_id("no such token") is None
    assert rebuilt.token_id("<think>") == rebuilt.encode("<think>")[0]


def test_long_streams_cost_the_same_per_token(rebuilt: Tokenizer) -> None:
    ids = rebuilt.encode("hello 你好 😀 " * 5000)
    decoder = IncrementalDecoder(rebuilt)
    text = "".join(map(decoder.push, ids)) + decoder.flush()
    assert text == "hello 你好 😀 " * 5000
    half_a_character = rebuilt.encode("😀")[0]
    assert "".join(decoder.push(half_a_character) for _ in range(20_000)) == "\ufffd" * 19_999


def test_the_chat_template_file_wins_over_the_config_and_the_gguf(
    gguf: GgufModel, tmp_path: Path
) -> None:
    assert load_tokenizer(gguf, None).chat_template == tiny_tokenizer.CHAT_TEMPLATE
    assert load_tokenizer(gguf, tmp_path).chat_template == tiny_tokenizer.CHAT_TEMPLATE
    tiny_tokenizer.write_tokenizer_files(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    edit_json(config, chat_template="from config")
    assert load_tokenizer(gguf, tmp_path).chat_template == "from config"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    edit_json(config, chat_template=named)
    assert load_tokenizer(gguf, tmp_path).chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("from file")
    assert load_tokenizer(gguf, tmp_path).chat_template == "from file"
    assert load_tokenizer(with_metadata(gguf), tmp_path).chat_template == "from file"


def test_a_folder_without_tokenizer_json_uses_the_files_vocabulary(
    gguf: GgufModel, rebuilt: Tokenizer, tmp_path: Path
) -> None:
    tiny_tokenizer.write_tokenizer_files(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    edit_json(tmp_path / "tokenizer_config.json", eos_token="<|EOT|>")
    tokenizer = load_tokenizer(gguf, tmp_path)
    assert tokenizer.encode("hello 你好") == rebuilt.encode("hello 你好")
    assert tokenizer.eos_token == "<|EOT|>"
    assert tokenizer.eos_token_id == rebuilt.token_id("<|EOT|>")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("12345", ["1", "2", "3", "4", "5"]),
        ("Hello World", ["Hello", " World"]),
        ("a\r\nb", ["a", "\r", "\n", "b"]),
        ("x, y!!", ["x", ",", " y", "!!"]),
        ("你好world", ["你好", "world"]),
        ("end  ", ["end", "  "]),
    ],
)
def test_the_pre_tokenizer_of_deepseek_llm_splits_as_v2_does(
    gguf: GgufModel, text: str, pieces: list[str]
) -> None:
    alphabet = tiny_tokenizer.byte_alphabet()
    tokenizer = load_tokenizer(with_metadata(gguf, pre="deepseek-llm"), None)
    split = tokenizer._inner.pre_tokenizer.pre_tokenize_str(text)
    encoded = ["".join(alphabet[byte] for byte in piece.encode()) for piece in pieces]
    assert [piece for piece, _ in split] == encoded


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("1234567", ["123", "456", "7"]),
        ("Hello World", ["Hello", " World"]),
        ("你好world", ["你好", "world"]),
        ("(abc) x", ["(abc", ")", " x"]),
        ("a  b", ["a", " ", " b"]),
    ],
)
def test_the_pre_tokenizer_of_deepseek_v3_groups_digits_in_threes(
    rebuilt: Tokenizer, text: str, pieces: list[str]
) -> None:
    alphabet = tiny_tokenizer.byte_alphabet()
    split = rebuilt._inner.pre_tokenizer.pre_tokenize_str(text)
    encoded = ["".join(alphabet[byte] for byte in piece.encode()) for piece in pieces]
    assert [piece for piece, _ in split] == encoded
