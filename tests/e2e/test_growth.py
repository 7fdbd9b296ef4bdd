# SPDX-License-Identifier: GPL-2.0-or-later
"""A pool stays quick to open and small in memory as it grows.

Environment: TP_VOLUMES, how many volumes, and snapshots, there are (default: 500); TP_MAPPED_GIB, how much
is mapped of a large one (default: 64).
"""
import os
import re

import pytest

from conftest import KIB, MIB, run

VOLUMES = int(os.environ.get('TP_VOLUMES', 500))
MAPPED_GIB = int(os.environ.get('TP_MAPPED_GIB', 64))


def resident(d):
    with open(f'/proc/{d.proc.pid}/status') as f:
        return int(re.search(r'VmRSS:\s+(\d+) kB', f.read())[1]) * KIB


def metadata_blocks(d):
    s = d.status()
    return s['metadata_used'] // 4096


def read_at_open(d):
    return d.status()['cache']['misses']


@pytest.mark.parametrize('kind', ['volumes', 'snapshots'])
def test_many_volumes_are_opened_without_reading_their_mappings(bench, kind):
    pooldir = bench.format('pool', '64G', '--metadata-size', '64M')
    d = bench.serve(pooldir)
    with open(d.vol('v0'), 'wb') as f:
        f.truncate(64 * MIB)
        f.write(b'first')
    for i in range(1, VOLUMES):
        if kind == 'snapshots':
            os.link(d.vol('v0'), d.vol(f'v{i}'))
            continue
        with open(d.vol(f'v{i}'), 'wb') as f:
            f.truncate(MIB)
            f.write(b'%d' % i)
    d.stop()

    d = bench.serve(pooldir)
    misses, used = read_at_open(d), metadata_blocks(d)
    # The records and details of so many, and the way to them: some 40 devices a block.
    assert misses < 20 + VOLUMES // 20, f'{misses} of {used} blocks were read'
    if kind == 'volumes':
        assert used > VOLUMES
    out = run('ls', '-l', d.mnt).stdout.splitlines()
    assert len(out) == VOLUMES + 1  # "total"
    assert read_at_open(d) == misses, 'listing volumes reads no metadata'
    for i in (0, 1, VOLUMES // 2, VOLUMES - 1):
        expected = b'first' if kind == 'snapshots' or i == 0 else b'%d' % i
        assert d.vol(f'v{i}').read_bytes()[:len(expected)] == expected
    d.stop()
    bench.check_clean(pooldir)


def test_memory_and_opening_do_not_grow_with_the_mappings(bench):
    """16,384 mappings a GiB, in 256 KiB of metadata and more; a cache of 2 MiB."""
    pooldir = bench.format('pool', f'{MAPPED_GIB + 1}G', '--metadata-size', f'{MAPPED_GIB + 16}M')
    (pooldir / 'pool.conf').write_text('[pool]\ncache_size = 2M\n[fuse]\nio_uring = no\nmax_background = 24\n')
    d = bench.serve(pooldir)
    limit = 2 * MIB + 64 * MIB
    run('truncate', '-s', f'{MAPPED_GIB}G', d.vol('v'))
    run('fallocate', '-l', f'{MAPPED_GIB}G', d.vol('v'))
    assert resident(d) < limit
    run('sync', d.vol('v'))
    d.stop()

    d = bench.serve(pooldir)
    assert metadata_blocks(d) > MAPPED_GIB * 256 * KIB // 4096
    assert read_at_open(d) < 30
    run('fio', '--name=job', f'--filename={d.vol("v")}', f'--size={MAPPED_GIB}g', '--direct=1', '--ioengine=libaio',
        '--rw=randread', '--bs=4k', '--iodepth=64', '--norandommap', '--number_ios=10000')
    assert d.status()['cache']['used'] <= 3 * MIB
    assert resident(d) < limit
    run('fio', '--name=job', f'--filename={d.vol("v")}', '--size=1g', '--direct=1', '--ioengine=libaio',
        '--rw=read', '--bs=1m', '--iodepth=200')
    assert resident(d) < limit, 'what is in work is bounded, too'
    os.link(d.vol('v'), d.vol('s'))
    run('fallocate', '-p', '-o', 0, '-l', f'{MAPPED_GIB}G', d.vol('v'))
    d.vol('s').unlink()
    run('sync', d.vol('v'))
    assert resident(d) < limit
    d.stop()
    bench.ctl('check', pooldir)
