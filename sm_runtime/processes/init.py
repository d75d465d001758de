"""What PID 1 of a container owes its processes, where no init such as tini is PID 1."""

from __future__ import annotations

import os
import signal

from sm_runtime.processes.stop import STOPPING


def step_aside() -> None:
    """Return in a child where we are PID 1; to be called before there are threads.

    PID 1 reaps whatever is left to it, passes requests to stop on to the child, and ends with its
    status. Any other process returns at once.
    """
    if os.getpid() != 1:
        return
    awaited = {signal.SIGCHLD, *STOPPING}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would not come
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        number = signal.sigwait(awaited)
        if number != signal.SIGCHLD:
            os.kill(child, number)
            continue
        # One signal may stand for several ends.
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                status = os.waitstatus_to_exitcode(ended[1])
                os._exit(status if status >= 0 else 128 - status)
