"""Renew the versions that the course is tested with.

`python tests/renew_lock.py` asks pip what the pins of requirements.txt and tests/requirements.txt
bring along, and writes the exact versions to constraints.txt. With `--upgrade` the pins themselves
move to the newest versions first, but for PyTorch.
"""

import argparse
import json
import re

from course import ROOT
from processes import python

REQUIREMENTS = ["requirements.txt", "tests/requirements.txt", "binder/requirements.txt"]
LOCK = ROOT / "constraints.txt"
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)$", re.M)
HEAD = """\
# What the pinned requirements bring along, in the versions that CI tests: `tests/renew_lock.py`.
"""


def pins():
    "name → version of what the requirements pin."
    return {canonical(name): version for path in REQUIREMENTS
            for name, version in PIN.findall((ROOT / path).read_text())}


def locked():
    "name → version of what comes along with it."
    return dict(PIN.findall(LOCK.read_text()))


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def resolved(requirements):
    "name → version of all that pip would install into an empty environment."
    report = json.loads(python("-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
                               "--report", "-", *requirements))
    found = [package["metadata"] for package in report["install"]]
    return {canonical(one["name"]): one["version"].partition("+")[0] for one in found}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true")
    upgrade = parser.parse_args().upgrade
    versions = resolved([name if upgrade and name != "torch" else f"{name}=={version}"
                         for name, version in pins().items()])
    for path in REQUIREMENTS:
        text = PIN.sub(lambda pin: f"{pin[1]}=={versions[canonical(pin[1])]}",
                       (ROOT / path).read_text())
        (ROOT / path).write_text(text)
    others = sorted({*versions} - {*pins()})
    LOCK.write_text(HEAD + "".join(f"{name}=={versions[name]}\n" for name in others))


if __name__ == "__main__":
    main()
