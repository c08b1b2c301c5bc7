#!/bin/sh
# What to run where there is a GPU: one piece of 9 minutes; call it again until it says "done".
# The folder OUT is carried from piece to piece; checkpoints in it stay below 16 MB a file.
#
#   OUT=out sh runs/gpu.sh
#   RECIPE=paper OUT=out sh runs/gpu.sh  # the papers' own networks, weights and schedules
#   DRY=1 OUT=out sh runs/gpu.sh         # the same on a CPU: three steps a phase
set -eu
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu-out}
PYTHON=${PYTHON:-python3}
MINUTES=${MINUTES:-9}
RECIPE=${RECIPE:-gpu}
export PYTHONPATH=src:. CONCORDCT_RUNS="$OUT"
if [ -n "${DRY:-}" ]; then
    RECIPE=small
    STEPS="--most-steps 3"
else
    STEPS=
    $PYTHON -c 'import torch; assert torch.cuda.is_available(), "no GPU"; print(torch.cuda.get_device_name())'
fi
# Milliseconds a slice of concord, and 300 slices from disk to disk: docs/results/gpu-speed.md.
if [ ! -e "$OUT/speed" ]; then
    mkdir -p "$OUT"
    # shellcheck disable=SC2086
    $PYTHON -m benchmarks.gpu_speed ${DRY:+--device cpu --matrix 64 --slices 3}
    touch "$OUT/speed"
fi
$PYTHON -m benchmarks.papers_cohort --minutes "$MINUTES"
for METHOD in ltdiffpp diffusionct; do
    if [ ! -e "$OUT/models/$METHOD-$RECIPE" ]; then
        # shellcheck disable=SC2086
        exec $PYTHON -m concordct.cli train $METHOD "$OUT/cohort/pairs.csv" -o "$OUT/models/$METHOD-$RECIPE" \
            --recipe "$RECIPE" --minutes "$MINUTES" $STEPS
    fi
done
echo done
