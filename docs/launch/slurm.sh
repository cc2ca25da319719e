#!/bin/bash
# ResNet-50 on ImageNet, two nodes with eight GPUs each: `sbatch docs/launch/slurm.sh`, in a clone of the repository.
# A job that ends by its time limit, by preemption or by a lost node is queued again and resumes.
#SBATCH --job-name=flaxresnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=14
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
# One process for each GPU: under Slurm, JAX gives each process the device with the process's index on the node.
# --signal: 120 s before the time limit, every process gets SIGTERM, finishes its step, saves, and ends with status 143.

set -u
RUN=runs/imagenet       # on a file system that all nodes share
PICTURES=imagenet       # train/CLASS/*.JPEG and val/CLASS/*.JPEG, or a folder of ArrayRecord files
MAX_STARTS=20

# --kill-on-bad-exit=0: the processes end together on their own, after they have saved. Since Slurm 22.05, srun does not
# read the number of cores from the lines above.
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" python train.py --distributed \
  --data "$PICTURES" --input stream --workers 12 --image-size 224 224 \
  --recipe imagenet --model resnet50 --epochs 90 --batch-size 2048 --ghost-batch-size 128 --precision bfloat16 \
  --checkpoint-steps 500 --workdir "$RUN"
status=$?

case $status in
  143 | 75 | 134 | 137) # stopped by SIGTERM; another process was lost; JAX ended it for that reason; killed
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "$MAX_STARTS" ]; then
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$status"
