#!/bin/bash
# Predict a table with a trained run, on any number of GPUs:
#
#   sbatch --gpus-per-node=4 slurm/predict.sh RUN_FOLDER INPUT.csv OUTPUT.jsonl [PROFILE]
#
# The default PROFILE is accel_configs/ddp.yaml. A job that reaches its time limit requeues itself, and the prediction
# resumes where it stopped.
#SBATCH --job-name=llmcls-predict
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@60
#SBATCH --output=slurm-%x-%j.out

source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
if [ $# -lt 3 ]; then
    echo "usage: sbatch [options] slurm/predict.sh RUN_FOLDER INPUT OUTPUT [PROFILE]" >&2
    exit 2
fi
log_to "$(dirname "$3")"
# A prediction has nothing to save, because finished rows are already written. TERM ends it at once.
launch_and_requeue TERM "${4:-accel_configs/ddp.yaml}" llmcls.predict --run "$1" --input "$2" --output "$3"
