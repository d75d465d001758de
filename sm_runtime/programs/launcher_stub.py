"""What Open MPI starts in place of a rank or of a remote shell: it asks the runtime to do it.

``launcher_stub.py rank`` has the runtime of this host start the script with the environment that
Open MPI gave to this process; ``launcher_stub.py agent HOST WORD...`` has the runtime of HOST start
Open MPI's daemon. Either ends as the other one did. Run as a file with ``python -S -E``, and with
the bare socket module: it is started once for each rank.
"""

import _signal
import _socket
import os
import sys

SOCKET = "SM_RUNTIME_LAUNCHER_SOCKET"
"""The variable that holds the path of the runtime's socket."""
_IGNORED = (
    _signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGUSR1,
    _signal.SIGUSR2,
)  # fmt: skip


def main() -> int:
    """Say what is wanted, and wait for how it ended."""
    # Slurm's scancel signals all processes of a job, and a rank must not be given up for that: its
    # script has it, too, and may be saving. Who wants this process to end has SIGKILL.
    for number in _IGNORED:
        _signal.signal(number, _signal.SIG_IGN)
    kind, *words = (os.fsencode(word) for word in sys.argv[1:])
    path = os.environ.pop(SOCKET)
    if kind == b"rank":
        cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        words = [cpus.encode(), *(b"=".join(pair) for pair in os.environb.items())]
    body = b"\0".join([kind, *words])
    door = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    door.connect(path)
    door.sendall(len(body).to_bytes(4, "big") + body)
    answer = door.recv(1)
    return answer[0] if answer else 1


if __name__ == "__main__":
    os._exit(main())
