#!/bin/bash
# Train a recipe as one job on any number of nodes and GPUs:
#
#   sbatch --nodes=2 --gpus-per-node=4 --time=08:00:00 slurm/train.sh RECIPE PROFILE [key=value ...]
#   sbatch --gpus-per-node=1 slurm/train.sh recipes/amazon.yaml accel_configs/laptop_4bit.yaml exp.seeds=[1]
#
# Two minutes before its time is up (USR1), or at a TERM, the job saves, requeues itself and goes on exactly.
# PROCESSES_PER_NODE=N (exported) replaces the number of GPUs. The log is in the experiment's folder.
#SBATCH --job-name=llmcls-train
#SBATCH --ntasks-per-node=1
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
run USR1 "$profile" llmcls.train "$recipe" "$@"
