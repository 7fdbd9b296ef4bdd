#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Check the form of every file: clang-format for C, an SPDX line in every file that can carry one.

Usage: format.py ROOT      Exit 0, or 1 with one line per violation.
"""
import pathlib
import shutil
import subprocess
import sys

# The licence itself, and what has no room for a comment.
NO_SPDX = {'LICENSE', '.json', '.zst'}
INPUTS = 'tests/fuzz/corpus'
CLANG_FORMAT = 'clang-format-14'


def tracked(root):
    """Every file git knows; on an export without git, every file outside build directories."""
    p = subprocess.run(['git', '-C', str(root), 'ls-files'], text=True, stdout=subprocess.PIPE,
                       stderr=subprocess.DEVNULL)
    if p.returncode == 0 and p.stdout:
        names = p.stdout.splitlines()
    else:
        names = [str(f.relative_to(root)) for f in root.rglob('*')
                 if not f.relative_to(root).parts[0].startswith(('build', '.git'))]
    return [root / n for n in names if (root / n).is_file()]


def violations(root):
    files = tracked(root)
    for path in files:
        is_input = (root / INPUTS) in path.parents
        if path.name not in NO_SPDX and path.suffix not in NO_SPDX and not is_input:
            head = path.read_text(errors='replace').splitlines()[:14]
            if not any('SPDX-License-Identifier: GPL-2.0-or-later' in line for line in head):
                yield f'{path}: no SPDX line at the top'
    sources = [str(p) for p in files if p.suffix in ('.c', '.h')]
    p = subprocess.run([CLANG_FORMAT, '--dry-run', *sources], text=True, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT)
    yield from sorted({line for line in p.stdout.splitlines() if 'clang-format-violations' in line})


if __name__ == '__main__':
    if not shutil.which(CLANG_FORMAT):
        print(f'format: skipped, needs {CLANG_FORMAT}')
        sys.exit(77)
    found = list(violations(pathlib.Path(sys.argv[1]).resolve()))
    print('\n'.join(found) or 'format: ok')
    sys.exit(bool(found))
