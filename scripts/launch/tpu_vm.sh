#!/usr/bin/env bash
# A TPU VM pod: the same command on every worker over gcloud; JAX finds the hosts by itself.
#
#     TPU=my-pod ZONE=us-central2-b scripts/launch/tpu_vm.sh \
#         --config=configs/x3d.py --workdir=/mnt/shared/runs/x3d
#
# DIR: the checkout on the workers (default jaxact), set up before with `make setup` and
# `.venv/bin/python -m pip install 'jax[tpu]'`. The work dir must be one folder for all workers
# (NFS, or a bucket mounted with gcsfuse). After a preemption make the pod again and run the same
# command: it goes on from the last checkpoint.
set -euo pipefail

for name in TPU ZONE; do
    if [ -z "${!name:-}" ]; then
        echo "error: $name is not set" >&2
        exit 2
    fi
done
if [ $# -eq 0 ]; then
    echo "usage: TPU=NAME ZONE=ZONE $0 --config=RECIPE --workdir=DIR [...]" >&2
    exit 2
fi

printf -v command '%q ' .venv/bin/python -m jaxact.main "$@" --config.mesh.hosts=auto
printf -v folder '%q' "${DIR:-jaxact}"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd $folder && exec ${command% }"
