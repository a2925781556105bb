#!/usr/bin/env python3
"""A C++ compiler that reads torch's headers once, not once a file.

tools/setup_env.py sets it as CXX while it builds mmcv: of the 25 CPU seconds
that one of its files takes, 20 go into the same headers of torch. The first
file to compile makes a precompiled header with its own flags; every file
includes that first, which changes nothing in what it means. Where there is no
such header, or a file does not compile with it, the file is compiled as ever.
REAL_CXX is the compiler, PRECOMPILED a folder.
"""
import fcntl
import os
import shlex
import subprocess
import sys
from pathlib import Path

HEADER = '#include <torch/types.h>\n#include <vector>\n'
# Options of one file, which are not for the header: with a value, without.
OF_A_FILE = ('-o', '-MF'), ('-c', '-MMD', '-MD')


def header_flags(arguments):
    """The arguments that a header needs to fit a file compiled with these."""
    flags, skip = [], False
    for argument in arguments:
        if skip or argument in OF_A_FILE[1] or argument.endswith('.cpp'):
            skip = False
        elif argument in OF_A_FILE[0]:
            skip = True
        else:
            flags.append(argument)
    return flags


def precompile(compiler, arguments, folder):
    """Precompile the header in ``folder``, unless that was tried before.

    Returns:
        Path, optional: the header to include; None where it does not compile.
    """
    header, failed = folder / 'precompiled.hpp', folder / 'failed'
    with open(folder / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not header.exists() and not failed.exists():
            part = folder / 'part.hpp'
            part.write_text(HEADER)
            done = subprocess.run(
                [*compiler, *header_flags(arguments), '-x', 'c++-header',
                 str(part), '-o', f'{header}.gch'])
            part.rename(failed if done.returncode else header)
    return None if failed.exists() else header


def main():
    compiler = shlex.split(os.environ['REAL_CXX'])
    arguments = sys.argv[1:]
    if '-c' in arguments:
        header = precompile(compiler, arguments,
                            Path(os.environ['PRECOMPILED']))
        if header and not subprocess.run(
                [*compiler, *arguments, '-include', str(header)]).returncode:
            return
    # Without it: slower, and with the messages of the file itself.
    os.execvp(compiler[0], [*compiler, *arguments])


if __name__ == '__main__':
    main()
