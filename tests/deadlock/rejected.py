#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of locks at compile time: clang rejects the two old aborts, each for the right reason,
and accepts the one in use.  The sources are those that the scenarios link, and the headers are
the program's own.

Usage: rejected.py CLANG ROOT      TAP on stdout.
"""
import re
import subprocess
import sys

CLANG, ROOT = sys.argv[1:3]
ANALYSIS = ['-Wthread-safety', '-Wthread-safety-beta']

# A pass of the worker that is behind, in one function: worker_check_pass() takes the lock on
# conditions that clang cannot follow.
SLOW_PASS = '''
#include "pdata/block-manager.h"
#include "pool/pool-internal.h"
struct block_manager *slow_pass(struct pool *pool, struct block_manager *bm);
struct block_manager *slow_pass(struct pool *pool, struct block_manager *bm)
{
	lock_throttle(&pool->throttle);
	bm = bm_destroy(bm);
	unlock_throttle(&pool->throttle);
	return bm;
}
'''
WRONG_ORDER = '''
#include "util/lock-class.h"
void wrong_order(struct tp_lock *meta_root, struct tp_lock *throttle);
void wrong_order(struct tp_lock *meta_root, struct tp_lock *throttle)
{
	lock_meta_root(meta_root);
	lock_throttle(throttle);
	unlock_throttle(throttle);
	unlock_meta_root(meta_root);
}
'''


def compile_(source, flags):
    """Errors, as (callee or None, class)."""
    file = source if source.endswith('.c') else '-'
    p = subprocess.run([CLANG, '-std=gnu17', '-D_GNU_SOURCE', f'-I{ROOT}/include', f'-I{ROOT}/src', '-Wall',
                        '-Wextra', '-Werror', *flags, '-fsyntax-only', '-x', 'c', file],
                       input=source if file == '-' else '', text=True, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, cwd=ROOT)
    errors = set()
    for line in p.stdout.splitlines():
        if 'error: ' not in line or 'generated' in line:
            continue
        m = re.search(r"error: cannot call function '(\w+)' while lock class 'lc_(\w+)' is held", line)
        if not m:
            m = re.search(r"error: lock class 'lc_(\w+)' must be acquired before 'lc_(\w+)'", line)
        errors.add(m.groups() if m else ('unexpected', line))
    assert bool(errors) == bool(p.returncode), p.stdout
    return errors


CASES = {
    'the abort in use is accepted': ('src/thin/thin-abort.c', set()),
    'a cache recreated below meta_root is rejected, by its caller, too':
        ('tests/deadlock/abort-recreate.c',
         {(f, c) for f in ('bm_create', 'bm_destroy') for c in ('meta_root', 'completion')}),
    'a cache swapped outside of meta_root is rejected: requests wait for the caller':
        ('tests/deadlock/abort-swap.c', {('bm_create', 'completion'), ('bm_destroy', 'completion')}),
    'a cache destroyed below the throttle is rejected': (SLOW_PASS, {('bm_destroy', 'throttle')}),
    'classes taken in the wrong order are rejected': (WRONG_ORDER, {('throttle', 'meta_root')}),
}

failed = 0
print(f'1..{2 * len(CASES)}')
for i, (name, (source, wanted)) in enumerate(CASES.items()):
    got = compile_(source, ANALYSIS)
    print(f'{"ok" if got == wanted else "not ok"} {2 * i + 1} - {name}')
    if got != wanted:
        print(f'# wanted: {sorted(wanted)}\n# got: {sorted(got)}')
        failed = 1
    # Nothing but the analysis has anything against them.
    got = compile_(source, [])
    print(f'{"not ok" if got else "ok"} {2 * i + 2} - without the analysis it compiles: {name}')
    failed |= bool(got)
sys.exit(failed)
