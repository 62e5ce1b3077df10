#!/bin/bash
# Try every combination of a grid, each with every seed, as an array of jobs, and write one table of them all:
#
#   sbatch slurm/sweep.sh [GRID]          GRID is slurm/grid.yaml if left out
#   bash slurm/sweep.sh [GRID]            the same from the login node
#
# Each combination and seed is an array task with a run folder of its own; tasks save and requeue themselves as
# slurm/train.sh does. The last job waits for all of them and writes the summary, naming those that failed.
#SBATCH --job-name=llmcls-sweep
#SBATCH --ntasks=1
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$PWD}"
if [ -x .venv/bin/python ]; then
    export PATH="$PWD/.venv/bin:$PATH"
fi
grid=${1:-slurm/grid.yaml}
count=$(python -m llmcls.sweep count "$grid")
mapfile -t options < <(python -m llmcls.sweep sbatch "$grid")
# The jobs are their own: of this one's size and place in the queue they inherit nothing.
for name in ${!SLURM_@} ${!SBATCH_@}; do
    case $name in SLURM_CONF) ;; *) unset "$name" ;; esac
done
tasks=$(sbatch --parsable --array="0-$((count - 1))" "${options[@]}" slurm/task.sh "$grid")
summary=$(sbatch --parsable --dependency="afterany:$tasks" --kill-on-invalid-dep=yes --job-name=llmcls-summary \
    --ntasks=1 --output=slurm-%x-%j.out --wrap="PATH='$PATH' python -m llmcls.sweep summary '$grid'")
echo "sweep of $count runs: array job $tasks, summary job $summary"
