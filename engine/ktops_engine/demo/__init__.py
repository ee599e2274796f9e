"""The embedded model `demo`: a small DeepSeek-V3 whose weights ship with the package.

`tools/demo_model/` in the repository made it and says how to make it again.
"""

from pathlib import Path


def demo_path() -> Path:
    """The folder with the GGUF shards, config.json and the tokenizer files."""
    return Path(__file__).parent
