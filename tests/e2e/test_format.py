# SPDX-License-Identifier: GPL-2.0-or-later
"""Making and checking pools: on files, links and block devices, and what a failure leaves behind."""
import os
import stat
import struct
import subprocess

import pytest

from conftest import (BUSY, EXISTS, FAILED, GIB, KIB, MIB, NO_SPACE, NOT_FOUND, OK, THINPOOLCTL,
                      USAGE, refused, run)


def tree(directory):
    """Every name below a directory with what it is: a link's target, a file's size and content."""
    found = {}
    for path in sorted(directory.rglob('*')):
        st = path.lstat()
        if stat.S_ISLNK(st.st_mode):
            found[path] = os.readlink(path)
        elif stat.S_ISREG(st.st_mode):
            found[path] = (st.st_size, run('sha256sum', path).stdout.split()[0])
        else:
            found[path] = st.st_mode
    return found


class Unchanged:
    """A directory is after the block what it was before."""

    def __init__(self, directory):
        self.directory = directory

    def __enter__(self):
        self.before = tree(self.directory)

    def __exit__(self, kind, value, traceback):
        if not kind:
            assert tree(self.directory) == self.before


def sparse(path, size, first=b''):
    with open(path, 'wb') as f:
        f.truncate(size)
        f.write(first)
    return path


@pytest.fixture
def devices(bench):
    """Two loop devices: for data, for metadata."""
    return [bench.loop(sparse(bench.tmp / name, size)).dev
            for name, size in (('data.img', 256 * MIB), ('metadata.img', 16 * MIB))]


def sum_of(dev):
    return run('sha256sum', dev).stdout.split()[0]


def serve_and_fill(bench, pooldir):
    """It works as a pool: a volume keeps what is written across a restart."""
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '64M')
    with open(d.vol('v'), 'r+b') as f:
        f.write(b'thin' * MIB)
        os.fsync(f.fileno())
    d.stop()
    d = bench.serve(pooldir)
    with open(d.vol('v'), 'rb') as f:
        assert f.read(4 * MIB) == b'thin' * MIB
    return d


@pytest.mark.quick
def test_a_pool_on_block_devices(bench, devices):
    data, metadata = devices
    ctl, pooldir = bench.ctl, bench.tmp / 'pool'
    options = ('--data', data, '--metadata', metadata)
    ctl('format', pooldir, *options)
    assert os.readlink(pooldir / 'data') == data and os.readlink(pooldir / 'metadata') == metadata
    assert sorted(os.listdir(pooldir)) == ['data', 'metadata']
    ctl('check', pooldir)
    d = serve_and_fill(bench, pooldir)
    assert d.status()['data_total'] == 256 * MIB

    with Unchanged(pooldir):  # the content of devices in use is not compared: it is in use
        refused(ctl('check', pooldir, check=False), BUSY, 'in use')
        refused(ctl('format', pooldir, '--force', *options, check=False), BUSY, 'in use')
        refused(ctl('format', pooldir, '--force', '--size', '100M', check=False), BUSY, 'in use')
    d.stop()
    ctl('check', pooldir)

    sums = sum_of(data), sum_of(metadata)
    with Unchanged(pooldir):
        refused(ctl('format', pooldir, '--size', '100M', check=False), EXISTS, '--force')
        refused(ctl('format', pooldir, *options, check=False), EXISTS, '--force')
    refused(ctl('format', bench.tmp / 'other', *options, check=False), EXISTS, '--force')
    assert not (bench.tmp / 'other').exists()
    assert (sum_of(data), sum_of(metadata)) == sums

    ctl('format', pooldir, '--force', *options)
    ctl('check', pooldir)
    d = bench.serve(pooldir)
    assert d.list() == []
    d.stop()


@pytest.mark.quick
def test_devices_that_are_in_use_or_hold_something(bench, devices):
    data, metadata = devices
    ctl, pooldir = bench.ctl, bench.tmp / 'pool'

    def refuse(code, *args):
        sums = sum_of(data), sum_of(metadata)
        refused(ctl('format', pooldir, *args, check=False), code)
        assert not pooldir.exists()
        assert (sum_of(data), sum_of(metadata)) == sums

    refuse(USAGE, '--data', data, '--metadata', data)
    refuse(NO_SPACE, '--data', data, '--metadata', metadata, '--size', '1G')
    refuse(NO_SPACE, '--data', data, '--metadata', metadata, '--metadata-size', '1G')
    # One that begins with zeros for longer than a block of metadata.
    with open(data, 'r+b') as f:
        f.seek(64 * KIB)
        f.write(b'_BHRfS_M')
    refuse(EXISTS, '--data', data, '--metadata', metadata)
    run('mkfs.ext4', '-q', '-F', data)
    refuse(EXISTS, '--data', data, '--metadata', metadata)
    refuse(EXISTS, '--data', bench.tmp / 'new', '--size', '1G', '--metadata', data)
    assert not (bench.tmp / 'new').exists()
    where = bench.mount(data, 'mounted')
    for force in ((), ('--force',)):
        refused(ctl('format', pooldir, '--data', data, '--metadata', metadata, *force, check=False), BUSY)
        assert not pooldir.exists()
    bench.umount(where)


@pytest.mark.quick
def test_files_elsewhere(bench):
    ctl, pooldir = bench.ctl, bench.tmp / 'pool'
    far = bench.tmp / 'far'
    far.mkdir()
    # Relative to where the user is, not to the pool.
    run(THINPOOLCTL, 'format', '../pool', '--size', '1G', '--data', 'd', '--metadata', '../far/m', cwd=far)
    for name in ('data', 'metadata'):
        assert os.path.isabs(os.readlink(pooldir / name))
    assert (pooldir / 'data').stat().st_size == GIB == (far / 'd').stat().st_size
    serve_and_fill(bench, pooldir).stop()
    bench.check_clean(pooldir)

    # Again, where a link is in the way that says the same.
    options = ('--data', far / 'd', '--metadata', far / 'm')
    with Unchanged(bench.tmp):
        refused(ctl('format', pooldir, *options, check=False), EXISTS)
    ctl('format', pooldir, '--force', *options)
    bench.check_clean(pooldir)
    assert (far / 'd').stat().st_size == GIB
    # The file in the pool's own directory, spelled as if it were elsewhere.
    own = bench.format('own', '1G')
    ctl('format', own, '--force', '--data', own / '../own/data', '--metadata', own / 'metadata')
    assert not (own / 'data').is_symlink() and not (own / 'metadata').is_symlink()
    bench.check_clean(own)
    # Through the links that are there.
    ctl('format', pooldir, '--force', '--size', '2G')
    assert (far / 'd').stat().st_size == 2 * GIB and (pooldir / 'data').is_symlink()
    bench.check_clean(pooldir)


@pytest.mark.quick
def test_what_a_daemon_serves_is_not_replaced_by_links(bench):
    pooldir = bench.format('pool', '1G')
    d = bench.serve(pooldir)
    names = sorted(os.listdir(pooldir))
    inodes = [(pooldir / n).stat().st_ino for n in names]
    refused(bench.ctl('format', pooldir, '--force', '--size', '1G', '--data', bench.tmp / 'd', '--metadata',
                      bench.tmp / 'm', check=False), BUSY, 'in use')
    assert sorted(os.listdir(pooldir)) == names
    assert [(pooldir / n).stat().st_ino for n in names] == inodes
    assert not (bench.tmp / 'd').exists() and not (bench.tmp / 'm').exists()
    d.stop()
    bench.check_clean(pooldir)


@pytest.mark.quick
def test_a_failure_leaves_nothing_behind(bench):
    ctl, tmp = bench.ctl, bench.tmp
    pooldir = tmp / 'pool'
    new = ('--size', '1G', '--data', tmp / 'd')
    (tmp / 'text').write_text('not a pool, but a file of somebody')
    sparse(tmp / 'small', MIB)
    sparse(tmp / 'none', 0)
    os.symlink(tmp / 'nowhere', tmp / 'dangling')
    os.mkfifo(tmp / 'fifo')
    with Unchanged(tmp):
        for args, code, word in (
                ((*new, '--metadata', tmp / 'no/such/m'), NOT_FOUND, 'no/such/m'),
                ((*new, '--metadata', tmp), FAILED, 'neither a file nor a block device'),
                ((*new, '--metadata', tmp / 'fifo'), FAILED, 'neither a file nor a block device'),
                ((*new, '--metadata', tmp / 'd'), USAGE, 'same'),
                ((*new, '--metadata', tmp / 'text'), NO_SPACE, 'too small'),
                ((*new, '--metadata', tmp / 'text', '--metadata-size', '16M'), EXISTS, '--force'),
                ((*new, '--metadata', tmp / 'small'), NO_SPACE, 'too small'),
                ((*new, '--metadata', tmp / 'dangling'), FAILED, 'link to nothing'),
                (('--size', '1G', '--data', tmp / 'dangling', '--force'), FAILED, 'link to nothing'),
                (('--size', '1G', '--data', tmp / 'text'), EXISTS, '--force'),
                (('--data', tmp / 'text'), NO_SPACE, 'too small'),
                (('--data', tmp / 'none'), USAGE, '--size'),
                (('--data', tmp / 'd'), USAGE, '--size')):
            refused(ctl('format', pooldir, *args, check=False), code, word)
        refused(ctl('format', tmp / 'no/such/pool', '--size', '1G', check=False), NOT_FOUND, 'no/such/pool')
        refused(ctl('format', tmp / 'text', '--size', '1G', check=False), FAILED, 'not a directory')

    # In a directory that is there, with something of somebody in it.
    pooldir.mkdir()
    (pooldir / 'notes').write_text('mine')
    os.symlink(tmp / 'nowhere', pooldir / 'data')
    with Unchanged(tmp):
        refused(ctl('format', pooldir, '--size', '1G', check=False), FAILED, 'link to nothing')
        refused(ctl('format', pooldir, '--size', '1G', '--force', check=False), FAILED, 'link to nothing')
        refused(ctl('format', pooldir, *new, check=False), EXISTS, '--force')
        refused(ctl('format', pooldir, *new, '--force', '--metadata', tmp / 'no/m', check=False), NOT_FOUND)
    ctl('format', pooldir, *new, '--force')
    assert (pooldir / 'notes').read_text() == 'mine'
    assert os.readlink(pooldir / 'data') == str(tmp / 'd')
    bench.check_clean(pooldir)


@pytest.mark.quick
def test_a_host_without_room_or_right(bench):
    ctl = bench.ctl
    full = bench.mount('tmpfs', 'full', '-t', 'tmpfs', '-o', 'size=64k,nr_inodes=100')
    refused(ctl('format', full / 'pool', '--size', '1G', check=False), NO_SPACE)
    assert os.listdir(full) == []
    (full / 'pool').mkdir()
    refused(ctl('format', full / 'pool', '--size', '1G', check=False), NO_SPACE)
    assert os.listdir(full / 'pool') == []
    run('mount', '-o', 'remount,ro', full)
    refused(ctl('format', full / 'pool', '--size', '1G', check=False), FAILED, 'data')
    refused(ctl('format', full / 'new', '--size', '1G', check=False), FAILED, 'new')
    refused(ctl('format', full / 'pool', '--size', '1G', '--data', bench.tmp / 'd', '--metadata',
                bench.tmp / 'm', check=False), FAILED, 'Read-only')
    assert not (bench.tmp / 'd').exists() and not (bench.tmp / 'm').exists()


@pytest.mark.quick
@pytest.mark.parametrize('size, block, expect', [('100000001', '64K', 1525 * 64 * KIB), ('1000M', '192K', 5333 * 192 * KIB),
                                                 ('5G', '1G', 5 * GIB)])
def test_sizes_are_whole_blocks(bench, size, block, expect):
    pooldir = bench.format('pool', size, '--block-size', block, '--metadata-size', '3000001')
    assert (pooldir / 'data').stat().st_size == expect
    assert (pooldir / 'metadata').stat().st_size == 3000001 // 4096 * 4096
    bench.check_clean(pooldir)
    d = bench.serve(pooldir)
    assert d.status()['data_total'] == expect
    d.stop()


@pytest.mark.quick
def test_a_file_that_is_reused_gets_the_size_asked_for(bench):
    """A larger one would be grown into; an odd one cannot be discarded as a whole."""
    for n in (5 * GIB + 777, 100001):
        data = sparse(bench.tmp / 'data', n, b'old')
        metadata = sparse(bench.tmp / 'metadata', 50000003, b'old')
        bench.ctl('format', bench.tmp / 'pool', '--size', '1G', '--data', data, '--metadata', metadata, '--force')
        assert data.stat().st_size == GIB and data.stat().st_blocks * 512 < MIB
        assert metadata.stat().st_size == 50000003 // 4096 * 4096
        d = bench.serve(bench.tmp / 'pool')
        assert d.status()['data_total'] == GIB
        d.stop()
        bench.check_clean(bench.tmp / 'pool')


@pytest.mark.parametrize('host,written', [('4G', '128M'), ('256M', '0')])
def test_metadata_has_its_blocks_where_the_host_has_plenty(bench, host, written):
    """Those of all of it, so that a full host breaks no commit; not an eighth of what the host has left."""
    where = bench.mount('tmpfs', 'host', '-t', 'tmpfs', '-o', f'size={host}')
    bench.ctl('format', where / 'pool', '--size', '128G', '--metadata-size', '128M')
    taken = (where / 'pool/metadata').stat().st_blocks * 512
    expected = int(written.rstrip('M')) * MIB
    assert expected <= taken <= expected + 4 * MIB
    bench.check_clean(where / 'pool')


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc


def bitmap_checksum(block):
    return crc32c(block[4:]) ^ 240779


@pytest.mark.quick
def test_check_tells_leaks_and_is_content(bench):
    """A block counted once that nobody has: told, and exit 0."""
    pooldir = bench.format('pool', '1G')
    entry, found = 60, 0
    with open(pooldir / 'metadata', 'r+b') as f:
        for nr in range(1, 64):
            f.seek(nr * 4096)
            block = bytearray(f.read(4096))
            csum, _, self_nr = struct.unpack_from('<IIQ', block)
            # Bitmaps, those of transactions past too.
            if self_nr == nr and csum == bitmap_checksum(block):
                block[16 + entry // 4] |= 2 << entry % 4 * 2
                struct.pack_into('<I', block, 0, bitmap_checksum(block))
                f.seek(nr * 4096)
                f.write(block)
                found += 1
    assert found >= 2
    p = bench.ctl('check', pooldir, check=False)
    assert p.returncode == OK, p.stdout
    assert 'leak: ' in p.stdout and 'clean' in p.stdout and 'lost to leaks' in p.stdout


@pytest.mark.quick
def test_check_of_what_is_no_pool(bench):
    ctl = bench.ctl
    refused(ctl('check', bench.tmp / 'nowhere', check=False), NOT_FOUND, 'nowhere')
    empty = bench.tmp / 'empty'
    empty.mkdir()
    refused(ctl('check', empty, check=False), NOT_FOUND, 'metadata')
    sparse(empty / 'metadata', 16 * MIB)
    refused(ctl('check', empty, check=False), NOT_FOUND, 'data')
    sparse(empty / 'data', 64 * MIB)
    with Unchanged(empty):
        assert ctl('check', empty, check=False).returncode == FAILED


@pytest.mark.quick
def test_a_list_that_cannot_be_written_is_a_failure(bench):
    d = bench.serve(bench.format('pool', '1G'))
    bench.ctl('create', d.vol('v'), '--size', '1M')
    for args in (('list', d.mnt), ('status', d.mnt), ('list', '--json', d.mnt)):
        with open('/dev/full', 'w') as full:
            p = subprocess.run([THINPOOLCTL, *args], stdout=full, stderr=subprocess.PIPE, text=True)
        assert p.returncode == FAILED and 'output' in p.stderr
    p = subprocess.run([THINPOOLCTL, 'create', os.fsencode(d.mnt) + b'/caf\xe9', '--size', '1M'],
                       stderr=subprocess.PIPE)
    assert p.returncode == FAILED and b'UTF-8' in p.stderr
    d.stop()
