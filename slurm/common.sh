# Sourced by the job scripts: starts one launcher per node, and requeues a job that reaches its time limit.
# shellcheck shell=bash

# sbatch runs a copy of the script from another folder. The project is in the folder where the job was submitted.
cd "${SLURM_SUBMIT_DIR:-$PWD}" || exit 2
if [ -x .venv/bin/python ]; then
    export PATH="$PWD/.venv/bin:$PATH"
fi
# Export HEAD_NODE if the name of a node does not resolve to the network that the GPUs use.
HEAD_NODE=${HEAD_NODE:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
export HEAD_NODE

# free_port: print a port of this node, the head node, that nobody listens on. Jobs begin to look at different numbers.
# The numbers are below those that Linux gives to outgoing connections, so none is taken before the launcher starts.
free_port() {
    python - "$SLURM_JOB_ID" << 'END'
import socket
import sys

both = socket.has_dualstack_ipv6()
for i in range(10000):
    port = 20000 + (int(sys.argv[1]) + i) % 10000
    try:
        family = socket.AF_INET6 if both else socket.AF_INET
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError:
        continue
    print(port)
    sys.exit()
sys.exit("error: every port from 20000 to 29999 is taken on this node")
END
}

# launch PROFILE MODULE [ARGUMENT ...]: start one accelerate launcher on every node of the job.
launch() {
    case $1 in
        */cpu.yaml) PER_NODE=${PROCESSES_PER_NODE:-1} ;;
        *) PER_NODE=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}} ;;
    esac
    if [ "${SLURM_CPUS_ON_NODE:-2}" -lt $((2 * PER_NODE)) ]; then
        echo "warning: $PER_NODE processes share $SLURM_CPUS_ON_NODE cores; submit with --cpus-per-task=$((4 * PER_NODE))"
    fi
    PORT=$(free_port) || exit
    export PER_NODE PORT IGNORED
    # Without a number of cores of its own, the step has all cores that the job has on the node; srun would bind it to
    # one of them, because the launcher is one task.
    unset SRUN_CPUS_PER_TASK SLURM_CPUS_PER_TASK
    # Single quotes: SLURM_NODEID must be read on the node. The launcher ignores the signals that the processes handle;
    # PET_SIGNALS_TO_HANDLE keeps the launcher of torch from handling them instead.
    # shellcheck disable=SC2016
    exec srun --kill-on-bad-exit=1 --ntasks-per-node=1 --cpu-bind=none bash -c '
        trap "" $IGNORED
        case $IGNORED in *TERM*) export PET_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT ;; esac
        exec accelerate launch --config_file "$0" --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
            --main_process_ip "$HEAD_NODE" --main_process_port "$PORT" \
            --num_processes "$((PER_NODE * SLURM_NNODES))" -m "$@"' "$@"
}

# launch_and_requeue SIGNAL PROFILE MODULE [ARGUMENT ...]: launch, and requeue as below.
launch_and_requeue() {
    IGNORED=USR1
    if [ "$1" != TERM ]; then
        IGNORED='USR1 TERM'
    fi
    requeue_around "$1" launch "${@:2}"
}

# requeue_around SIGNAL COMMAND [ARGUMENT ...]: run a command. On USR1 (the time limit is near) or TERM, send SIGNAL to it,
# wait until it has saved a checkpoint, and put the job back into the queue.
#
# SIGNAL is USR1 for a training, which saves on USR1 and TERM. Slurm sends TERM to every process of a job that it cancels
# or preempts. The launcher ignores both: it would end at once, or end the processes after 30 seconds, while they save.
# SIGNAL is TERM for processes that have nothing to save and may end at once.
requeue_around() {
    local signal=$1 stopped='' code
    shift
    "$@" &
    local step=$!
    # The step may still be starting and not handle signals yet, so the signal is repeated until the step ends.
    # shellcheck disable=SC2064
    trap "stopped=yes; (while kill -s $signal $step 2> /dev/null; do sleep 10; done) &" USR1 TERM
    # `wait` returns early when a signal arrives.
    while kill -0 "$step" 2> /dev/null; do
        wait "$step"
    done
    wait "$step"
    code=$?
    if [ "$code" -ne 0 ] && [ -n "$stopped" ]; then
        # In any other state than RUNNING, the user has cancelled the job, or Slurm has preempted and requeued it.
        case $(scontrol show job -o "$SLURM_JOB_ID") in
            *JobState=RUNNING*)
                echo "stopped in time; job $SLURM_JOB_ID goes back into the queue"
                trap - USR1 TERM
                # Slurm ends this script after the requeue. If the script ended first, the job could count as failed.
                scontrol requeue "$SLURM_JOB_ID" && sleep 120
                ;;
        esac
    fi
    exit "$code"
}

# log_to FOLDER: write the rest of the output to a log file in FOLDER.
log_to() {
    mkdir -p "$1"
    echo "log: $1/slurm-$SLURM_JOB_ID.log"
    exec >> "$1/slurm-$SLURM_JOB_ID.log" 2>&1
    echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), nodes $SLURM_JOB_NODELIST"
}
