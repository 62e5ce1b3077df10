#!/bin/bash
# Train one combination and seed of a sweep; slurm/sweep.sh submits an array of these tasks.
#SBATCH --job-name=llmcls-task
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=slurm-%x-%A_%a.out

source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
task=$(python -m llmcls.sweep task "$1" "$SLURM_ARRAY_TASK_ID") || exit
# One per line: the recipe, the profile, and the overrides.
mapfile -t task <<< "$task"
folder=$(python -m llmcls.folder "${task[0]}" "${task[@]:2}") || exit
log_to "$folder"
launch_and_requeue USR1 "${task[1]}" llmcls.train "${task[0]}" "${task[@]:2}"
