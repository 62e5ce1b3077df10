#!/bin/bash
# Train every combination of a grid with every seed as a job array, and write one table of the results:
#
#   sbatch slurm/sweep.sh [GRID]          the default GRID is slurm/grid.yaml
#   bash slurm/sweep.sh [GRID]            the same, from the login node
#
# Each combination and seed is an array task with its own run folder. Tasks save checkpoints and requeue themselves, as
# slurm/train.sh does. The last job waits for all tasks and writes the summary, which lists unfinished tasks.
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
# The submitted jobs must not inherit the size and the settings of this job.
for name in ${!SLURM_@} ${!SBATCH_@}; do
    case $name in SLURM_CONF) ;; *) unset "$name" ;; esac
done
tasks=$(sbatch --parsable --array="0-$((count - 1))" "${options[@]}" slurm/task.sh "$grid")
summary=$(sbatch --parsable --dependency="afterany:$tasks" --kill-on-invalid-dep=yes --job-name=llmcls-summary \
    --ntasks=1 --output=slurm-%x-%j.out --wrap="PATH='$PATH' python -m llmcls.sweep summary '$grid'")
echo "sweep of $count runs: array job $tasks, summary job $summary"
