#!/usr/bin/env bash
# One machine, one process, all of its GPUs, or those that GPUS names:
#
#     GPUS=0,1 scripts/launch/machine.sh --config=configs/x3d.py --workdir=runs/x3d
#
# PYTHON: the interpreter (default python). SIGTERM saves first; the same command goes on.
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: [GPUS=0,1] $0 --config=RECIPE --workdir=DIR [--config.field=value ...]" >&2
    exit 2
fi
if [ -n "${GPUS:-}" ]; then
    export CUDA_VISIBLE_DEVICES="$GPUS"
fi
exec "${PYTHON:-python}" -m jaxact.main "$@"
