# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools that are full, nearly full, and growing: writers wait or are told, and nothing is lost."""
import errno
import os
import random
import struct
import subprocess
import threading
import time

import pytest

from conftest import KIB, MIB, THINPOOLCTL, run, wait_for
from test_consistency import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate

BLOCK = 64 * KIB


def configure(pooldir, **keys):
    """A pool that keeps its size, unless the keys say otherwise."""
    keys = {'autoextend_threshold': '100%', **keys}
    lines = ''.join(f'{k} = {v}\n' for k, v in keys.items())
    (pooldir / 'pool.conf').write_text('[pool]\n' + lines)


def content(number, length=BLOCK):
    """Bytes that no other number has."""
    return struct.pack('<QQ', number, ~number & 0xffffffffffffffff) * (length // 16)


class Writer(threading.Thread):
    """
    Writes numbered blocks to a volume, in random order, each followed by fsync; remembers which
    were acknowledged.  Ends with the first error, or when all is written.
    """

    def __init__(self, path, blocks, rng):
        super().__init__(daemon=True)
        self.fd = os.open(path, os.O_RDWR)
        self.todo = list(blocks)
        rng.shuffle(self.todo)
        self.acknowledged, self.error = [], None

    def run(self):
        try:
            for n in self.todo:
                os.pwrite(self.fd, content(n), n * BLOCK)
                os.fsync(self.fd)
                self.acknowledged.append(n)
        except OSError as e:
            self.error = e

    def finish(self, seconds=30):
        self.join(seconds)
        assert not self.is_alive(), 'the writer still waits'
        os.close(self.fd)
        return self.error


def verify(path, blocks):
    fd = os.open(path, os.O_RDONLY)
    lost = [n for n in blocks if os.pread(fd, BLOCK, n * BLOCK) != content(n)]
    os.close(fd)
    assert not lost, f'{len(lost)} of {len(blocks)} acknowledged blocks lost: {lost[:10]}'


def is_full(d):
    return d.status()['mode'] == 'out_of_data_space'


def ends_clean(bench, d):
    d.stop()
    bench.check_clean(d.pooldir)


# ---- out of data space, seen by a program ----

@pytest.mark.quick
def test_waiting_writers_go_on_when_the_pool_is_extended(bench, seed):
    pooldir = bench.format('pool', '16M')
    configure(pooldir, no_space='queue', no_space_timeout=0)
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '1G')
    w = Writer(d.vol('v'), range(400), random.Random(seed))
    w.start()
    wait_for('the pool to be full', lambda: is_full(d))
    so_far = list(w.acknowledged)
    assert w.is_alive() and 200 < len(so_far) < 256
    # Others are served meanwhile.
    verify(d.vol('v'), so_far)
    bench.ctl('create', d.vol('other'), '--size', '1M')
    assert bench.ctl('extend', d.mnt, '--data', '32M').stdout == f'{d.mnt}: data 32M, metadata 16M\n'
    assert w.finish() is None
    verify(d.vol('v'), w.todo)
    status = d.status()
    assert (status['mode'], status['data_total']) == ('rw', 32 * MIB)
    ends_clean(bench, d)
    d = bench.serve(pooldir)
    assert d.status()['data_total'] == 32 * MIB
    verify(d.vol('v'), w.todo)
    ends_clean(bench, d)


@pytest.mark.quick
def test_errors_end_with_a_discard_a_delete_or_an_extension(bench, seed):
    rng = random.Random(seed)
    pooldir = bench.format('pool', '16M')
    configure(pooldir, no_space='error')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '1G')
    bench.ctl('create', d.vol('ballast'), '--size', '1G')
    ballast = Writer(d.vol('ballast'), range(100), rng)
    ballast.start()
    assert ballast.finish() is None
    acknowledged = set()

    def fill():
        w = Writer(d.vol('v'), set(range(1000)) - acknowledged, rng)
        w.start()
        assert w.finish().errno == errno.ENOSPC
        acknowledged.update(w.acknowledged)
        assert is_full(d)
        return len(w.acknowledged)

    def one_more():
        n = min(set(range(1000)) - acknowledged)
        fd = os.open(d.vol('v'), os.O_RDWR)
        os.pwrite(fd, content(n), n * BLOCK)
        os.fsync(fd)
        os.close(fd)
        acknowledged.add(n)
        assert d.status()['mode'] == 'rw'

    assert 100 < fill() < 156
    # What is mapped can be written over.
    fd = os.open(d.vol('v'), os.O_RDWR)
    again = sorted(acknowledged)[0]
    os.pwrite(fd, content(again), again * BLOCK)
    os.fsync(fd)
    gone = sorted(acknowledged)[:10]
    for n in gone:
        fallocate(fd, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, n * BLOCK, BLOCK)
    os.close(fd)
    acknowledged.difference_update(gone)
    one_more()
    assert fill() == len(gone) - 1

    bench.ctl('delete', d.vol('ballast'))
    one_more()
    assert fill() == 100 - 1

    bench.ctl('extend', d.mnt, '--data', 17 * MIB)
    one_more()
    assert fill() == 16 - 1
    verify(d.vol('v'), acknowledged)
    d.kill()
    d = bench.serve(pooldir)
    verify(d.vol('v'), acknowledged)
    ends_clean(bench, d)


def test_a_crash_of_a_full_pool_loses_nothing_acknowledged(bench, seed):
    rng = random.Random(seed)
    pooldir = bench.format('pool', '16M')
    configure(pooldir, no_space='queue', no_space_timeout=0)
    d = bench.serve(pooldir)
    writers = []
    for i in range(3):
        bench.ctl('create', d.vol(f'v{i}'), '--size', '1G')
        writers.append(Writer(d.vol(f'v{i}'), range(100 * i, 100 * i + 300), rng))
    for w in writers:
        w.start()
    wait_for('the pool to be full', lambda: is_full(d))
    d.kill()
    for w in writers:
        assert w.finish() is not None
    d = bench.serve(pooldir)
    for i, w in enumerate(writers):
        verify(d.vol(f'v{i}'), w.acknowledged)
    ends_clean(bench, d)


@pytest.mark.quick
def test_waiting_ends_after_the_timeout(bench, seed):
    rng = random.Random(seed)
    pooldir = bench.format('pool', '8M')
    configure(pooldir, no_space='queue', no_space_timeout=1)
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '1G')

    def seconds_to_fail(first):
        w = Writer(d.vol('v'), range(first, first + 200), rng)
        began = time.monotonic()
        w.start()
        assert w.finish().errno == errno.ENOSPC
        verify(d.vol('v'), w.acknowledged)
        return time.monotonic() - began

    assert seconds_to_fail(0) >= 1
    fd = os.open(d.vol('v'), os.O_RDWR)
    began = time.monotonic()
    with pytest.raises(OSError) as e:  # from now on at once
        os.pwrite(fd, content(1), 5000 * BLOCK)
    assert e.value.errno == errno.ENOSPC and time.monotonic() - began < 0.9
    os.close(fd)
    # When there was space again, the configured choice is back.
    bench.ctl('extend', d.mnt, '--data', '9M')
    assert seconds_to_fail(1000) >= 1
    assert d.log_text().count('writers get an error now') == 2
    ends_clean(bench, d)


# ---- out of data space, under a file system ----

def make_ext4(bench, d):
    bench.ctl('create', d.vol('disk'), '--size', '512M')
    lo = bench.loop(d.vol('disk'))
    run('mkfs.ext4', '-q', '-F', '-E', 'nodiscard', lo.dev)
    return lo


def write_file(where, number):
    path = where / f'f{number}'
    with open(path, 'xb') as f:
        for piece in range(4):
            f.write(content(number * 1000 + piece, 256 * KIB))
        f.flush()
        os.fsync(f.fileno())


def verify_files(where, numbers):
    for n in numbers:
        data = (where / f'f{n}').read_bytes()
        expected = b''.join(content(n * 1000 + piece, 256 * KIB) for piece in range(4))
        assert data == expected, f'file {n} is not what was synced'


class FileWriter(threading.Thread):
    """Writes files of 1 MiB and syncs each."""

    def __init__(self, where, numbers):
        super().__init__(daemon=True)
        self.where, self.numbers = where, numbers
        self.acknowledged, self.error = [], None

    def run(self):
        try:
            for n in self.numbers:
                write_file(self.where, n)
                self.acknowledged.append(n)
        except OSError as e:
            self.error = e


def test_ext4_on_a_pool_that_lets_writers_wait(bench):
    pooldir = bench.format('pool', '64M')
    configure(pooldir, no_space='queue', no_space_timeout=0)
    d = bench.serve(pooldir)
    lo = make_ext4(bench, d)
    where = bench.mount(lo.dev, 'fs')
    w = FileWriter(where, range(100))
    w.start()
    wait_for('the pool to be full', lambda: is_full(d))
    assert w.is_alive() and len(w.acknowledged) < 64
    bench.ctl('extend', d.mnt, '--data', '256M')
    w.join(30)
    assert not w.is_alive() and w.error is None
    verify_files(where, range(100))
    bench.umount(where)
    run('e2fsck', '-fn', lo.dev)
    lo.detach()
    d.kill()
    d = bench.serve(pooldir)
    lo = bench.loop(d.vol('disk'))
    run('e2fsck', '-fn', lo.dev)
    where = bench.mount(lo.dev, 'fs', '-o', 'ro')
    verify_files(where, range(100))
    bench.umount(where)
    lo.detach()
    ends_clean(bench, d)


def test_ext4_on_a_pool_that_fails_writers(bench):
    pooldir = bench.format('pool', '64M')
    configure(pooldir, no_space='error')
    d = bench.serve(pooldir)
    lo = make_ext4(bench, d)
    bench.ctl('create', d.vol('ballast'), '--size', '16M')
    with open(d.vol('ballast'), 'r+b') as f:
        f.write(os.urandom(16 * MIB))
    where = bench.mount(lo.dev, 'fs')
    w = FileWriter(where, range(100))
    w.start()
    w.join(30)
    assert not w.is_alive() and w.error is not None
    assert w.error.errno in (errno.ENOSPC, errno.EIO, errno.EROFS), w.error
    assert len(w.acknowledged) > 10
    bench.ctl('delete', d.vol('ballast'))
    bench.ctl('extend', d.mnt, '--data', '80M')
    # The file system may have lost writes of its own, which its checker mends; no synced file goes.
    bench.umount(where)
    assert run('e2fsck', '-fy', lo.dev, check=False).returncode in (0, 1)
    where = bench.mount(lo.dev, 'fs')
    verify_files(where, w.acknowledged)
    for n in range(200, 210):
        write_file(where, n)
    verify_files(where, range(200, 210))
    bench.umount(where)
    run('e2fsck', '-fn', lo.dev)
    lo.detach()
    assert d.status()['mode'] == 'rw'
    ends_clean(bench, d)


# ---- out of metadata space ----

LEAVES, LEAF = 100, 130  # blocks this far apart have their mappings in different leaves


@pytest.mark.quick
def test_full_metadata_is_brought_back_by_deleting(bench):
    """Each snapshot, and a write to each leaf after it, takes a copy of all leaves."""
    pooldir = bench.format('pool', '4G', '--metadata-size', '2M')
    configure(pooldir)
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '1G')
    fd = os.open(d.vol('v'), os.O_RDWR)
    fallocate(fd, 0, 0, LEAVES * LEAF * BLOCK)
    newest, snapshots, error = {}, [], None
    while not error:
        assert len(snapshots) < 20, 'the metadata does not get full'
        name = f's{len(snapshots)}'
        if bench.ctl('snapshot', d.vol('v'), d.vol(name), check=False).returncode:
            break
        snapshots.append(name)
        own = []  # not shared with a snapshot
        for leaf in range(LEAVES):
            n = leaf * LEAF + len(snapshots)
            try:
                os.pwrite(fd, content(n), n * BLOCK)
                newest[n] = True
                own.append(n)
            except OSError as e:
                error = e
                break
        os.fsync(fd)
    status = d.status()
    assert error.errno == errno.ENOSPC and len(newest) > 200
    assert status['mode'] == 'ro' and 'no metadata space' in status['reason']
    assert not status['needs_check'] and status['statistics']['aborts'] == 0
    assert bench.ctl('create', d.vol('more'), '--size', '1M', check=False).returncode == 6
    assert own
    for n in own:  # what is mapped, and not shared, can be written
        os.pwrite(fd, content(n), n * BLOCK)
    os.fsync(fd)
    verify(d.vol('v'), newest)

    # A crash now, and again from full: nothing acknowledged is lost, nothing more is eaten.
    os.close(fd)
    d.kill()
    d = bench.serve(pooldir)
    verify(d.vol('v'), newest)
    assert d.status()['mode'] == 'ro'
    fd = os.open(d.vol('v'), os.O_RDWR)
    with pytest.raises(OSError) as e:
        os.pwrite(fd, b'x', 900 * MIB)
    assert e.value.errno == errno.ENOSPC

    bench.ctl('delete', d.vol(snapshots.pop()))
    wait_for('metadata space', lambda: d.status()['mode'] == 'rw')
    os.pwrite(fd, content(14000), 14000 * BLOCK)
    os.fsync(fd)
    newest[14000] = True
    for name in snapshots:
        bench.ctl('delete', d.vol(name))
    os.pwrite(fd, content(15000), 15000 * BLOCK)
    os.fsync(fd)
    os.close(fd)
    newest[15000] = True
    verify(d.vol('v'), newest)
    assert d.status()['statistics']['aborts'] == 0
    ends_clean(bench, d)


@pytest.mark.quick
def test_full_metadata_is_brought_back_by_extending(bench):
    pooldir = bench.format('pool', '4G', '--metadata-size', '2M')
    configure(pooldir)
    d = bench.serve(pooldir)
    names = []
    with pytest.raises(OSError) as e:
        while True:
            name = f'v{len(names)}'
            open(d.vol(name), 'x').close()
            names.append(name)
    assert e.value.errno == errno.ENOSPC and len(names) > 100
    p = bench.ctl('create', d.vol('more'), '--size', '1M', check=False)
    assert p.returncode == 6 and 'the metadata of the pool is full' in p.stdout
    bench.ctl('extend', d.mnt, '--metadata', '4M')
    assert d.status()['mode'] == 'rw' and d.status()['metadata_total'] == 4 * MIB
    bench.ctl('create', d.vol('more'), '--size', '1M')
    assert {v['name'] for v in d.list()} == {*names, 'more'}
    ends_clean(bench, d)
    d = bench.serve(pooldir)
    assert {v['name'] for v in d.list()} == {*names, 'more'}
    ends_clean(bench, d)


# ---- nearly full ----

@pytest.mark.quick
def test_low_water_is_told_once_and_shown(bench, seed):
    pooldir = bench.format('pool', '16M')
    configure(pooldir, low_water_data='25%', low_water_metadata='1M')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '1G')
    status = d.status()
    assert (status['low_water_data'], status['low_water_metadata']) == (4 * MIB, MIB)
    assert not status['data_is_low'] and 'low space' not in bench.ctl('status', d.mnt).stdout
    w = Writer(d.vol('v'), range(220), random.Random(seed))
    w.start()
    assert w.finish() is None
    status = d.status()
    assert status['data_is_low'] and not status['metadata_is_low']
    assert status['statistics']['low_water_data'] == 1 and status['mode'] == 'rw'
    assert d.log_text().count('data space is low') == 1
    assert 'low space' in bench.ctl('status', d.mnt).stdout
    assert 'low space    data:' in (d.mnt / '.thinpool/status').read_text()
    bench.ctl('extend', d.mnt, '--data', '64M')
    assert not d.status()['data_is_low'] and d.status()['low_water_data'] == 16 * MIB
    ends_clean(bench, d)


# ---- growing ----

@pytest.mark.quick
def test_sizes_that_cannot_be_are_refused(bench):
    pooldir = bench.format('pool', '16M')
    d = bench.serve(pooldir)

    def refused(code, word, *args):
        before = d.status(), (pooldir / 'data').stat().st_size, (pooldir / 'metadata').stat().st_size
        p = bench.ctl('extend', d.mnt, *args, check=False)
        assert p.returncode == code and p.stdout.count('\n') == 1 and word in p.stdout, p.stdout
        after = d.status(), (pooldir / 'data').stat().st_size, (pooldir / 'metadata').stat().st_size
        assert before[0]['transaction_id'] == after[0]['transaction_id'] and before[1:] == after[1:]

    refused(1, 'data has 16M', '--data', '8M')
    refused(1, 'cannot be made smaller', '--metadata', '15M')
    refused(1, 'cannot be made smaller', '--metadata', '32M', '--data', '1M')
    refused(6, 'extend metadata too', '--data', '64T')
    refused(2, '--data or --metadata')
    refused(2, 'must not be 0', '--data', '0')
    refused(2, 'no size', '--data', 'much')
    p = bench.ctl('extend', d.mnt, '--data', 20 * MIB + 1)
    assert f'data has {20 * MIB} bytes, not {20 * MIB + 1}' in p.stdout
    assert d.status()['data_total'] == 20 * MIB
    assert os.statvfs(d.mnt).f_blocks * os.statvfs(d.mnt).f_frsize == 20 * MIB
    # Files stay sparse.
    bench.ctl('extend', d.mnt, '--data', '1G', '--metadata', '64M')
    assert (pooldir / 'data').stat().st_size == 1 << 30
    assert (pooldir / 'data').stat().st_blocks * 512 < MIB
    ends_clean(bench, d)


def test_block_devices_that_have_grown_are_used(bench, seed):
    files = [bench.tmp / 'data.img', bench.tmp / 'metadata.img']
    for f, size in zip(files, (16 * MIB, 4 * MIB)):
        with open(f, 'wb') as new:
            new.truncate(size)
    data, metadata = (bench.loop(f) for f in files)
    pooldir = bench.tmp / 'pool'
    bench.ctl('format', pooldir, '--data', data.dev, '--metadata', metadata.dev)
    configure(pooldir, no_space='error')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '1G')
    w = Writer(d.vol('v'), range(300), random.Random(seed))
    w.start()
    assert w.finish().errno == errno.ENOSPC
    p = bench.ctl('extend', d.mnt, '--data', '32M', check=False)
    assert p.returncode == 1 and f'"{pooldir}/data" is a block device of less' in p.stdout
    for f, size, lo in zip(files, (32 * MIB, 8 * MIB), (data, metadata)):
        os.truncate(f, size)
        run('losetup', '-c', lo.dev)
    bench.ctl('extend', d.mnt, '--data', '32M', '--metadata', '8M')
    more = Writer(d.vol('v'), set(range(300)) - set(w.acknowledged), random.Random(seed))
    more.start()
    assert more.finish() is None
    d.stop()
    bench.ctl('check', pooldir)
    d = bench.serve(pooldir)
    assert (d.status()['data_total'], d.status()['metadata_total']) == (32 * MIB, 8 * MIB)
    verify(d.vol('v'), range(300))
    d.stop()


def test_extending_under_load(bench, seed):
    """Many small extensions while writers are at work, and a crash in the middle of it."""
    rng = random.Random(seed)
    pooldir = bench.format('pool', '8M', '--metadata-size', '2M')
    configure(pooldir, no_space='queue', no_space_timeout=0)
    d = bench.serve(pooldir)
    writers = []
    for i in range(2):
        bench.ctl('create', d.vol(f'v{i}'), '--size', '1G')
        writers.append(Writer(d.vol(f'v{i}'), range(400), rng))
    for w in writers:
        w.start()
    size = 8 * MIB
    extender = None
    for step in range(30):
        size += rng.randrange(1, 4) * BLOCK
        args = ['--data', size] + (['--metadata', 2 * MIB + step * 64 * KIB] if step % 3 == 0 else [])
        bench.ctl('extend', d.mnt, *args)
    extender = bench.popen(THINPOOLCTL, 'extend', d.mnt, '--data', size + 64 * BLOCK,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    d.kill()
    extender.wait(10)
    for w in writers:
        w.finish()
    d = bench.serve(pooldir)
    assert d.status()['data_total'] in (size, size + 64 * BLOCK)
    for i, w in enumerate(writers):
        verify(d.vol(f'v{i}'), w.acknowledged)
    ends_clean(bench, d)
