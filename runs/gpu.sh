#!/bin/sh
# What to run when a GPU is lent: one piece of 9 minutes; call it again until it says "report".
# The folder OUT is carried from piece to piece; checkpoints in it stay below 16 MB a file.
#
#   OUT=out sh runs/gpu.sh
#   DRY=1 OUT=out sh runs/gpu.sh      # the same on a CPU: three steps a phase, no table
set -eu
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu-out}
PYTHON=${PYTHON:-python3}
if [ -n "${DRY:-}" ]; then
    set -- --recipe small --most-steps 3 --models
else
    $PYTHON -c 'import torch; assert torch.cuda.is_available(), "no GPU"; print(torch.cuda.get_device_name())'
    set -- --recipe gpu --workers 8
fi
exec env PYTHONPATH=src $PYTHON -m benchmarks.papers --folder "$OUT" --minutes "${MINUTES:-9}" "$@"
