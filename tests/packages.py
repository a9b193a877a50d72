"""Build a package that is not ours, and run Python where it is installed."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import warm


def install(files: Mapping[str, str], home: Path) -> Path:
    """Build the package of these files, and return the folder it is installed into."""
    source, target = home / "source", home / "site"
    for name, text in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip())
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    python(target, "-m", "pip", "install", "--quiet", *offline, "--target", target, source)
    return target


def python(site: Path, *arguments: object) -> str:
    """Run Python with the packages under `site` in reach, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=_reaching(site),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def program(site: Path, name: Path | str, *arguments: object) -> str:
    """Run a program likewise, where torch and its like are loaded; return all that it said."""
    with warm.start(name, *arguments, env=_reaching(site)) as process:
        said = process.finish()
    assert process.returncode == 0, said
    return said


def _reaching(site: Path) -> Mapping[str, str]:
    # Threads that wait must not hold the processors others need.
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    reach = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return os.environ | quiet | {"PYTHONPATH": reach}
