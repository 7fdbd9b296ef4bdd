# SPDX-License-Identifier: GPL-2.0-or-later
"""A data device that fails, vanishes, shrinks or grows under the daemon: errors of who asks for what it
cannot do, and nothing else; the metadata stays as it should be."""
import errno
import os

import pytest

from conftest import FAILED, KIB, MIB, refused, run, wait_for

BLOCK = 64 * KIB
pytestmark = [pytest.mark.quick, pytest.mark.timeout(180)]


def pool(bench, size='64M'):
    pooldir = bench.format('pool', size)
    # Commits come when a test asks for them.
    (pooldir / 'pool.conf').write_text('[pool]\ncommit_interval = 60\n[fuse]\ncache = none\n')
    return pooldir


def volumes(bench, d, *names):
    for name in names:
        bench.ctl('create', d.vol(name), '--size', '32M')
    return [os.open(d.vol(name), os.O_RDWR) for name in names]


def write(fd, block, byte, nr=1):
    assert os.pwrite(fd, bytes([byte]) * BLOCK * nr, block * BLOCK) == BLOCK * nr


def reads_as(fd, block, byte, nr=1):
    return os.pread(fd, BLOCK * nr, block * BLOCK) == bytes([byte]) * BLOCK * nr


def eio(what, *args):
    with pytest.raises(OSError) as e:
        what(*args)
    assert e.value.errno == errno.EIO, e.value


def metric(d, name):
    for line in (d.mnt / '.thinpool/metrics').read_text().splitlines():
        if line.startswith(f'thinpoold_{name} '):
            return int(line.split()[1])
    raise AssertionError(f'no metric {name}')


def is_rw(d):
    s = d.status()
    return s['mode'] == 'rw' and not s['needs_check']


def test_what_cannot_be_read_or_written_is_an_error_of_who_asks(bench):
    pooldir = pool(bench)
    device = bench.failing_data(pooldir)
    d = bench.serve(pooldir)
    a, b = volumes(bench, d, 'a', 'b')
    write(a, 0, 1, 4)
    os.fsync(a)
    bench.ctl('snapshot', d.vol('a'), d.vol('snap'))
    write(a, 3, 4)
    used = d.status()['data_used']

    device.fail('write')
    eio(write, a, 3, 2)         # in place
    eio(write, a, 10, 2)        # a hole
    eio(write, a, 0, 2)         # shared
    eio(os.pwrite, a, b'x', 5)  # shared, and to be copied
    assert reads_as(a, 0, 1, 3) and reads_as(a, 10, 0)
    device.heal()
    device.fail('read')
    eio(os.pread, a, BLOCK, 0)
    eio(os.pwrite, a, b'x', 5)
    write(b, 0, 7)  # needs no read
    device.heal()

    assert is_rw(d) and metric(d, 'data_errors_total') >= 6
    assert 'cannot be written' in d.log_text()
    os.pwrite(a, b'x', 5)
    for fd in a, b:
        os.fsync(fd)
    assert os.pread(a, BLOCK, 0) == b'\x01' * 5 + b'x' + b'\x01' * (BLOCK - 6)
    assert reads_as(a, 1, 1, 2) and reads_as(a, 10, 0) and reads_as(b, 0, 7)
    assert d.status()['data_used'] == used + 2 * BLOCK, 'nothing has leaked'
    os.close(a)
    os.close(b)
    d.stop()
    device.remove()
    bench.check_clean(pooldir)


@pytest.mark.parametrize('dirty', [False, True], ids=['idle', 'dirty'])
def test_a_device_that_vanishes(bench, dirty):
    pooldir = pool(bench)
    device = bench.failing_data(pooldir)
    d = bench.serve(pooldir)
    a, b = volumes(bench, d, 'a', 'b')
    write(a, 0, 1, 4)
    os.fsync(a)
    if dirty:
        write(a, 4, 2)
    device.vanish()
    eio(os.pread, a, BLOCK, 0)
    assert reads_as(b, 0, 0), 'what is in no block of it can still be read'
    eio(write, a, 0, 2)
    eio(write, b, 0, 2)
    eio(os.fsync, a)
    if dirty:
        status = d.status()
        assert status['mode'] == 'ro' and not status['needs_check']
        assert 'cannot be flushed' in status['reason'] and 'restart' in status['remedy']
        assert 'thinpoolctl restart' in (d.mnt / '.thinpool/status').read_text()
        assert 'thinpoolctl restart' in bench.ctl('status', d.mnt).stdout
        refused(bench.ctl('create', d.vol('new'), '--size', '1M', check=False), FAILED, 'data device')
    else:
        assert is_rw(d)
    os.close(a)
    os.close(b)
    run('umount', d.mnt)
    assert d.proc.wait(60) == 1, 'what was written last is not known to be durable'
    device.remove()

    bench.check_clean(pooldir)
    d = bench.serve(pooldir)
    assert is_rw(d)
    with open(d.vol('a'), 'r+b', buffering=0) as f:
        assert reads_as(f.fileno(), 0, 1, 4) and reads_as(f.fileno(), 4, 0)
        write(f.fileno(), 4, 3)
        os.fsync(f.fileno())
    d.stop()
    bench.check_clean(pooldir)


def test_a_pool_that_went_read_only_is_brought_back_by_a_restart(bench):
    """Catalog records are data: a name that cannot be stored takes the pool down to read-only."""
    pooldir = pool(bench)
    device = bench.failing_data(pooldir)
    d = bench.serve(pooldir)
    a, = volumes(bench, d, 'a')
    write(a, 0, 1)
    os.fsync(a)
    device.fail('write')
    refused(bench.ctl('create', d.vol('new'), '--size', '1M', check=False), FAILED)
    device.heal()
    assert d.status()['mode'] == 'ro'
    bench.ctl('restart', d.mnt)
    assert is_rw(d)
    bench.ctl('create', d.vol('new'), '--size', '1M')
    write(a, 1, 1)
    os.close(a)
    d.stop()
    device.remove()
    bench.check_clean(pooldir)


def test_a_file_that_is_truncated(bench):
    pooldir = pool(bench)
    d = bench.serve(pooldir)
    a, b = volumes(bench, d, 'a', 'b')
    write(a, 0, 1, 64)
    write(b, 0, 2, 64)
    for fd in a, b:
        os.fsync(fd)
    size = (pooldir / 'data').stat().st_size
    used = d.status()['data_used']
    os.truncate(pooldir / 'data', used - 64 * BLOCK)
    assert reads_as(a, 0, 1, 32)
    eio(os.pread, b, BLOCK, 63 * BLOCK)
    bench.ctl('snapshot', d.vol('b'), d.vol('snap'))
    eio(os.pwrite, b, b'x', 62 * BLOCK + 5)  # cannot be copied
    for block in range(64, 70):  # new ones are whole, though they lie behind the end
        os.pwrite(b, b'x' * 512, block * BLOCK + 4096)
    os.fsync(b)
    for block in range(64, 70):
        assert os.pread(b, BLOCK, block * BLOCK) == bytes(4096) + b'x' * 512 + bytes(BLOCK - 4608)
    assert is_rw(d)
    bench.ctl('delete', d.vol('snap'))
    os.close(a)
    os.close(b)
    d.stop()
    os.truncate(pooldir / 'data', size)
    bench.check_clean(pooldir)


def on_loop(bench, pooldir):
    backing = bench.tmp / 'backing'
    (pooldir / 'data').rename(backing)
    lo = bench.loop(backing)
    (pooldir / 'data').symlink_to(lo.dev)
    return backing, lo


def test_a_block_device_that_shrinks(bench):
    pooldir = pool(bench)
    backing, lo = on_loop(bench, pooldir)
    size = backing.stat().st_size
    d = bench.serve(pooldir)
    a, b = volumes(bench, d, 'a', 'b')
    write(a, 0, 1, 64)
    os.fsync(a)
    os.truncate(backing, 16 * BLOCK)
    run('losetup', '-c', lo.dev)
    eio(os.pread, a, BLOCK, 63 * BLOCK)
    eio(write, a, 63, 2)
    eio(write, b, 0, 2)  # EIO, not ENOSPC
    os.truncate(backing, size)
    run('losetup', '-c', lo.dev)
    write(b, 0, 2)
    write(a, 0, 3, 64)
    for fd in a, b:
        os.fsync(fd)
    assert reads_as(b, 0, 2) and reads_as(a, 0, 3, 64) and is_rw(d)
    os.close(a)
    os.close(b)
    d.stop()
    bench.check_clean(pooldir)
    lo.detach()


def test_a_block_device_that_grows(bench):
    pooldir = pool(bench)
    backing, lo = on_loop(bench, pooldir)
    d = bench.serve(pooldir)
    a, = volumes(bench, d, 'a')
    refused(bench.ctl('extend', d.mnt, '--data', '128M', check=False), FAILED, 'enlarge it first')
    os.truncate(backing, 128 * MIB)
    run('losetup', '-c', lo.dev)
    assert d.status()['data_total'] == 64 * MIB, 'not before somebody says so'
    bench.ctl('extend', d.mnt, '--data', '128M')
    wait_for('the new size', lambda: d.status()['data_total'] == 128 * MIB)
    write(a, 0, 1, 512)
    os.fsync(a)
    assert reads_as(a, 0, 1, 512) and is_rw(d)
    os.close(a)
    d.stop()
    bench.check_clean(pooldir)
    lo.detach()
