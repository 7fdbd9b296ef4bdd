#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Check that no source file is over 900 lines and no function over 100.

Usage: sizes.py ROOT      Exit 0, or 1 with one line per violation.
"""
import pathlib
import subprocess
import sys

FILE_MAX, FUNCTION_MAX = 900, 100


def violations(root):
    files = [p for top in ('src', 'include', 'tests') for p in sorted((root / top).rglob('*.[ch]'))]
    for path in files:
        lines = len(path.read_text().splitlines())
        if lines > FILE_MAX:
            yield f'{path}: {lines} lines, at most {FILE_MAX}'
    out = subprocess.run(['ctags', '-x', '--c-kinds=f', '--fields=+e', '--_xformat=%{end}\t%n\t%N\t%F',
                          *map(str, files)], check=True, text=True, stdout=subprocess.PIPE).stdout
    for row in out.splitlines():
        end, begin, name, path = row.split('\t')
        if end and int(end) - int(begin) >= FUNCTION_MAX:
            yield f'{path}:{begin}: {name}() has {int(end) - int(begin) + 1} lines, at most {FUNCTION_MAX}'


if __name__ == '__main__':
    found = list(violations(pathlib.Path(sys.argv[1])))
    print('\n'.join(found) or 'sizes: ok')
    sys.exit(bool(found))
