#!/bin/sh
# Every benchmark behind a figure in the documents. Close other programs; some hours on two cores.
# OLIVE_PYTHON: an interpreter with olive-ai and onnxruntime; without it Olive is left out of cpu_peers.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
for script in mlp_pruning attention_pruning width_pruning attention_removal token_merging published_latency openvino_hints prune_time selection_speed streaming_prune bf16_kept alphas allocation distillation rtx_builds accidents cpu_peers nightly_simulation command_times end_to_end; do
    echo "== $script"
    if [ "$script" = cpu_peers ] && [ -n "${OLIVE_PYTHON:-}" ]; then
        "$python" "benchmarks/$script.py" --olive "$OLIVE_PYTHON"
    else
        "$python" "benchmarks/$script.py"
    fi
done
echo "== end_to_end, vit_tiny_auto"
"$python" benchmarks/end_to_end.py --recipe recipes/vit_tiny_auto.yaml --set budget.latency_ratio=0.6
