#!/usr/bin/env bash
# Make the demo model again: tokenizer, corpus, training, evaluation, export. Needs one H100-class GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-/tmp/ktops-demo-run}
out=${2:-$run/files}
python3 -m demo_model.train --out "$run" --compile --processes "$(nproc)"
python3 -m demo_model.export_run --run "$run" --out "$out"
python3 -m demo_model.evaluate --files "$out"
