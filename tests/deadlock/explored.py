#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Explore abort.pml wholly: spin finds the deadlocks of the two old aborts, and none in the reset.

Usage: explored.py SPIN CC MODEL      TAP on stdout, with the number of states.
"""
import re
import shutil
import subprocess
import sys
import tempfile

SPIN, CC, MODEL = sys.argv[1:4]
SCENARIOS = {1: 'meta_root', 2: 'throttle', 3: 'completion', 0: 'all of them at once'}
DEADLOCK = {'RECREATE': {1, 2, 3, 0}, 'SWAP': {2, 3, 0}, 'RESET': set()}


def run(*command, cwd):
    p = subprocess.run(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240)
    assert p.returncode == 0, f'{" ".join(command)}:\n{p.stdout}'
    return p.stdout


def last_state(options, folder):
    """Where the trail of the error ends: the values of all variables."""
    out = run(SPIN, *options, '-k', 'abort.pml.trail', 'abort.pml', cwd=folder)
    return dict(re.findall(r'^\s*(\S+) = (\w+)$', out[out.index('trail ends after'):], flags=re.M))


def explore(kind, only, folder):
    """(state of the deadlock or None, states, depth)"""
    options = f'-DABORT={kind}', f'-DONLY={only}'
    shutil.copy(MODEL, f'{folder}/abort.pml')
    run(SPIN, *options, '-a', 'abort.pml', cwd=folder)
    run(CC, '-O1', '-DSAFETY', '-w', '-o', 'pan', 'pan.c', cwd=folder)
    out = run('./pan', '-m1000000', cwd=folder)
    errors = int(re.search(r'errors: (\d+)', out).group(1))
    assert 'Full statespace search' in out and 'invalid end states\t+' in out, out
    assert 'max search depth too small' not in out, out
    assert not errors or 'invalid end state' in out, out
    # Without an error, everything was seen: no limit was met.
    assert errors or 'Search not completed' not in out, out
    return (last_state(options, folder) if errors else None,
            int(float(re.search(r'([\d.e+]+) states, stored', out).group(1))),
            int(re.search(r'depth reached (\d+)', out).group(1)))


def is_as_told(end, only):
    """Reclaim has the registry, the worker waits for it, and reclaim for what the worker has."""
    told = end['shrinkers.readers'] == '1' and end['shrinkers.waiting'] != '0'
    if only == 1:
        told &= end['meta_root.writer'] == '1'
    elif only == 2:
        told &= end['throttle.writer'] == '1'
    elif only == 3:
        told &= end['throttle.writer'] == '0' and end['request[0]'] in ('DEFERRED', 'TAKEN')
    return told


failed = 0
print(f'1..{len(DEADLOCK) * len(SCENARIOS)}')
n = 0
for kind, due in DEADLOCK.items():
    for only, name in SCENARIOS.items():
        n += 1
        with tempfile.TemporaryDirectory() as folder:
            found, states, depth = explore(kind, only, folder)
        good = (found is not None) == (only in due) and (not found or is_as_told(found, only))
        failed |= not good
        print(f'{"ok" if good else "not ok"} {n} - abort by {kind.lower()}, waits for {name}: '
              f'{"deadlock" if found else "no deadlock"}, {states} states, depth {depth}', flush=True)
sys.exit(failed)
