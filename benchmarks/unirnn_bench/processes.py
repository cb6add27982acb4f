"""Run the jobs of the benchmark, each in a process of its own, and describe the machine.

Libraries read the number of threads from the environment when they are loaded. So it has to be set in the environment
of a fresh process.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Generator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from unirnn import registry
from unirnn.errors import BackendError

from .jobs import Job
from .rows import measure_row
from .work import Layer

__all__ = ["describe_machine", "run"]

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run(job: Job, *, seconds: float, slow: bool) -> Generator[dict[str, Any], None, None]:
    """Measure the rows of a job in a fresh process, and yield each as soon as it is measured.

    Parameters
    ----------
    job
        The job.
    seconds, slow
        See `unirnn_bench.rows.measure_row`, whose results are yielded.

    Raises
    ------
    BackendError
        If the process ends before the last row. The message contains its exit status and the last line that it printed.
    """
    environment = {**os.environ, **dict.fromkeys(_THREADS, str(job.threads))}
    program = "from unirnn_bench.processes import worker_main; worker_main()"
    task = json.dumps({**asdict(job), "seconds": seconds, "slow": slow})
    done = 0
    # The working directory is temporary because MindSpore writes files into it.
    with tempfile.TemporaryFile("w+", errors="replace") as printed, tempfile.TemporaryDirectory() as folder:
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            text=True,
            env=environment,
            cwd=folder,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(task)
                process.stdin.close()
                for line in process.stdout:
                    yield json.loads(line)
                    done += 1
            except BaseException:  # the caller has closed the generator, or a row can't be read: stop measuring
                process.kill()
                raise
        if done < len(job.layers):
            printed.seek(0)
            last = (printed.read().strip().splitlines() or ["it printed nothing"])[-1]
            status = process.returncode
            raise BackendError(f"{job.backend}, {job.mode}: ended with {status} at {job.layers[done]}: {last}")


def worker_main() -> None:
    """Run a job, which is read from standard input, and print each row as a line of JSON."""
    rows = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a framework prints goes to standard error, not between the rows
    task = json.load(sys.stdin)
    backend = registry.load(task["backend"])
    for layer in task["layers"]:
        row = measure_row(
            backend,
            Layer(**layer),
            mode=task["mode"],
            threads=task["threads"],
            seconds=task["seconds"],
            slow=task["slow"],
        )
        rows.write(json.dumps(row) + "\n")


def describe_machine() -> dict[str, Any]:
    """Return the date, the processor, the system and the version of Python, for a report."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
