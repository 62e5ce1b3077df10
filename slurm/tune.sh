#!/bin/bash
# Search for better values of a recipe with an array of jobs that share one search:
#
#   sbatch --array=0-7 --gpus-per-node=1 --time=08:00:00 slurm/tune.sh RECIPE SPACE TRIALS PROFILE [key=value ...]
#   sbatch --array=0-7 slurm/tune.sh recipes/amazon.yaml slurm/space.yaml 40 accel_configs/laptop_4bit.yaml
#
# Each task trains one trial after the other on its node, until the search has TRIALS of them; the last one trains the
# finalists and writes the best recipe. Tasks save and requeue themselves, as slurm/train.sh does.
#SBATCH --job-name=llmcls-tune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
#SBATCH --output=slurm-%x-%A_%a.out

source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
if [ $# -lt 4 ]; then
    echo "usage: sbatch --array=0-N [options] slurm/tune.sh RECIPE SPACE TRIALS PROFILE [key=value ...]" >&2
    exit 2
fi
recipe=$1 space=$2 trials=$3 profile=$4
shift 4
folder=$(python -m llmcls.folder "$recipe" "$@") || exit
log_to "$folder"
requeue_around USR1 python -m llmcls.tune "$recipe" --space "$space" --trials "$trials" --profile "$profile" "$@"
