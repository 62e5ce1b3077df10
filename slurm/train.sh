#!/bin/bash
# Train a recipe as one job on any number of nodes and GPUs:
#
#   sbatch --nodes=2 --gpus-per-node=4 --time=08:00:00 slurm/train.sh RECIPE PROFILE [key=value ...]
#   sbatch --gpus-per-node=1 slurm/train.sh recipes/amazon.yaml accel_configs/laptop_4bit.yaml exp.seeds=[1]
#
# Two minutes before the time limit (USR1), or on TERM, the job saves a checkpoint and requeues itself. Training then
# resumes with the same result as without the interruption.
# Export PROCESSES_PER_NODE=N to replace the number of GPUs. The log is in the folder of the experiment.
#SBATCH --job-name=llmcls-train
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=slurm-%x-%j.out

source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
if [ $# -lt 2 ]; then
    echo "usage: sbatch [options] slurm/train.sh RECIPE PROFILE [key=value ...]" >&2
    exit 2
fi
recipe=$1 profile=$2
shift 2
folder=$(python -m llmcls.folder "$recipe" "$@") || exit
log_to "$folder"
launch_and_requeue USR1 "$profile" llmcls.train "$recipe" "$@"
