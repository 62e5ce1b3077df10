# Sourced by the job scripts: one launcher per node, and what to do when the job is about to lose its nodes.
# shellcheck shell=bash

# sbatch runs a copy of the script from elsewhere; the project is where it was submitted.
cd "${SLURM_SUBMIT_DIR:-$PWD}" || exit 2
if [ -x .venv/bin/python ]; then
    export PATH="$PWD/.venv/bin:$PATH"
fi
# Export HEAD_NODE where a node's name does not lead to the network the GPUs talk over.
HEAD_NODE=${HEAD_NODE:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
PORT=$((20000 + SLURM_JOB_ID % 10000))
export HEAD_NODE PORT

# launch PROFILE MODULE [ARGUMENT ...]: one accelerate launcher on every node of the job.
launch() {
    case $1 in
        */cpu.yaml) PER_NODE=${PROCESSES_PER_NODE:-1} ;;
        *) PER_NODE=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}} ;;
    esac
    export PER_NODE
    # Single quotes: the node's number must be read on the node. The launcher ignores USR1, of which it would die;
    # the trainers it starts listen to it.
    # shellcheck disable=SC2016
    exec srun --kill-on-bad-exit=1 --ntasks-per-node=1 bash -c '
        trap "" USR1
        exec accelerate launch --config_file "$0" --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
            --main_process_ip "$HEAD_NODE" --main_process_port "$PORT" \
            --num_processes "$((PER_NODE * SLURM_NNODES))" -m "$@"' "$@"
}

# run SIGNAL PROFILE MODULE [ARGUMENT ...]: launch, and when told to stop (USR1: the time limit is near; TERM)
# tell the step by SIGNAL, wait until it has saved itself, and put the job back into the queue.
run() {
    local how=$1 stopped='' code
    shift
    launch "$@" &
    local step=$!
    # The step may be starting up and not listening yet, so it is told until it ends.
    # shellcheck disable=SC2064
    trap "stopped=yes; (while kill -s $how $step 2> /dev/null; do sleep 10; done) &" USR1 TERM
    # `wait` comes back early when a signal arrives.
    while kill -0 "$step" 2> /dev/null; do
        wait "$step"
    done
    wait "$step"
    code=$?
    if [ "$code" -ne 0 ] && [ -n "$stopped" ]; then
        # Not RUNNING: the user cancelled it, or Slurm preempted it and requeues it by itself.
        case $(scontrol show job -o "$SLURM_JOB_ID") in
            *JobState=RUNNING*)
                echo "stopped in time; job $SLURM_JOB_ID goes back into the queue"
                trap - USR1 TERM
                # Slurm ends this script when it has put the job back; ended by itself, the job could count as failed.
                scontrol requeue "$SLURM_JOB_ID" && sleep 120
                ;;
        esac
    fi
    exit "$code"
}

# log_to FOLDER: from here on, the job's words go to the results they belong to.
log_to() {
    mkdir -p "$1"
    echo "log: $1/slurm-$SLURM_JOB_ID.log"
    exec >> "$1/slurm-$SLURM_JOB_ID.log" 2>&1
    echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), nodes $SLURM_JOB_NODELIST"
}
