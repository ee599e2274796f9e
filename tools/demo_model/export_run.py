"""Export a trained run: the GGUF shards and the config-only folder of `ktops_engine.demo`."""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer

from demo_model.export import write_config, write_gguf
from demo_model.model import DemoModel
from demo_model.shape import Shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder that train wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shape = Shape()
    weights = torch.load(args.run / "model.pt", map_location="cpu", weights_only=True)
    tokenizer = Tokenizer.from_file(str(args.run / "tokenizer.json"))
    write_config(shape, tokenizer, args.out)
    for path in write_gguf(shape, weights, DemoModel(shape).tensor_types(), tokenizer, args.out):
        print(f"{path}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
