"""`ktops serve` and `ktops chat` for real: the engine, the server and the demo model."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import httpx
import numpy as np
import pytest
from gguf import GGUFWriter
from serve_process import KEY

from ktops_engine.demo import demo_path

pytestmark = pytest.mark.usefixtures("native_build")

QUESTION = [{"role": "user", "content": "你是谁?"}]


def test_serve_answers_until_sigterm_and_leaves_nothing(serve):
    server = serve("--json", "--cpu-infer", "65", "--served-model-name", "deepseek")
    assert server.wait_for("plan")["threads"] >= 1
    ready = server.wait_for("ready")
    assert ready["model"] == "deepseek"
    assert "--cpu-infer 65 is more than" in server.stderr
    assert KEY not in server.stderr

    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=ready["url"], headers=headers, timeout=60) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "deepseek"
        body = {"model": "deepseek", "messages": QUESTION, "max_tokens": 4}
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 4
        assert httpx.get(f"{ready['url']}/v1/models").status_code == 401

    port = int(ready["url"].rsplit(":", 1)[1])
    assert server.end(signal.SIGTERM) == 143
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_quiet_prints_the_url_alone_and_ctrl_c_is_130(serve):
    server = serve("-q")
    url = server.line().strip()
    assert httpx.get(f"{url}/health").status_code == 200
    assert server.end(signal.SIGINT) == 130
    assert server.process.stdout.read() == ""
    assert server.stderr == ""


def test_a_signal_while_loading_ends_at_once(serve):
    server = serve("--json")
    server.wait_for("plan")
    assert server.end(signal.SIGTERM) == 143


def test_chat_brings_its_own_server(ktops):
    ran = ktops(
        "chat", "demo", "-p", "你是谁?", "--temperature", "0", "--max-new-tokens", "4", "--json"
    )
    assert ran.status == 0, ran.stderr
    assert ran.document["model"] == "demo"
    assert ran.document["usage"]["completion_tokens"] == 4
    assert ran.document["reasoning"] + ran.document["answer"] != ""


def test_a_port_in_use_is_found_before_anything_is_loaded(ktops):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = ktops("serve", "--port", str(port))
    assert ran.status == 1
    assert f"{port}" in ran.stderr
    assert "already in use" in ran.stderr
    assert f"Fix: ktops serve --port {port + 1}" in ran.stderr
    assert "plan" not in ran.stderr


def test_a_text_file_named_gguf_is_refused(ktops, work_dir: Path):
    (work_dir / "model.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    ran = ktops("serve", "--port", "0", "--gguf-path", "model.gguf")
    assert ran.status == 1
    assert "model.gguf" in ran.stderr
    assert "\n  Fix: " in ran.stderr


def test_a_model_of_another_architecture_is_refused(ktops, work_dir: Path):
    writer = GGUFWriter(work_dir / "model.gguf", "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ran = ktops("serve", "--port", "0", "--gguf-path", "model.gguf")
    assert ran.status == 1
    assert "llama" in ran.stderr
    assert "\n  Fix: " in ran.stderr


def test_a_truncated_shard_is_refused(ktops, work_dir: Path):
    for shard in demo_path().glob("*.gguf"):
        (work_dir / shard.name).write_bytes(shard.read_bytes()[:-4096])
    ran = ktops("serve", "--port", "0", "--gguf-path", str(work_dir))
    assert ran.status == 1
    assert "-of-00002.gguf" in ran.stderr
    assert "\n  Fix: " in ran.stderr


def test_an_empty_folder_is_refused(ktops, work_dir: Path):
    ran = ktops("serve", "--port", "0", "--gguf-path", str(work_dir))
    assert ran.status == 1
    assert "\n  Fix: " in ran.stderr


def test_a_context_the_model_does_not_span_is_usage(ktops):
    ran = ktops("serve", "demo", "--port", "0", "--ctx-size", "100000000")
    assert ran.status == 2
    assert "--ctx-size 100000000" in ran.stderr


def test_no_compiler_and_no_library_is_refused_with_the_command(ktops, monkeypatch, tmp_path):
    monkeypatch.setenv("KTOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for args in (["build"], ["serve", "demo", "--port", "0"], ["chat", "-p", "hello"]):
        ran = ktops(*args)
        assert ran.status == 1
        assert "1 failure (cc.version)" in ran.stderr or args[0] == "chat"
        assert "\n  cc.version  g++ is not installed, needs g++ 11" in ran.stderr
        assert "apt-get install" in ran.stderr.partition("\n  Fix: ")[2]


def test_build_says_where_the_library_is_and_why_it_is_so(ktops, native_build):
    assert ktops("build", "-q").stdout == f"{native_build.path}\n"
    assert ktops("build", "--json").document["path"] == str(native_build.path)
    ran = ktops("build")
    human = ran.stdout
    assert "  check   6 of 6 ok\n" in ran.stderr
    assert f"library   {native_build.path}" in human
    assert native_build.compiler in human
    assert "one node has memory" in human or "nodes have memory" in human
