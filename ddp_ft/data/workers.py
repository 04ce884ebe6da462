"""The number of processes that read samples."""

from ddp_ft.distributed.environment import usable_cores

_MOST_WORKERS = 16  # some 600 images/s each are more than fine-tuning on one GPU takes; each costs memory


def default_workers(device_type: str, local_world_size: int) -> int:
    """The number of loader processes of a rank, from the cores that this process may use.

    CUDA: all of the rank's cores but one, which drives the GPU; at least one, to decode while the GPU computes.
    CPU: one if the rank has two cores or more, because the model's own threads use the others.
    """
    cores = usable_cores() // local_world_size
    if device_type == "cpu":
        return min(1, cores // 2)
    return min(max(1, cores - 1), _MOST_WORKERS)
