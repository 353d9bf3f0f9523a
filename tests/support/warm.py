"""Python processes that need no seconds to import everything: forks of one that has.

A fork runs its script as `python script ...` does, as `__main__` and to the interpreter's own end,
with its own streams, environment, folder and handlers of signals; only what is imported is there
already. Its exit code, its tracebacks and what signals do to it are those of any process.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

__all__ = ["Job", "run_all"]

# (words of the command after `python`, environment, folder)
Job = tuple[Sequence[str], dict[str, str], Path]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# ---- The side of a test --------------------------------------------------------------------------


def run_all(jobs: Sequence[Job], patience: float) -> list[subprocess.CompletedProcess[str]]:
    """Scripts side by side, each to its end.

    Raises:
        TimeoutError: one takes more than `patience` seconds; all are killed.
    """
    with ThreadPoolExecutor(2 * len(jobs)) as pool:
        streams = [[os.pipe(), os.pipe()] for _ in jobs]
        asked = [
            {
                "words": [str(word) for word in words],
                "environment": environment,
                "folder": str(folder),
                # As a process that is started by `exec` inherits them.
                "ignored": [n for n in SIGNALS if signal.getsignal(n) == signal.SIG_IGN],
            }
            for words, environment, folder in jobs
        ]
        server, _ = _server()
        message = json.dumps({"jobs": asked, "patience": patience}).encode()
        server.sendall(len(message).to_bytes(4, "big") + message)
        inlets = [inlet for job in streams for _, inlet in job]
        socket.send_fds(server, [b"!"], inlets)
        for inlet in inlets:
            os.close(inlet)
        said = [[pool.submit(_read, outlet) for outlet, _ in job] for job in streams]
        texts = [[text.result() for text in job] for job in said]
        codes = json.loads(_message(server))
    if codes is None:
        raise TimeoutError(f"{[job[0] for job in jobs]} took more than {patience} s: {texts}")
    return [
        subprocess.CompletedProcess(list(words), code, out, err)
        for (words, _, _), code, (out, err) in zip(jobs, codes, texts, strict=True)
    ]


@cache
def _server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The process that is forked, one for each process of tests. It ends with its socket."""
    ours, its = socket.socketpair()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": os.devnull}
    command = [sys.executable, __file__, str(its.fileno())]
    process = subprocess.Popen(command, pass_fds=[its.fileno()], env=environment)
    its.close()
    return ours, process


def _read(outlet: int) -> str:
    with open(outlet, encoding="utf-8") as stream:
        return stream.read()


def _message(connection: socket.socket) -> bytes:
    size = int.from_bytes(_exactly(connection, 4), "big")
    return _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or none where the other side has gone."""
    found = b""
    while len(found) < size:
        more = connection.recv(size - len(found))
        if not more:
            return b""
        found += more
    return found


# ---- The side of the process that is forked ------------------------------------------------------


def serve(connection: socket.socket) -> dict | None:
    """Fork for each job that is asked for; what is returned is a job, in its fork, or None at the
    end."""
    while asked := _message(connection):
        order = json.loads(asked)
        jobs = order["jobs"]
        _, inlets, _, _ = socket.recv_fds(connection, 1, 2 * len(jobs))
        forks = []
        for number, job in enumerate(jobs):
            own = inlets[2 * number : 2 * number + 2]
            fork = os.fork()
            if fork == 0:
                _become(job, own)
                connection.close()
                for inlet in inlets:
                    os.close(inlet)
                return job
            forks.append(fork)
        for inlet in inlets:
            os.close(inlet)
        codes = json.dumps(_ends(forks, order["patience"])).encode()
        connection.sendall(len(codes).to_bytes(4, "big") + codes)
    return None


def _become(job: dict, streams: list[int]) -> None:
    """Take over the streams, environment, folder and handlers of a job."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, stream in enumerate([nothing, *streams]):
        os.dup2(stream, number)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    for number in SIGNALS:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in job["ignored"] else default)


def _ends(forks: list[int], patience: float) -> list[int] | None:
    """Exit codes as `subprocess` gives them; None where one hung, and all are killed."""

    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, patience)
    codes: list[int] = []
    try:
        for fork in forks:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]))
    except TimeoutError:
        for fork in forks[len(codes) :]:
            os.kill(fork, signal.SIGKILL)
            os.waitpid(fork, 0)
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return codes


def main() -> None:
    tests = Path(__file__).parents[1]
    sys.path[:1] = [str(tests.parent), str(tests)]
    import accelerate.state  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import torch._dynamo  # noqa: F401  # which optimisers load

    import fastgen.jobs.command_line  # noqa: F401
    import fastgen.jobs.distillation  # noqa: F401
    import support.toy  # noqa: F401

    job = serve(socket.socket(fileno=int(sys.argv[1])))
    if job is not None:
        sys.argv[:] = job["words"]
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
