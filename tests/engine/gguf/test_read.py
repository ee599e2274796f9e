"""Reading tensors: bytes, buffers, progress, and files that change under the reader."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from raw_gguf import r1_sized

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import GgufModel, QuantType, dequantize, model, open_gguf


@pytest.fixture
def tiny(tmp_path: Path) -> GgufModel:
    return open_gguf(tiny_gguf.write_tiny_gguf(tmp_path, tiny_gguf.V3, num_shards=2).path)


def test_reading_into_a_buffer_gives_the_same_bytes_and_counts_them(tiny: GgufModel) -> None:
    for info in tiny.tensors.values():
        counts: list[int] = []
        buffer = np.empty(info.nbytes, dtype=np.uint8)
        view = tiny.read(info.name, memoryview(buffer), counts.append)
        assert view == tiny.read(info.name)
        assert sum(counts) == view.nbytes == info.nbytes


def test_a_tensor_larger_than_a_chunk_arrives_in_chunks(
    tiny: GgufModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "blk.1.ffn_up_exps.weight"
    whole = bytes(tiny.read(name))
    monkeypatch.setattr(model, "READ_CHUNK_BYTES", 10_000)
    counts: list[int] = []
    assert tiny.read(name, on_bytes=counts.append) == whole
    assert counts[:-1] == [10_000] * (len(whole) // 10_000)


def test_a_buffer_that_does_not_fit_is_refused(tiny: GgufModel) -> None:
    size = tiny.tensors["output_norm.weight"].nbytes
    for buffer in (bytearray(size - 1), bytearray(size + 1), bytes(size)):
        with pytest.raises(ValueError, match="writable buffer"):
            tiny.read("output_norm.weight", memoryview(buffer))
    with pytest.raises(KeyError):
        tiny.read("no such tensor")


def test_a_file_that_shrank_after_opening_is_reported_by_tensor(tiny: GgufModel) -> None:
    last = max(tiny.tensors.values(), key=lambda info: (info.shard, info.offset))
    path = tiny.paths[last.shard]
    with path.open("r+b") as file:
        file.truncate(last.offset + 1)
    with pytest.raises(KtopsError, match=last.name) as caught:
        tiny.read(last.name)
    assert caught.value.code == "gguf-truncated"


def test_a_file_that_vanished_after_opening_is_unreadable(tiny: GgufModel) -> None:
    tiny.paths[0].unlink()
    with pytest.raises(KtopsError) as caught:
        tiny.read("token_embd.weight")
    assert caught.value.code == "gguf-unreadable"
    with pytest.raises(KtopsError) as caught:
        tiny.metadata["tokenizer.ggml.tokens"]
    assert caught.value.code == "gguf-unreadable"


def test_threads_may_read_at_once(tiny: GgufModel) -> None:
    expected = {name: bytes(tiny.read(name)) for name in tiny.tensors}
    wrong: list[str] = []

    def work() -> None:
        wrong.extend(name for name, data in expected.items() if tiny.read(name) != data)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("kind", list(QuantType))
def test_every_type_reads_back_with_the_spread_it_was_written_with(
    tmp_path: Path, kind: QuantType
) -> None:
    written = tiny_gguf.write_tiny_gguf(tmp_path, types=tiny_gguf.uniform(kind))
    info = open_gguf(written.path).tensors["blk.1.ffn_gate_exps.weight"]
    weights = tiny_gguf.dequantized_tensors(written.path)[info.name]
    assert info.type is kind
    assert weights.shape == info.shape == (16, 256, 256)
    assert weights.dtype == np.float32
    assert abs(weights.mean()) < 0.01
    assert weights.std() == pytest.approx(1 / 16, rel=0.1)


def test_dequantising_plain_floats_changes_nothing() -> None:
    values = np.array([[1.5, -2.0], [0.25, 3.0]], dtype=np.float32)
    for kind, stored in (
        (QuantType.F32, values.tobytes()),
        (QuantType.F16, values.astype(np.float16).tobytes()),
        (QuantType.BF16, (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()),
    ):
        np.testing.assert_array_equal(dequantize(kind, stored, (2, 2)), values)


def test_dequantising_the_wrong_number_of_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="143 bytes are not 256 weights of Q4_K"):
        dequantize(QuantType.Q4_K, bytes(143), (1, 256))


def test_a_quantised_block_is_read_by_its_documented_layout() -> None:
    # Q8_0: fp16 scale, then 32 signed bytes.
    block = np.float16(0.5).tobytes() + np.arange(-16, 16, dtype=np.int8).tobytes()
    expected = np.arange(-16, 16, dtype=np.float32) / 2
    np.testing.assert_array_equal(dequantize(QuantType.Q8_0, block, (32,)), expected)


def test_type_sizes_are_those_of_the_reference_package() -> None:
    for kind in QuantType:
        reference = GGMLQuantizationType[kind.name]
        assert reference == kind
        assert GGML_QUANT_SIZES[reference] == (kind.block_size, kind.block_bytes)
        assert kind.nbytes(4 * kind.block_size) == 4 * kind.block_bytes
    with pytest.raises(ValueError, match="not whole Q4_K blocks"):
        QuantType.Q4_K.nbytes(100)


def test_a_header_of_r1s_size_opens_without_decoding_its_tokenizer(tmp_path: Path) -> None:
    path = r1_sized().write(tmp_path / "r1.gguf")
    started = time.process_time()
    opened = open_gguf(path)
    seconds = time.process_time() - started
    assert len(opened.tensors) > 1000
    assert seconds < 0.5  # 0.03 s on a 2026 server core; the bound is for slow shared machines
    assert opened.metadata["tokenizer.ggml.tokens"][129_279] == "\u0120token129279"
    assert len(opened.metadata["tokenizer.ggml.merges"]) == 127_741
    assert opened.metadata["tokenizer.ggml.merges"][-1] == "\u0120to ken127740"


def test_opening_a_model_imports_neither_torch_nor_the_gguf_package(tmp_path: Path) -> None:
    path = tiny_gguf.write_tiny_gguf(tmp_path).path
    code = (
        "import sys; from pathlib import Path; from ktops_engine.gguf import open_gguf; "
        f"open_gguf(Path({str(path)!r})); "
        "assert not {'torch', 'gguf', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
