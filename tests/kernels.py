"""Kernels that talk over sockets in a folder of their own, not over ports.

Whoever starts a kernel over ports looks for free ones, and leaves them free until the kernel takes
them: two kernels that start at once may choose the same.
"""

import itertools
import tempfile

import zmq
from jupyter_client.manager import AsyncKernelManager, KernelManager
from nbval.kernel import RunningKernel
from processes import HANG

FOLDER = tempfile.TemporaryDirectory(prefix="kernels-")  # a path of 107 characters at most
NUMBERS = itertools.count()


class OverSockets:
    "Mixed into a manager of kernels. Without such sockets, on Windows, it stays as it was."

    def __init__(self, **options):
        if zmq.has("ipc"):
            options = {"transport": "ipc", "ip": f"{FOLDER.name}/{next(NUMBERS)}", **options}
        super().__init__(**options)


class SocketKernelManager(OverSockets, KernelManager):
    "For nbval, which compares the notebooks."


class AsyncSocketKernelManager(OverSockets, AsyncKernelManager):
    "For nbclient, which runs them anew."


class PatientKernel(RunningKernel):
    "nbval's kernel; there it has ten seconds to answer when it has just started."

    def await_reply(self, msg_id, timeout=None):
        super().await_reply(msg_id, HANG)
