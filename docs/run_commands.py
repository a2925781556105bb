#!/usr/bin/env python3
"""Run the commands on a page of the docs, and put in what they print.

Usage: python docs/run_commands.py docs/tasks/classification.md [FOLDER]

In a ```console block every line that begins with "$ " is run by bash; what
stood below it is replaced by its output. Any other block whose first line is
"# NAME.py" is written to that file before. All of it happens in FOLDER
(default: a temporary one). Python's warnings are off: mmengine's import prints
a dozen lines about pkg_resources.
"""
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r'^```(\w+)\n(.*?)^```$', re.M | re.S)


def run_block(text: str, folder: Path) -> str:
    """A console block with the output of its commands."""
    out = []
    commands = re.split(r'^(?=\$ )', text, flags=re.M)
    for command in filter(None, commands):
        lines = command.splitlines()
        length = 1
        while lines[length - 1].endswith('\\'):
            length += 1
        shown = '\n'.join(lines[:length])
        done = subprocess.run(
            ['bash', '-c', 'set -o pipefail; ' + shown[2:]], cwd=folder,
            env=dict(os.environ, PYTHONWARNINGS='ignore'), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        print(f'{shown}\n{done.stdout}', flush=True)
        if done.returncode:
            raise SystemExit(f'{shown!r} exits with {done.returncode}')
        lines = (line.rstrip() for line in done.stdout.splitlines())
        out += [shown, *lines]
    return '\n'.join(out) + '\n'


def run_page(page: Path, folder: Path) -> None:
    """Rewrite a page with the output of all its commands."""

    def replace(match):
        kind, text = match.groups()
        if kind == 'console':
            text = run_block(text, folder)
        elif name := re.match(r'# (\w+\.py)\n', text):
            (folder / name[1]).write_text(text)
        return f'```{kind}\n{text}```'

    page.write_text(BLOCK.sub(replace, page.read_text()))


def main() -> None:
    page = Path(sys.argv[1]).resolve()
    if sys.argv[2:]:
        run_page(page, Path(sys.argv[2]).resolve())
    else:
        with tempfile.TemporaryDirectory() as folder:
            run_page(page, Path(folder))


if __name__ == '__main__':
    main()
