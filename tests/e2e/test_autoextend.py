# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools in files that grow by themselves: at their threshold, as far as they may, and nobody notices."""
import errno
import os
import random
import time

import pytest

from conftest import MIB, THINPOOLD, run, wait_for
from test_space import (BLOCK, FileWriter, Writer, configure, content, ends_clean, is_full, make_ext4,
                        verify, verify_files)


def growth(d):
    status = d.status()
    return status['autoextend'], status['statistics']


@pytest.mark.quick
def test_a_pool_in_files_grows_by_default(bench, seed):
    pooldir = bench.format('pool', '16M', '--metadata-size', '2M')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '1G')
    w = Writer(d.vol('v'), range(1000), random.Random(seed))
    w.start()
    assert w.finish(120) is None
    settings, counts = growth(d)
    assert settings == {'threshold': 80, 'percent': 20, 'max_size': 0,
                        'data_not_extended': '', 'metadata_not_extended': ''}
    assert counts['autoextended_data'] >= 8
    status = d.status()
    assert status['mode'] == 'rw' and not status['data_is_low']
    assert status['data_used'] < status['data_total'] * 0.8 + 4 * BLOCK
    assert d.log_text().count('data was') == counts['autoextended_data']
    metrics = (d.mnt / '.thinpool/metrics').read_text()
    assert f'\nthinpoold_data_autoextended_total {counts["autoextended_data"]}\n' in metrics
    assert 'autoextend   at 80 % by 20 %' in (d.mnt / '.thinpool/status').read_text()
    d.kill()
    d = bench.serve(pooldir)
    assert d.status()['data_total'] == status['data_total']
    verify(d.vol('v'), range(1000))
    ends_clean(bench, d)


@pytest.mark.quick
def test_max_size_is_the_end(bench, seed):
    pooldir = bench.format('pool', '16M')
    configure(pooldir, autoextend_threshold='80%', no_space='error', max_size='24M')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '1G')
    w = Writer(d.vol('v'), range(1000), random.Random(seed))
    w.start()
    assert w.finish().errno == errno.ENOSPC
    status = d.status()
    assert status['data_total'] == 24 * MIB and status['mode'] == 'out_of_data_space'
    assert 'max_size' in status['autoextend']['data_not_extended']
    assert 'data is not extended: it has 24M, which is max_size' in (d.mnt / '.thinpool/status').read_text()
    assert 'which is max_size' in bench.ctl('status', d.mnt).stdout
    assert d.log_text().count('data is not extended') == 1
    # By hand it goes further.
    bench.ctl('extend', d.mnt, '--data', '40M')
    assert d.status()['mode'] == 'rw'
    verify(d.vol('v'), w.acknowledged)
    ends_clean(bench, d)


@pytest.mark.quick
def test_metadata_grows_before_it_is_full(bench):
    pooldir = bench.format('pool', '1G', '--metadata-size', '2M')
    d = bench.serve(pooldir)
    for i in range(400):
        open(d.vol(f'v{i}'), 'x').close()
        if i % 4 == 0:
            os.truncate(d.vol(f'v{i}'), MIB)
            with open(d.vol(f'v{i}'), 'r+b') as f:
                f.write(content(i))
    status = d.status()
    assert status['mode'] == 'rw' and status['statistics']['autoextended_metadata'] > 0
    assert status['metadata_total'] == (pooldir / 'metadata').stat().st_size > 2 * MIB
    assert len(d.list()) == 400
    ends_clean(bench, d)


@pytest.mark.quick
@pytest.mark.parametrize('line, words', [
    ('autoextend_threshold = 80', 'a percentage from 1% to 100% (never)'),
    ('autoextend_percent = 0%', 'a percentage from 1% to 1000%'),
    ('max_size = some', 'a size, or 0 for none'),
])
def test_values_that_cannot_be_are_told_in_one_line(bench, line, words):
    pooldir = bench.format('pool', '16M')
    (pooldir / 'pool.conf').write_text(f'[pool]\n{line}\n')
    p = run(THINPOOLD, '--check-config', pooldir, check=False)
    assert p.returncode == 1 and p.stdout.count('\n') == 1
    assert 'pool.conf:2:' in p.stdout and words in p.stdout


def pool_on_small_host(bench, size, name='host'):
    """A pool directory on a file system of its own, and where that is mounted."""
    image = bench.tmp / f'{name}.img'
    with open(image, 'wb') as f:
        f.truncate(size)
    run('mkfs.ext4', '-q', '-F', '-m', '0', '-O', '^has_journal', image)
    host = bench.mount(bench.loop(image).dev, name)
    (host / 'pool').mkdir()
    pooldir = bench.tmp / 'pool'  # its log and its mount stay outside
    pooldir.symlink_to(host / 'pool')
    return pooldir, host


def test_a_pool_stays_within_what_its_host_can_hold(bench, seed):
    pooldir, host = pool_on_small_host(bench, 128 * MIB)
    bench.ctl('format', pooldir, '--size', '16M', '--metadata-size', '2M')
    configure(pooldir, autoextend_threshold='80%', no_space='queue', no_space_timeout=0)
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '1G')
    ballast = host / 'ballast'
    run('fallocate', '-l', 64 * MIB, ballast)
    w = Writer(d.vol('v'), range(1200), random.Random(seed))
    w.start()
    wait_for('the pool to be full', lambda: is_full(d))
    settings, counts = growth(d)
    assert 'not promised or reserved' in settings['data_not_extended'] and counts['autoextended_data'] > 1
    fs = os.statvfs(host)
    lacks = sum(f.stat().st_size - f.stat().st_blocks * 512 for f in (pooldir / 'data', pooldir / 'metadata'))
    assert fs.f_bavail * fs.f_frsize - max(lacks, 0) >= fs.f_blocks * fs.f_frsize // 20 - 2 * MIB
    assert w.is_alive()
    # Others give space back: the writers go on by themselves.
    ballast.unlink()
    assert w.finish(60) is None
    assert d.status()['mode'] == 'rw' and growth(d)[0]['data_not_extended'] == ''
    verify(d.vol('v'), range(1200))
    d.stop()
    bench.check_clean(pooldir)


def test_ext4_does_not_notice_that_its_pool_grows(bench):
    pooldir = bench.format('pool', '32M', '--metadata-size', '2M')
    configure(pooldir, autoextend_threshold='80%', no_space='error')
    d = bench.serve(pooldir)
    lo = make_ext4(bench, d)
    where = bench.mount(lo.dev, 'fs')
    since = time.clock_gettime(time.CLOCK_BOOTTIME)
    w = FileWriter(where, range(300))
    w.start()
    w.join(120)
    assert not w.is_alive() and w.error is None
    verify_files(where, range(300))
    assert d.status()['data_total'] > 300 * MIB
    bench.umount(where)
    run('e2fsck', '-fn', lo.dev)
    said = [line for line in kernel_log(since) if os.path.basename(lo.dev) in line]
    assert not [line for line in said if 'rror' in line], said
    lo.detach()
    ends_clean(bench, d)


def kernel_log(since):
    """Lines of the kernel's log from this moment of its clock on."""
    lines = run('dmesg', check=False).stdout.splitlines()
    return [line for line in lines
            if line.startswith('[') and float(line[1:].split(']')[0]) >= since]


def test_a_crash_while_a_pool_grows(bench, seed):
    rng = random.Random(seed)
    pooldir = bench.format('pool', '8M', '--metadata-size', '2M')
    (pooldir / 'pool.conf').write_text('[pool]\nautoextend_percent = 2%\n')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '1G')
    acknowledged = []
    for life in range(4):
        w = Writer(d.vol('v'), range(life * 1000, life * 1000 + 1000), rng)
        w.start()
        before = d.status()['statistics']['autoextended_data']
        wait_for('some extensions', lambda: d.status()['statistics']['autoextended_data'] > before + 4
                 or not w.is_alive())
        d.kill()
        w.finish()
        acknowledged += w.acknowledged
        d = bench.serve(pooldir)
        status = d.status()
        assert status['mode'] == 'rw' and status['data_total'] <= (pooldir / 'data').stat().st_size
        verify(d.vol('v'), acknowledged)
    ends_clean(bench, d)


def test_a_host_that_is_full_costs_nothing_that_was_flushed(bench, seed):
    """Sparse data on a file system that others fill up: errors for who needs more of it, and no more."""
    pooldir, host = pool_on_small_host(bench, 96 * MIB)
    bench.ctl('format', pooldir, '--size', '1G', '--metadata-size', '4M')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '1G')
    first = Writer(d.vol('v'), range(200), random.Random(seed))
    first.start()
    assert first.finish() is None
    ballast = host / 'ballast'
    with open(ballast, 'wb') as f:
        with pytest.raises(OSError):
            while True:
                os.write(f.fileno(), bytes(MIB))
    w = Writer(d.vol('v'), range(1000, 3000), random.Random(seed))
    w.start()
    assert w.finish().errno == errno.ENOSPC
    # What is there goes on: overwriting, commands and commits.
    again = Writer(d.vol('v'), range(100), random.Random(seed))
    again.start()
    assert again.finish() is None
    for i in range(20):
        p = bench.ctl('create', d.vol(f'n{i}'), '--size', '1M', check=False)
        assert p.returncode in (0, 6), p.stdout
    bench.ctl('snapshot', d.vol('v'), d.vol('s'), check=False)
    bench.ctl('delete', d.vol('s'), check=False)
    verify(d.vol('v'), [*range(200), *w.acknowledged])
    status = d.status()
    assert not status['needs_check'] and status['statistics']['aborts'] == 0 and status['mode'] == 'rw'
    # Space comes back, and all goes on.
    ballast.unlink()
    more = Writer(d.vol('v'), range(3000, 3200), random.Random(seed))
    more.start()
    assert more.finish() is None
    bench.ctl('create', d.vol('late'), '--size', '1M')
    d.kill()
    d = bench.serve(pooldir)
    verify(d.vol('v'), [*range(200), *w.acknowledged, *range(3000, 3200)])
    d.stop()
    bench.check_clean(pooldir)
