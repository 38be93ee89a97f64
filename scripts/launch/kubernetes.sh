#!/usr/bin/env bash
# Kubernetes: fills in a JobSet and gives it to kubectl. The cluster needs JobSet 0.6 or newer.
#
#     NAME=x3d IMAGE=registry/jaxact:1 NODES=4 DEVICES=8 CLAIM=runs \
#         scripts/launch/kubernetes.sh gpu --config=configs/x3d.py --workdir=/shared/x3d
#     NAME=x3d IMAGE=registry/jaxact:1 NODES=4 DEVICES=4 CLAIM=runs ACCELERATOR=tpu-v6e-slice \
#         TOPOLOGY=4x4 SLICES=2 scripts/launch/kubernetes.sh tpu --config=... --workdir=/shared/x3d
#
# NODES: pods of a slice or job; DEVICES: GPUs or TPU chips of each; CLAIM: a volume that all pods
# may write to, seen at MOUNT (default /shared), which must hold the work dir. DRY=1 prints the
# JobSet instead. Pods are started again, all together, up to RESTARTS times (default 20), unless
# the exit code is 2 (a mistake) or 3 (diverged).
set -euo pipefail

die() {
    echo "error: $*" >&2
    exit 2
}

kind=${1:-}
case $kind in
    gpu | tpu) shift ;;
    *) die "first argument '$kind'; allowed: gpu, tpu" ;;
esac
[ $# -gt 0 ] || die "no arguments for jaxact; at least --config and --workdir"

needed=(NAME IMAGE NODES DEVICES CLAIM)
if [ "$kind" = tpu ]; then
    needed+=(ACCELERATOR TOPOLOGY)
fi
for variable in "${needed[@]}"; do
    [ -n "${!variable:-}" ] || die "$variable is not set"
done
[[ $NAME =~ ^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$ ]] ||
    die "NAME=$NAME; allowed: up to 32 small letters, digits and -"
[[ $NODES =~ ^[1-9][0-9]*$ ]] || die "NODES=$NODES; allowed: 1 or more"
[[ $DEVICES =~ ^[1-9][0-9]*$ ]] || die "DEVICES=$DEVICES; allowed: 1 or more"
MOUNT=${MOUNT:-/shared}
PORT=${PORT:-8476}
RESTARTS=${RESTARTS:-20}
SLICES=${SLICES:-1}

# Every argument as a JSON string is one line of YAML.
list() {
    local argument
    for argument in "$@"; do
        [[ $argument != *[[:cntrl:]]* ]] || die "an argument holds a control character"
        argument=${argument//\\/\\\\}
        argument=${argument//\"/\\\"}
        printf -- '- "%s"\n' "$argument"
    done
}

filled() {
    local line indent variable
    while IFS= read -r line || [ -n "$line" ]; do
        if [[ $line =~ ^(\ *)@ARGUMENTS@$ ]]; then
            indent=${BASH_REMATCH[1]}
            list "$@" | while IFS= read -r line; do printf '%s%s\n' "$indent" "$line"; done
            continue
        fi
        for variable in NAME IMAGE NODES DEVICES CLAIM ACCELERATOR TOPOLOGY MOUNT PORT RESTARTS \
            SLICES; do
            line=${line//@$variable@/"${!variable:-}"}
        done
        printf '%s\n' "$line"
    done <"$(dirname "$0")/jobset-$kind.yaml"
}

jobset=$(filled "$@")
if [ -n "${DRY:-}" ]; then
    printf '%s\n' "$jobset"
else
    printf '%s\n' "$jobset" | kubectl apply -f -
fi
