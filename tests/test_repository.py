"""What surrounds the notebooks: pinned requirements, Binder, Colab, CI and the linter."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from course import PATHS, ROOT, code, read
from processes import HANG, python, run
from refresh_notebooks import repository, write_addresses
from renew_lock import LOCK, REQUIREMENTS, canonical, locked, pins

PYTHON_FIRST = f"{Path(sys.executable).parent}:/usr/bin:/bin"  # a PATH: `python` is this one


def copy_course(folder):
    "The index and the package: what a notebook imports."
    shutil.copy(ROOT / "ntk_helpers.py", folder)
    shutil.copytree(ROOT / "ntk", folder / "ntk", ignore=shutil.ignore_patterns("__pycache__"))


# Requirements


def requirements(path):
    lines = (ROOT / path).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("path", REQUIREMENTS)
def test_every_requirement_is_pinned_exactly(path):
    for line in requirements(path):
        pinned = re.fullmatch(r"[A-Za-z0-9_.-]+==\d+(\.\d+)*", line)
        assert pinned or line.startswith(("--extra-index-url ", "-c ")), line


def test_binder_installs_what_a_learner_installs_with_the_smaller_torch():
    index, lock, *rest = requirements("binder/requirements.txt")
    assert index == "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert rest == requirements("requirements.txt")[1:]
    assert "torch==2.13.0" in rest


@pytest.mark.parametrize("path", REQUIREMENTS)
def test_all_install_with_the_lock(path):
    [where] = [line[3:] for line in requirements(path) if line.startswith("-c ")]
    assert ((ROOT / path).parent / where).samefile(LOCK)


def test_pins_and_lock_are_what_is_installed():
    found = {canonical(one.metadata["Name"]): one.version.partition("+")[0]
             for one in distributions()}
    asked = {**pins(), **locked()}
    assert not {*pins()} & {*locked()}
    assert {name: found.get(name) for name in asked} == asked
    if os.environ.get("CI") == "true":  # elsewhere an environment may hold more
        assert not {*found} - {*asked} - {"pip", "ntk-course"}


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_pins_and_lock_go_together_for_other_versions_of_python(version, tmp_path):
    "README promises them. pip resolves for them, as far as wheels go, without such a Python."
    python("-m", "pip", "install", "--dry-run", "--ignore-installed", "--target", str(tmp_path),
           "--only-binary", ":all:", "--python-version", version, "-r", "requirements.txt",
           cwd=ROOT)


# Colab


def test_all_notebooks_fetch_it_alike():
    "So that to try one is to try them all."
    lines = {tuple(re.findall(r"^if not Path.*\n.*\n.*\n.*$", code(read(path))[0].source, re.M))
             for path in PATHS}
    assert len(lines) == 1 and len(*lines) == 1, lines


@pytest.mark.slow
@pytest.mark.parametrize("path", [PATHS[0], PATHS[-1]], ids=lambda path: path.stem)
def test_a_notebook_opened_alone_fetches_the_course(path, tmp_path):
    "Nothing beside it, as on Colab. In place of the address, a repository on this machine."
    course, alone = tmp_path / "course", tmp_path / "content"
    course.mkdir()
    alone.mkdir()
    copy_course(course)
    shutil.copy(LOCK, course)
    git = ["git", "-C", str(course), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "course"]):
        assert run(*git, *command).returncode == 0
    first_cell = code(read(path))[0].source
    address = re.search(r"https://github\.com/\S+", first_cell)[0]
    where = "import inspect\nprint(inspect.getfile(check))"
    (alone / "first_cell.ipy").write_text(f"{first_cell}\n{where}\n", encoding="utf-8")
    environment = {**os.environ, "GIT_CONFIG_COUNT": "1",
                   "GIT_CONFIG_KEY_0": f"url.{course.as_uri()}.insteadOf",
                   "GIT_CONFIG_VALUE_0": address,
                   "IPYTHONDIR": str(tmp_path / "ipython"), "PYTHONPATH": ""}
    done = run(sys.executable, "-m", "IPython", "first_cell.ipy", cwd=alone, env=environment)
    assert (alone / "ntk-course/ntk_helpers.py").exists(), done.stdout + done.stderr
    assert "ntk-course/ntk/notebook/exercises.py" in done.stdout, done.stdout + done.stderr
    assert "ERROR" not in done.stdout + done.stderr  # of pip, whose widgets are those of the lock


# Binder


def test_binder_runs_this_python():
    version = (ROOT / "binder/runtime.txt").read_text().strip()
    assert version == f"python-{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.slow
def test_repo2docker_takes_the_binder_folder():
    "What it would build for Binder, it prints without Docker."
    done = run(sys.executable, "-m", "repo2docker", "--no-build", "--debug", ".", cwd=ROOT)
    dockerfile = done.stdout + done.stderr
    assert done.returncode == 0, dockerfile
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"Building conda environment for python={version}" in dockerfile
    assert re.findall(r"pip install .*-r (\S+)", dockerfile) == ['"binder/requirements.txt"']
    whole = re.search(r"^COPY .* src/ ", dockerfile, re.M).start()  # with the lock in it
    assert whole < dockerfile.index('install --no-cache-dir -r "binder/requirements.txt"')
    assert "RUN ./binder/postBuild" in dockerfile
    assert "/binder/start" in re.search("R2D_ENTRYPOINT=.*", dockerfile)[0]


@pytest.fixture
def binder(tmp_path):
    "A copy of what Binder needs, for its scripts to write in."
    shutil.copytree(ROOT / "binder", tmp_path / "binder")
    copy_course(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_binder_start_gives_one_thread_and_becomes_the_command(binder):
    tell = "import os, sys; print(os.environ['OMP_NUM_THREADS'], os.getpid(), sys.argv[1:])"
    process = subprocess.Popen(["binder/start", sys.executable, "-c", tell, "two words"],
                               cwd=binder, stdout=subprocess.PIPE, text=True)
    assert process.communicate(timeout=HANG)[0] == f"1 {process.pid} ['two words']\n"
    assert process.returncode == 0


@pytest.mark.slow
def test_binder_start_ends_as_the_command_ends(binder):
    end = "raise SystemExit(7)"
    assert run("binder/start", sys.executable, "-c", end, cwd=binder).returncode == 7


@pytest.mark.slow
def test_binder_post_build_warms_the_font_cache_and_compiles(binder):
    environment = {"PATH": PYTHON_FIRST, "HOME": str(binder),
                   "MPLCONFIGDIR": str(binder / "matplotlib")}
    done = run("binder/postBuild", cwd=binder, env=environment)
    assert done.returncode == 0, done.stderr
    assert list((binder / "matplotlib").glob("fontlist-*.json"))
    for source in [binder / "ntk_helpers.py", *(binder / "ntk").rglob("*.py")]:
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")), source


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ntk_helpers.py", "ntk/kernel.py"])
def test_binder_post_build_ends_with_an_error_if_a_step_fails(name, binder):
    (binder / name).write_text("no python")
    assert run("binder/postBuild", cwd=binder, env={"PATH": PYTHON_FIRST}).returncode


# Addresses


def test_one_line_of_readme_moves_all_addresses(tmp_path):
    texts = {}
    for name in "README.md", "CITATION.cff":
        texts[name] = (ROOT / name).read_text(encoding="utf-8")
        moved = texts[name].replace(f"[repository]: https://github.com/{repository()}",
                                    "[repository]: https://github.com/somebody/else")
        (tmp_path / name).write_text(moved, encoding="utf-8")
    owner, name = repository().split("/")
    write_addresses(tmp_path, "somebody/else")
    for file, text in texts.items():
        now = (tmp_path / file).read_text(encoding="utf-8")
        assert owner in text and owner not in now and f"/{name}" not in now
        assert now.count("somebody") == text.count(owner)
    write_addresses(tmp_path, f"{owner}/{name}")
    assert {file: (tmp_path / file).read_text(encoding="utf-8") for file in texts} == texts


# Tests, and CI


@pytest.mark.slow
def test_quick_tests_run_the_first_notebook_and_no_other():
    said = python("-m", "pytest", "notebooks", "-m", "not slow", "--collect-only", "-q", cwd=ROOT)
    assert set(re.findall(r"(\w+)\.ipynb::", said)) == {PATHS[0].stem}


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md"])
def test_links_resolve_and_the_quick_tests_are_told(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        assert link.startswith(("http", "#")) or (ROOT / link.partition("#")[0]).exists(), link
    assert '.venv/bin/python -m pytest -m "not slow" -n 2' in text


@pytest.mark.slow
def test_ruff_finds_nothing():
    done = run(sys.executable, "-m", "ruff", "check", ".", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


COMMAND_THAT_FAILS = """
<!-- command: test -->
```sh
echo ran && exit 3
```
```sh
exit 4
```
"""
NO_COMMAND = """
```sh
echo ran
```
"""


@pytest.mark.slow
@pytest.mark.parametrize(("readme", "status", "says"), [
    (COMMAND_THAT_FAILS, 3, "ran"),
    (NO_COMMAND, 1, "README.md has no fenced block"),
], ids=["fails as README's command fails", "fails without the command"])
def test_ci_runs_the_test_command_of_readme(tmp_path, readme, status, says):
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "README.md").write_text(readme)
    dpkg = tmp_path / "bin/dpkg"  # says that all packages are there
    dpkg.parent.mkdir()
    dpkg.write_text("#!/bin/sh\n")
    dpkg.chmod(0o755)
    done = run(tmp_path / ".ci/run", env={"PATH": f"{dpkg.parent}:/usr/bin:/bin"})
    assert done.returncode == status
    assert says in done.stdout + done.stderr


def test_the_workflow_on_github_runs_ci_and_nothing_else():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert {*workflow[True]} == {"push", "pull_request", "schedule"}  # YAML's word for on
    [job] = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert [step["uses"].split("@")[0] for step in job["steps"] if "uses" in step] == \
        ["actions/checkout"]


# For teachers


@pytest.mark.slow
def test_the_series_without_solutions(tmp_path):
    python("tests/without_solutions.py", str(tmp_path / "class"), cwd=ROOT)
    for path in PATHS:
        before = [cell.source for cell in read(path).cells]
        after = [cell.source for cell in read(tmp_path / "class/notebooks" / path.name).cells]
        given_away = [source for source in before if "<summary>Solution" in source]
        assert given_away and not any("<summary>Solution" in source for source in after)
        left_out = "".join(re.findall(r"<details><summary>Solution.*?</details>",
                                      "".join(given_away), re.S))
        lost = sum(map(len, before)) - sum(map(len, after)) - len(left_out)
        assert 0 <= lost < 4 * len(given_away), "more than solutions and blank lines is gone"
    assert (tmp_path / "class/ntk/notebook/questions.toml").exists()


def test_how_to_cite_is_readable():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license", "version"} <= {*citation}
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text()


def test_the_site_is_published_from_the_default_branch_with_few_permissions():
    workflow = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text())
    assert workflow[True] == "push"  # YAML takes the key `on` for a truth value
    build, publish = workflow["jobs"].values()
    assert build["if"] == "github.ref_name == github.event.repository.default_branch"
    assert publish["needs"] == "build"
    assert (workflow["permissions"], build.get("permissions")) == ({"contents": "read"}, None)
    assert publish["permissions"] == {"pages": "write", "id-token": "write"}
    actions = [step["uses"].split("@")[0] for job in (build, publish) for step in job["steps"]
               if "uses" in step]
    assert actions == ["actions/checkout", "actions/setup-python", "actions/upload-pages-artifact",
                       "actions/deploy-pages"]
    assert [step["run"] for step in build["steps"] if "run" in step] == [
        "pip install -r requirements.txt -r tests/requirements.txt",
        "python tests/build_site.py _site"]
