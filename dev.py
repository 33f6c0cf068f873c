#!/usr/bin/env python3
"""Set up a virtual environment and do one thing in it; needs nothing but Python 3.11 or newer.

python3 dev.py demo     transcribe examples/sample.wav with the model that the package carries
python3 dev.py test     format, lint, types and all tests
python3 dev.py fast     the fast tier of the tests only
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
BIN = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
STAMP = ENVIRONMENT / "installed"

COMMANDS = {
    "demo": [["wav2vec2-conformer", "transcribe", "examples/sample.wav"]],
    "test": [
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        ["mypy"],
        ["python", "-m", "pytest", "-n", "auto"],
    ],
    "fast": [["python", "-m", "pytest", "-n", "auto", "-m", "not slow"]],
}


def run(command: list[str]) -> None:
    """Run a program of the environment; its failure is ours."""
    program = BIN / command[0]
    # A test process a core: more threads in each would only wait for each other.
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if "pytest" in command else {})
    code = subprocess.run([str(program), *command[1:]], cwd=ROOT, env=environment).returncode
    if code:
        sys.exit(code)


def set_up(groups: list[str]) -> None:
    """Create the environment and install the project, unless that was done for these files already."""
    files = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    wanted = "".join(path.read_text() for path in files) + " ".join(groups)
    done = STAMP.read_text() if STAMP.is_file() else ""
    if done == wanted or (done and not groups and done.startswith(wanted)):
        return
    if not (BIN / ("python.exe" if os.name == "nt" else "python")).exists():
        print("creating .venv", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    print("installing (a few minutes the first time)", file=sys.stderr)
    pip = ["python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt"]
    run([*pip, "torch"])  # first and alone, so that nothing asks for another build of it
    run([*pip, "-e", ".", *(requirement for group in groups for requirement in requirements(group))])
    STAMP.write_text(wanted)


def requirements(group: str) -> list[str]:
    """The packages of a dependency group of pyproject.toml (pip of Python 3.11 cannot read groups itself)."""
    import tomllib

    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return list(groups[group])


def main() -> None:
    """Parse, set up, run."""
    if sys.version_info < (3, 11):  # noqa: UP036  (the message is for those who have an older one)
        sys.exit("dev.py needs Python 3.11 or newer")
    if len(sys.argv) != 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    set_up([] if sys.argv[1] == "demo" else ["dev"])
    for command in COMMANDS[sys.argv[1]]:
        run(command)


if __name__ == "__main__":
    main()
