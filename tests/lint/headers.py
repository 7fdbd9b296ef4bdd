#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Check that every header compiles on its own, twice included, and public ones as C++ too; and that
those that other files than their own layer's may include say in their head block of which layer
they are, which threads may call, in which units, and what errors mean.

Usage: headers.py ROOT CC [CFLAGS...]      Exit 0, or 1 with the compiler's words.
"""
import pathlib
import subprocess
import sys


def compiles(compiler, flags, language, header):
    source = f'#include "{header}"\n' * 2
    p = subprocess.run([*compiler, *flags, '-x', language, '-fsyntax-only', '-'], input=source,
                       text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if p.returncode:
        print(f'{header}, on its own as {language}:\n{p.stdout}')
    return p.returncode == 0


HEAD_SAYS = ('Layer:', 'Threads:', 'Units:', 'Errors:')


def says_all(path, name):
    head = path.read_text().partition('#ifndef')[0]
    lacks = [word for word in HEAD_SAYS if f'\n * {word} ' not in head]
    if lacks and '-internal.h' not in name and 'private' not in head:
        print(f'{name}: the head block does not say {", ".join(lacks)}')
        return False
    return True


if __name__ == '__main__':
    root, compiler = pathlib.Path(sys.argv[1]), sys.argv[2:]
    flags = [f'-I{root}/include', f'-I{root}/src', '-D_GNU_SOURCE', '-D_FILE_OFFSET_BITS=64', '-Wall',
             '-Wextra', '-Werror']
    flags += subprocess.run(['pkg-config', '--cflags', 'fuse3'], text=True,
                            stdout=subprocess.PIPE, check=True).stdout.split()
    ok = True
    for header in sorted((root / 'src').rglob('*.h')):
        ok &= compiles(compiler, [*flags, '-std=gnu17'], 'c', header.relative_to(root / 'src'))
        ok &= says_all(header, str(header.relative_to(root / 'src')))
    for header in sorted((root / 'include').rglob('*.h')):
        name = header.relative_to(root / 'include')
        ok &= compiles(compiler, [*flags, '-std=gnu17'], 'c', name)
        ok &= compiles(['g++'], [*flags, '-std=gnu++17'], 'c++', name)
    print('headers: ok' if ok else 'headers: see above')
    sys.exit(not ok)
