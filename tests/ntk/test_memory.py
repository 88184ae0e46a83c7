"The memory that a kernel takes, measured in a process of its own: `measure_memory.py`."

import sys
from pathlib import Path

import pytest
from definitions import run_script

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "measure_memory.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["convolutions", "jacobian", "tied weight",
                                  "tied weight, ten outputs"])
def test_memory_stays_within_the_budget(name):
    """256 MB beyond the result, a tenth of the Jacobian. Another 64 MB are allowed for what no line
    of Python asks for: buffers of the BLAS and of the convolutions, and pages that the allocator
    keeps."""
    found = run_script(SCRIPT, name)
    assert abs(found["got"] - found["expected"]) < 1e-3 * abs(found["expected"]) + 1e-3
    held = {key: round(found[key] / 1e6) for key in ("extra", "symmetric", "result")}
    print(name, held)
    assert max(held["extra"], held["symmetric"]) <= 256 + held["result"] + 64, held  # MB
