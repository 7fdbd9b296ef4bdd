#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the same fio jobs on several targets in turn and print a table of ratios.

    compare.py [--runs N] [--seconds N] [--size S] [--job NAME]... NAME=PATH NAME=PATH...

The runs alternate (A B A B ...), so that a machine whose speed drifts treats all alike; figures are
medians.  Ratios are the first target divided by each other one: above 1 the first is faster.
Targets are files or block devices that are filled with random data first.  Nothing here passes
or fails on a time.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

JOBS = {
    'randread-4k-qd32': ['--rw=randread', '--bs=4k', '--iodepth=32'],
    'randwrite-4k-qd32': ['--rw=randwrite', '--bs=4k', '--iodepth=32'],
    'randread-4k-qd1': ['--rw=randread', '--bs=4k', '--iodepth=1'],
    'randwrite-4k-qd1': ['--rw=randwrite', '--bs=4k', '--iodepth=1'],
    'read-1m-qd4': ['--rw=read', '--bs=1m', '--iodepth=4'],
    'write-1m-qd4': ['--rw=write', '--bs=1m', '--iodepth=4'],
}
DEFAULT_JOBS = ['randread-4k-qd32', 'randwrite-4k-qd32']


def fio(path, size, options):
    cmd = ['fio', '--name=job', f'--filename={path}', f'--size={size}', '--direct=1', '--ioengine=libaio',
           '--group_reporting', '--output-format=json', '--norandommap', *options]
    p = subprocess.run(cmd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if p.returncode:
        sys.exit(f'{" ".join(cmd)}: exit {p.returncode}\n{p.stdout}{p.stderr}')
    out = p.stdout[p.stdout.index('{'):]
    job = json.loads(out)['jobs'][0]
    return job['read']['iops'] + job['write']['iops']


def fill(path, size):
    fio(path, size, ['--rw=write', '--bs=1m', '--iodepth=4', '--end_fsync=1', '--refill_buffers'])


def compare(targets, jobs, runs, seconds, size):
    """{job: {name: median IOPS}}"""
    for path in targets.values():
        fill(path, size)
    table = {}
    for job in jobs:
        results = {name: [] for name in targets}
        for n in range(runs + 1):
            for name, path in targets.items():
                iops = fio(path, size, JOBS[job] + ['--time_based', f'--runtime={seconds}'])
                if n > 0:  # the first round warms up
                    results[name].append(iops)
        table[job] = {name: statistics.median(r) for name, r in results.items()}
    return table


def print_table(table, targets):
    names = list(targets)
    first = names[0]
    head = ['job', *(f'{n} IOPS' for n in names), *(f'{first}/{n}' for n in names[1:])]
    rows = [[job, *(f'{v[n]:.0f}' for n in names), *(f'{v[first] / v[n]:.2f}' for n in names[1:])]
            for job, v in table.items()]
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print('  '.join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument('--runs', type=int, default=5)
    p.add_argument('--seconds', type=int, default=4)
    p.add_argument('--size', default='512m')
    p.add_argument('--job', action='append', choices=sorted(JOBS))
    p.add_argument('target', nargs='+', metavar='NAME=PATH')
    a = p.parse_args()
    targets = {}
    for t in a.target:
        name, sep, path = t.partition('=')
        if not sep or not os.path.exists(path):
            p.error(f'"{t}" is no NAME=PATH of something that exists')
        targets[name] = path
    print_table(compare(targets, a.job or DEFAULT_JOBS, a.runs, a.seconds, a.size), targets)


if __name__ == '__main__':
    main()
