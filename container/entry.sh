#!/bin/sh
# What the image runs: under mercure's or MONAI Deploy's contract one folder, else any verb of the command line.
#   show              the manifests of the MONAI application package
#   serve CONFIG      the hospital service
set -eu

if [ "${1:-}" = show ]; then
    for name in app pkg; do
        printf '=== %s.json ===\n' "$name"
        cat "${CONCORDCT_ETC:-/etc}/monai/$name.json"
    done
elif [ $# -gt 0 ]; then
    exec concordct "$@"
elif [ -n "${MERCURE_IN_DIR:-}${MONAI_INPUTPATH:-}${HOLOSCAN_INPUT_PATH:-}" ]; then
    exec python -m concordct.serving.module
else
    exec concordct --help
fi
