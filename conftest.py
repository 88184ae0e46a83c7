"""What holds for tests and notebooks alike: nbval's kernels, what is slow, what stays together."""

from functools import partial

import nbval.kernel
import nbval.plugin
import pytest
from course import DECIDE
from kernels import PatientKernel, SocketKernelManager
from processes import HANG

MEASURED = "measured"
QUICK_NOTEBOOK = "00_start_here.ipynb"
TOGETHER = ".ipynb", "test_browser.py", "test_pages.py"  # cells share a kernel, pages a browser


@pytest.hookimpl(tryfirst=True)  # before xdist reads its options
def pytest_configure(config):
    nbval.kernel.KernelManager = SocketKernelManager
    nbval.plugin.RunningKernel = PatientKernel
    config.option.maxworkerrestart = "0"  # one that dies ends the run: xdist may wait for ever


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    for item in items:
        if isinstance(item, nbval.plugin.IPyNbCell):
            item.output_timeout = HANG
            item.cell.outputs = [o for o in item.cell.outputs if o.get("data") != DECIDE]
            if item.path.name != QUICK_NOTEBOOK:
                item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "For `-n 2`: tests go one by one to a process that is free, those of a file in TOGETHER to one."
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            return path if path.endswith(TOGETHER) else nodeid

    if config.option.dist == "load":
        config.option.loadscopereorder = False  # as collected: quick ones first
        return Scheduling(config, log)


@pytest.fixture
def tell(record_property):
    "Says what was measured, below all tests: the processes of `-n 2` cannot print."
    return partial(record_property, MEASURED)


def pytest_terminal_summary(terminalreporter):
    done = [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]
    told = [text for report in done for name, text in report.user_properties if name == MEASURED]
    if told:
        terminalreporter.section(MEASURED)
        terminalreporter.write_line("\n".join(told))
