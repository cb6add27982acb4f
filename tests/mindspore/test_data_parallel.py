"""Data parallelism on a CPU: two processes compute the gradients of one."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "distributed" / "mindspore_data_parallel.py"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def test_the_example_runs(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    done = subprocess.run(
        [
            str(programs / "msrun"),
            "--worker_num=2",
            "--local_worker_num=2",
            f"--master_port={free_port()}",
            "--cluster_time_out=60",
            "--join=True",
            f"--log_dir={tmp_path}",
            str(SCRIPT),
        ],
        cwd=tmp_path,
        # msrun starts the first "python" in PATH
        env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "GLOG_v": "4"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = [(tmp_path / f"worker_{rank}.log").read_text("utf-8") for rank in (0, 1)]
    assert done.returncode == 0, "\n".join([done.stderr, *said])
    assert "process 0: 4 sequences, 40 steps" in said[0]
    assert "process 1: 3 sequences, 4 steps" in said[1]
    assert "gradients: at most" in said[0]
    assert re.search(r"loss: 5\.\d\d to 1\.\d\d", said[0]), said[0]
