#!/bin/sh
# A scan in 64 parts, one a job of the array; docs/scale.md explains it.
#   sbatch deploy/scan-slurm.sh /archive /results
#SBATCH --job-name=facewarden-scan
#SBATCH --array=0-63
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -u
archive=$1 results=$2
# exec: so that SIGTERM reaches the scan, which ends with its results written; the next run goes on.
exec srun .venv/bin/python run_stream.py scan "$archive" --out "$results" \
  --shard "$SLURM_ARRAY_TASK_ID/64" --readers 4 --log-format json
