#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""thinmeta.py as a judge of many images: a path a line on standard input, a verdict a line on
standard output: "clean", "hints N", or "bad" and the first problem.

Checksums are remembered by content, for images that differ in a block or two.
"""
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import thinmeta

thinmeta.crc_noninv = functools.lru_cache(maxsize=100000)(thinmeta.crc_noninv)


def verdict(path):
    meta = thinmeta.Meta(path)
    try:
        meta.check()
    except thinmeta.Bad as e:
        return f'bad {e}'
    except Exception as e:  # its way of tripping over damage
        return f'bad {type(e).__name__} {e}'
    finally:
        meta.f.close()
    if meta.problems:
        return f'bad {meta.problems[0]}'
    return f'hints {meta.warnings[0]}' if meta.warnings else 'clean'


def main():
    sys.setrecursionlimit(2000)
    for line in sys.stdin:
        print(verdict(line.rstrip('\n')), flush=True)


if __name__ == '__main__':
    main()
