"""One command, several processes of this machine: torch's own elastic launcher, the one that `torchrun` has.

Each process runs the same command again, and learns from its environment which rank it is.
"""

import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from mini_transformer.config import TrainConfig, check
from mini_transformer.errors import UserError
from mini_transformer.runtime import gpu_ids, pick_device
from mini_transformer.training.distributed import LAUNCHER


def processes(config: TrainConfig) -> int:
    """How many processes a run is to have on this machine. Raises `UserError` for wrong settings, before any starts."""
    check(config)
    run = config.run
    ids = gpu_ids(run.device, run.gpus) if run.gpus is not None else []
    number = run.nproc or max(1, len(ids))
    if number > 1 and ids and number != len(ids):
        raise UserError(f"`nproc` {number}: there are {len(ids)} `gpus`, and each process needs its own")
    if number > 1 and not ids and pick_device(run.device).type != "cpu":
        raise UserError(f"`nproc` {number}: goes with `device` cpu; name the GPUs with `gpus` 0,1 or all")
    return number


def launch(argv: Sequence[str], processes: int) -> int:
    """Train in several processes with the flags of one; returns the exit code. An error of one ends them all."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # we say ourselves that contact is lost
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the name of the machine need not lead anywhere
    os.environ[LAUNCHER] = str(os.getpid())
    package = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            logging.disable(logging.CRITICAL)  # the process that failed says why
            elastic_launch(config, sys.executable)("-m", "mini_transformer", "train", *argv)
        except ChildFailedError as error:
            codes = {failure.exitcode for failure in error.failures.values()}
            return next((code for code in (130, 2) if code in codes), 1)
        except SignalException:  # Ctrl-C or SIGTERM, passed on to the processes, which have saved their state
            return 130
        finally:
            logging.disable(logging.NOTSET)
            del os.environ[LAUNCHER]
    return 0
