"""The kernels of tests talk over sockets; those of the browser's JupyterLab: test_browser.py."""

from pathlib import Path

import nbval.plugin
import pytest
from kernels import AsyncSocketKernelManager, SocketKernelManager
from nbformat.v4 import new_notebook
from nbval.kernel import CURRENT_ENV_KERNEL_NAME
from processes import HANG
from refresh_notebooks import client


def test_every_kernel_has_sockets_of_its_own_with_short_names():
    managers = [kind() for kind in (SocketKernelManager, AsyncSocketKernelManager) for _ in "ab"]
    assert {manager.transport for manager in managers} == {"ipc"}
    places = [manager.ip for manager in managers]
    assert len(set(places)) == len(places)
    assert max(len(place) for place in places) < 90  # 107 for "place-number" and more is an error


def test_the_refresh_command_starts_its_kernels_over_sockets():
    assert client(new_notebook()).create_kernel_manager().transport == "ipc"


@pytest.mark.slow
def test_nbval_starts_its_kernels_over_sockets():
    kernel = nbval.plugin.RunningKernel(CURRENT_ENV_KERNEL_NAME, startup_timeout=HANG)
    try:
        kernel.await_reply(kernel.execute_cell_input("1 + 1"))
        about = kernel.km.get_connection_info()
        channels = ("shell", "iopub", "stdin", "control", "hb")
        ends = [about["ip"] + "-" + str(about[f"{channel}_port"]) for channel in channels]
        assert all(Path(end).is_socket() for end in ends)
    finally:
        kernel.stop()
