# SPDX-License-Identifier: GPL-2.0-or-later
"""Metadata that fails under the real daemon: what becomes of the pool and of who writes to it."""
import contextlib
import ctypes
import errno
import mmap
import os
import struct

import pytest

import metadata_image
from conftest import (BUSY, FAILED, KIB, THINPOOLCTL, refused, run, snapshot_of, wait_for)
from failing_device import METADATA_BLOCK

BLOCK = 64 * KIB
NEEDS_CHECK = 1


def expect_errno(number, what, *args):
    with pytest.raises(OSError) as e:
        what(*args)
    assert e.value.errno == number, e.value


def block_of(byte):
    return bytes([byte]) * BLOCK


def write(fd, block, byte):
    assert os.pwrite(fd, block_of(byte), block * BLOCK) == BLOCK


def read(fd, block):
    return os.pread(fd, BLOCK, block * BLOCK)


def needs_check_flag(path):
    with open(path, 'rb') as f:
        return struct.unpack_from('<I', f.read(METADATA_BLOCK), metadata_image.SB_FLAGS)[0] & NEEDS_CHECK


class Case:
    """A pool on metadata that fails on demand, with open volumes."""

    def __init__(self, bench, *volumes, cache='pages'):
        self.bench = bench
        self.pooldir = bench.format('pool', '64M')
        # What is lost is lost by the commit that a test asks for, not by one that comes by itself.
        (self.pooldir / 'pool.conf').write_text(
            f'[pool]\ncommit_interval = 60\n[fuse]\ncache = {cache}\n')
        self.device = bench.failing_metadata(self.pooldir)
        self.d = bench.serve(self.pooldir)
        self.fds = []
        for name in volumes:
            bench.ctl('create', self.d.vol(name), '--size', '8M')

    def open(self, name, flags=os.O_RDWR):
        self.fds.append(os.open(self.d.vol(name), flags))
        return self.fds[-1]

    def close(self, fd):
        self.fds.remove(fd)
        os.close(fd)

    def mode(self):
        return self.d.status()['mode']

    def fail_a_commit(self):
        """By a command: no handle of a volume has anything to do with it."""
        self.device.fail('write')
        p = self.bench.ctl('create', self.d.vol('one-more'), '--size', '1M', check=False)
        self.device.heal()
        refused(p, FAILED, 'the change was taken back')
        assert self.mode() == 'ro'

    def end(self):
        for fd in list(self.fds):
            self.close(fd)
        self.d.stop()

    def stop(self):
        self.end()
        self.device.remove()

    def serve_again(self):
        self.d = self.bench.serve(self.pooldir)


def told_once(fd):
    """Each handle hears of it once."""
    expect_errno(errno.EIO, os.fsync, fd)
    os.fsync(fd)
    os.fdatasync(fd)


# ---- who is told that writes were lost ----

@pytest.mark.quick
def test_a_commit_that_cannot_be_written_leaves_what_was_synced(bench):
    c = Case(bench, 'v')
    fd = c.open('v')
    write(fd, 0, 1)
    os.fsync(fd)
    c.device.fail('write')
    write(fd, 1, 2)
    told_once(fd)
    assert c.device.failures('write') > 0
    assert c.mode() == 'ro'
    c.device.heal()
    # Mapped reads and writes go on, also what is not aligned to anything.
    assert read(fd, 0) == block_of(1)
    write(fd, 0, 3)
    os.pwrite(fd, b'x' * 1000, 777)
    os.fsync(fd)
    wait_for('the lost page to go', lambda: read(fd, 1) == bytes(BLOCK))
    expect_errno(errno.EIO, write, fd, 2, 4)
    c.stop()

    assert needs_check_flag(c.pooldir / 'metadata')
    bench.ctl('check', '--clear-needs-check', c.pooldir)
    bench.check_clean(c.pooldir)
    c.serve_again()
    fd = c.open('v')
    assert read(fd, 0) == block_of(3)[:777] + b'x' * 1000 + block_of(3)[1777:]
    assert read(fd, 1) == bytes(BLOCK)
    write(fd, 1, 5)
    os.fsync(fd)
    assert c.mode() == 'rw'
    c.end()


@pytest.mark.quick
def test_every_handle_is_told_once_and_no_other_volume(bench):
    c = Case(bench, 'lost', 'kept')
    writer, other, reader = c.open('lost'), c.open('lost'), c.open('lost', os.O_RDONLY)
    kept = c.open('kept')
    write(kept, 0, 1)
    os.fsync(kept)
    write(kept, 0, 2)  # in place: nothing to commit
    write(writer, 0, 1)
    c.fail_a_commit()
    late = c.open('lost')  # nobody has been told yet
    told_once(other)
    later = c.open('lost')
    told_once(reader)
    os.fsync(later)
    told_once(late)
    told_once(writer)
    os.fsync(kept)
    assert read(kept, 0) == block_of(2)
    c.stop()


@pytest.mark.quick
def test_closing_and_opening_a_file_hides_no_loss(bench):
    c = Case(bench, 'v')
    fd = c.open('v')
    write(fd, 0, 1)
    c.close(fd)
    c.fail_a_commit()
    c.close(c.open('v'))  # nobody asked here
    fd = c.open('v')
    told_once(fd)
    c.close(fd)
    fd = c.open('v')
    os.fsync(fd)
    c.stop()


@contextlib.contextmanager
def opened(lo):
    fd = os.open(lo.dev, os.O_RDWR | os.O_DIRECT)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.quick
def test_a_disk_is_told_until_it_is_detached(bench):
    """Many share a loop device, and each of them must hear; nor may a file system tidy up after the loss."""
    c = Case(bench, 'v')
    fd = c.open('v')
    write(fd, 0, 1)
    os.fsync(fd)
    lo = bench.loop(c.d.vol('v'))
    with opened(lo) as disk:
        assert os.pwrite(disk, aligned(block_of(2)), BLOCK) == BLOCK
        c.fail_a_commit()
        for _ in range(3):
            expect_errno(errno.EIO, os.fsync, disk)
            expect_errno(errno.EIO, os.pwrite, disk, aligned(block_of(3)), 0)
        again = aligned(bytes(BLOCK))
        assert os.preadv(disk, [again], 0) == BLOCK and again[:] == block_of(1)
    told_once(fd)  # a file's handle is told as ever, and its writes go on
    write(fd, 0, 4)
    lo.detach()
    lo = bench.loop(c.d.vol('v'))
    with opened(lo) as disk:
        assert os.pwrite(disk, aligned(block_of(5)), 0) == BLOCK
        os.fsync(disk)
    lo.detach()
    assert read(fd, 0) == block_of(5)
    c.stop()


def write_back(fd):
    """What the kernel holds of the file goes to the disk; nothing makes it durable."""
    wait_before_write_after = 1 | 2 | 4
    libc = ctypes.CDLL(None, use_errno=True)
    offset = ctypes.c_int64(0)
    assert libc.sync_file_range(fd, offset, offset, wait_before_write_after) == 0


def test_no_file_is_synced_that_was_lost_with_the_disk_below(bench):
    """The first to sync hears of the loss; the second has lost his file, and must not be told that it is safe."""
    c = Case(bench)
    bench.ctl('create', c.d.vol('disk'), '--size', '64M')
    lo = bench.loop(c.d.vol('disk'))
    run('mkfs.ext4', '-q', '-E', 'nodiscard,lazy_itable_init=0', lo.dev)
    root = bench.mount(lo.dev, 'root')
    with open(root / 'first', 'wb') as first, open(root / 'second', 'wb', buffering=0) as second:
        first.write(b'1')
        first.flush()
        run('sync', '-f', root)
        second.write(block_of(2) * 16)
        write_back(second.fileno())
        c.fail_a_commit()
        expect_errno(errno.EIO, os.fsync, first.fileno())
        expect_errno(errno.EIO, os.fsync, second.fileno())
    bench.umount(root)
    lo.detach()
    c.stop()
    bench.ctl('check', '--clear-needs-check', c.pooldir)

    c.serve_again()
    lo = bench.loop(c.d.vol('disk'))
    root = bench.mount(lo.dev, 'root')
    assert (root / 'first').read_bytes() == b'1'
    bench.umount(root)
    run('e2fsck', '-fn', lo.dev)
    lo.detach()
    c.end()


def aligned(content):
    buffer = mmap.mmap(-1, len(content))
    buffer.write(content)
    return buffer


@pytest.mark.quick
@pytest.mark.parametrize('cache', ['pages', 'none'])
def test_synchronous_writers_are_told_too(bench, cache):
    c = Case(bench, 'v', cache=cache)
    plain = c.open('v')
    write(plain, 0, 1)
    os.fsync(plain)
    sync, dsync, direct = (c.open('v', os.O_RDWR | f)
                           for f in (os.O_SYNC, os.O_DSYNC, os.O_DSYNC | os.O_DIRECT))
    write(plain, 1, 1)
    c.fail_a_commit()
    expect_errno(errno.EIO, write, sync, 0, 2)
    write(sync, 0, 3)
    expect_errno(errno.EIO, write, dsync, 0, 4)
    write(dsync, 0, 5)
    buffer = aligned(block_of(6))
    expect_errno(errno.EIO, os.pwrite, direct, buffer, 0)
    assert os.pwrite(direct, buffer, 0) == BLOCK
    told_once(plain)
    assert read(plain, 0) == block_of(6)
    c.stop()


def test_a_lost_size_is_told_as_well(bench):
    c = Case(bench)
    fd = c.open('v', os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b'a' * 100, 0)
    os.fsync(fd)
    os.pwrite(fd, b'b' * 100, 100)  # into the block that is mapped: only the size is new
    c.fail_a_commit()
    told_once(fd)
    wait_for('the size to be as it was', lambda: os.fstat(fd).st_size == 100)
    c.stop()


# ---- what is told about the pool ----

@pytest.mark.quick
def test_the_reason_and_the_remedy_are_told_once(bench):
    c = Case(bench, 'v')
    c.fail_a_commit()
    status = c.d.status()
    assert status['mode'] == 'ro' and status['needs_check']
    assert status['reason'].startswith('cannot commit: metadata block ')
    assert 'cannot be written (Input/output error)' in status['reason']
    command = f'thinpoolctl check --clear-needs-check {c.pooldir}'
    assert command in status['remedy']
    assert status['statistics']['aborts'] == 1
    assert 0 < status['longest_abort_usec'] < 60_000_000
    text = run(THINPOOLCTL, 'status', c.d.mnt).stdout
    assert status['reason'] in text and command in text and 'the longest took' in text
    text = (c.d.mnt / '.thinpool/status').read_text()
    assert status['reason'] in text and command in text and '1 aborts, the longest' in text
    metrics = (c.d.mnt / '.thinpool/metrics').read_text()
    assert 'thinpoold_aborts_total 1\n' in metrics
    assert f'thinpoold_longest_abort_microseconds {status["longest_abort_usec"]}\n' in metrics
    # More of the same is refused and adds no line.
    refused(bench.ctl('create', c.d.vol('x'), '--size', '1M', check=False), FAILED, command)
    lines = [line for line in c.d.log_text().splitlines() if status['reason'] in line]
    assert len(lines) == 1 and command in lines[0] and 'read-only' in lines[0]
    c.stop()


def leaf_of(path, thin_id):
    """The block that has the mappings of a small volume."""
    image = metadata_image.Image(path)
    top = image.where['top_leaf']
    return dict(zip(image.keys(top), image.values(top)))[thin_id]


def cold_case(bench):
    """Two volumes with a block each, the mappings of which nobody has looked up."""
    c = Case(bench, 'good', 'bad')
    for name in ('good', 'bad'):
        fd = c.open(name)
        write(fd, 0, 1)
        os.fsync(fd)
        c.close(fd)
    ids = {v['name']: v['id'] for v in c.d.list()}
    c.d.stop()
    c.serve_again()
    return c, leaf_of(c.device.backing, ids['bad'])


def test_a_damaged_block_found_by_a_reader_makes_the_pool_read_only(bench):
    c, leaf = cold_case(bench)
    before = c.device.corrupt(leaf)
    good, bad = c.open('good'), c.open('bad')
    write(good, 1, 2)  # and lost
    expect_errno(errno.EIO, read, bad, 0)
    status = c.d.status()
    assert status['mode'] == 'ro' and status['needs_check']
    assert f'metadata block {leaf} is damaged' in status['reason']
    assert read(good, 0) == block_of(1)
    told_once(good)
    os.fsync(bad)  # it has lost nothing
    c.device.restore(leaf, before)
    c.stop()
    assert needs_check_flag(c.pooldir / 'metadata')


def test_metadata_that_cannot_be_read_at_all_ends_the_service(bench):
    c, leaf = cold_case(bench)
    good, bad = c.open('good'), c.open('bad')
    assert read(good, 0) == block_of(1)
    c.device.fail('read')
    expect_errno(errno.EIO, read, bad, 0)
    status = c.d.status()
    assert status['mode'] == 'fail' and f'metadata block {leaf} cannot be read' in status['reason']
    expect_errno(errno.EIO, write, good, 0, 2)
    c.device.heal()
    expect_errno(errno.EIO, write, good, 0, 2)  # until it is reopened
    c.stop()
    bench.check_clean(c.pooldir)
    c.serve_again()
    assert c.mode() == 'rw'
    assert read(c.open('bad'), 0) == block_of(1)
    c.end()


def test_a_dump_that_meets_damage_says_so_and_the_pool_goes_on(bench):
    """Who asks for the dump reads the metadata himself; the pool has not met the damage."""
    c, leaf = cold_case(bench)
    c.device.corrupt(leaf)
    p = bench.ctl('dump', c.d.mnt, check=False)
    assert p.returncode == FAILED
    assert 'the dump is not complete: a block has a wrong checksum' in p.stdout.splitlines()[-1]
    assert c.mode() == 'rw'


# ---- needs_check ----

def failed_pool(bench):
    """Stopped, flagged, and nothing else the matter with it."""
    c = Case(bench, 'v')
    fd = c.open('v')
    write(fd, 0, 1)
    os.fsync(fd)
    c.fail_a_commit()
    c.stop()
    assert needs_check_flag(c.pooldir / 'metadata')
    return c


@pytest.mark.quick
def test_a_flagged_pool_is_served_read_only_and_says_so(bench):
    c = failed_pool(bench)
    before = snapshot_of(c.pooldir)
    c.serve_again()
    status = c.d.status()
    command = f'thinpoolctl check --clear-needs-check {c.pooldir}'
    assert status['mode'] == 'ro' and 'NEEDS_CHECK' in status['reason']
    assert command in status['remedy'] and command in c.d.log_text()
    assert read(c.open('v', os.O_RDONLY), 0) == block_of(1)
    expect_errno(errno.EROFS, c.open, 'v')
    refused(bench.ctl('create', c.d.vol('x'), '--size', '1M', check=False), FAILED, command)
    refused(bench.ctl('check', '--clear-needs-check', c.pooldir, check=False), BUSY)
    c.end()
    assert snapshot_of(c.pooldir) == before


@pytest.mark.quick
def test_the_flag_is_cleared_when_nothing_is_damaged(bench):
    c = failed_pool(bench)
    before = (c.pooldir / 'metadata').read_bytes()
    assert '--clear-needs-check' in bench.ctl('check', c.pooldir).stdout
    assert (c.pooldir / 'metadata').read_bytes() == before
    p = bench.ctl('check', '--clear-needs-check', c.pooldir)
    assert 'flag is cleared' in p.stdout
    after = (c.pooldir / 'metadata').read_bytes()
    # The flag and the checksum, nothing else.
    assert after[8:] == before[8:] and after != before
    assert not needs_check_flag(c.pooldir / 'metadata')
    assert 'is not set' in bench.ctl('check', '--clear-needs-check', c.pooldir).stdout
    assert (c.pooldir / 'metadata').read_bytes() == after
    bench.check_clean(c.pooldir)
    c.serve_again()
    assert c.mode() == 'rw'
    write(c.open('v'), 1, 2)
    c.end()


def test_the_flag_of_a_damaged_pool_stays(bench):
    c = failed_pool(bench)
    metadata = c.pooldir / 'metadata'
    good = metadata.read_bytes()
    image = metadata_image.Image(metadata)
    for block in (image.where['data_bitmap'], image.where['details_leaf'], 0):
        damaged = bytearray(good)
        damaged[block * METADATA_BLOCK + 100] ^= 1
        metadata.write_bytes(damaged)
        before = snapshot_of(c.pooldir)
        refused(bench.ctl('check', '--clear-needs-check', c.pooldir, check=False), FAILED,
                c.pooldir)
        assert snapshot_of(c.pooldir) == before, f'block {block}'
    # A right checksum over a wrong count is damage too.
    metadata.write_bytes(good)
    image.set_count(image.where['data_bitmap'], 0, 0)
    image.seal(image.where['data_bitmap'])
    image.save(metadata)
    before = snapshot_of(c.pooldir)
    refused(bench.ctl('check', '--clear-needs-check', c.pooldir, check=False), FAILED, 'damaged',
            'not cleared')
    assert snapshot_of(c.pooldir) == before


def test_the_flag_is_stored_when_the_device_is_well_again(bench):
    c = Case(bench, 'v')
    fd = c.open('v')
    write(fd, 0, 1)
    c.device.fail('write')
    told_once(fd)
    assert c.d.status()['needs_check']
    assert not needs_check_flag(c.device.backing)
    assert 'NEEDS_CHECK cannot be stored now' in c.d.log_text()
    c.device.heal()
    wait_for('the flag', lambda: needs_check_flag(c.device.backing))
    wait_for('the line', lambda: 'NEEDS_CHECK is stored now' in c.d.log_text())
    c.stop()
    bench.ctl('check', c.pooldir)
