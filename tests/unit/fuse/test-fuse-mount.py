#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The FUSE layer, mounted over a pool in memory, through real system calls.

Usage: test-fuse-mount.py DAEMON [TEST...]      TAP on standard output; exit 77 without root or FUSE.
TP_SEED and TP_OPS replay the random tests.  A watchdog aborts the connection of a test that hangs.
"""
import errno
import mmap
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time

from fuse_harness import (FUSECTL, OFFERS_URING, URING, Mount, check, eventually, fails, fallocate, get,
                          in_threads, libc_call, main, mount, put, renameat2, same, uring_offered)

BLOCK = 65536
SEED = int(os.environ.get('TP_SEED', random.randrange(1 << 32)))
OPS = int(os.environ.get('TP_OPS', 1500))
KEEP, PUNCH, COLLAPSE, ZERO = 1, 2, 8, 0x10  # fallocate
NOREPLACE, EXCHANGE = 1, 2  # renameat2
OP_READ, OP_WRITE, OP_FLUSH = 0, 1, 2  # enum pool_io_op


def test_names():
    with mount() as m:
        put(m.f('vol'), b'x')
        put(m.f('ä' * 127 + 'b'), b'longest')
        same(len(os.fsencode('ä' * 127 + 'b')), 255)
        for bad in [b'.hidden', b'a\nb', b'\xff\xfe', b'\x7f']:
            fails(errno.EINVAL, os.open, os.fsencode(m.path) + b'/' + bad,
                  os.O_CREAT | os.O_WRONLY)
            fails(errno.EINVAL, os.rename, m.f('vol').encode(),
                  os.fsencode(m.path) + b'/' + bad)
        fails(errno.ENAMETOOLONG, os.open, m.f('x' * 256), os.O_CREAT | os.O_WRONLY)
        fails(errno.ENAMETOOLONG, os.stat, m.f('x' * 300))
        fails(errno.ENOENT, os.stat, m.f('none'))
        fails(errno.ENOENT, os.unlink, m.f('none'))
        fails(errno.EPERM, os.mkdir, m.f('dir'))
        fails(errno.EPERM, os.symlink, 'vol', m.f('sym'))
        fails(errno.EPERM, os.mkfifo, m.f('fifo'))
        os.mknod(m.f('node'), 0o100600)
        same(os.stat(m.f('node')).st_size, 0)
        fails(errno.EEXIST, os.mknod, m.f('node'), 0o100600)
        fails(errno.EEXIST, os.open, m.f('vol'), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        same(get(m.f('vol')), b'x')
        same(sorted(os.listdir(m.path)), sorted(['.thinpool', 'node', 'vol', 'ä' * 127 + 'b']))


def test_thinpool_directory_is_protected():
    with mount() as m:
        d = m.f('.thinpool')
        put(m.f('vol'), b'x')
        same(sorted(os.listdir(d)), ['long', 'status'])
        same(sorted(e.name for e in os.scandir(d) if e.stat().st_mode & 0o777 == 0o444),
             ['long', 'status'])
        same([os.stat(d).st_ino, os.stat(d + '/status').st_ino], [2, 3])
        for fn, args in [(os.rmdir, (d,)), (os.unlink, (d + '/status',)),
                         (os.rename, (d, m.f('other'))), (os.rename, (d + '/status', m.f('s'))),
                         (os.rename, (m.f('vol'), d + '/vol')), (os.link, (d + '/status', m.f('s'))),
                         (os.link, (m.f('vol'), d + '/s')),
                         (os.open, (d + '/new', os.O_CREAT | os.O_WRONLY)),
                         (os.truncate, (d + '/status', 0)),
                         (os.open, (d + '/status', os.O_WRONLY))]:
            fails((errno.EPERM, errno.EACCES), fn, *args)
        same(get(d + '/status'), b'volumes: 1\n')


def test_virtual_files_show_one_state_per_open():
    with mount() as m:
        path = m.f('.thinpool/status')
        with open(path, 'rb', buffering=0) as f:
            put(m.f('new'), b'')
            same(f.read(4), b'volu')
            same(f.read(100), b'mes: 0\n')
            same(f.read(100), b'')
        same(get(path), b'volumes: 1\n')
        with open(m.f('.thinpool/long'), 'rb', buffering=0) as f:
            data = b''
            while piece := f.read(7777):
                data += piece
        same(data, b'x' * 300000)
        fds = []
        try:
            for _ in range(256):
                fds.append(os.open(path, os.O_RDONLY))
            fails(errno.ENFILE, os.open, path, os.O_RDONLY)
        finally:
            for fd in fds:
                os.close(fd)
        # RELEASE is sent without waiting for its answer.
        eventually(lambda: get(path) == b'volumes: 1\n', 'handles are given back')


def test_attributes():
    with mount() as m:
        v = m.f('vol')
        put(v, b'a' * 1000)
        st = os.stat(v)
        same((st.st_size, st.st_blocks, st.st_mode, st.st_nlink), (1000, 128, 0o100600, 1))
        same((st.st_uid, st.st_gid), (os.geteuid(), os.getegid()))
        check(st.st_blksize >= 4096 and st.st_blksize & (st.st_blksize - 1) == 0, 'st_blksize')
        os.truncate(v, 10 << 30)
        same((os.stat(v).st_size, os.stat(v).st_blocks), (10 << 30, 128))
        put(v, b'b', offset=5 << 30)
        same(os.stat(v).st_blocks, 256)
        os.chmod(v, 0o600)
        fails(errno.EPERM, os.chmod, v, 0o644)
        os.chown(v, os.geteuid(), -1)
        fails(errno.EPERM, os.chown, v, 12345, -1)
        os.utime(v, (1, 1))
        before = os.stat(v).st_mtime
        check(before > 1, 'times are not kept')
        time.sleep(0.02)  # the coarse clock's tick
        put(v, b'c')
        check(os.stat(v).st_mtime > before, 'a write is a modification')
        st = os.statvfs(m.path)
        same((st.f_bsize, st.f_frsize, st.f_namemax), (BLOCK, BLOCK, 255))
        same(st.f_blocks - st.f_bfree, 2)
        m('snapshot vol frozen ro')
        same(os.stat(m.f('frozen')).st_mode, 0o100400)
        fails(errno.EROFS, os.open, m.f('frozen'), os.O_WRONLY)
        fails(errno.EROFS, os.truncate, m.f('frozen'), 0)


def test_truncate():
    with mount() as m:
        v = m.f('vol')
        put(v, b'x' * 200000)
        os.truncate(v, 100001)
        os.truncate(v, 200000)
        same(get(v), b'x' * 100001 + bytes(99999))
        os.close(os.open(v, os.O_RDWR | os.O_TRUNC))
        same((os.stat(v).st_size, os.stat(v).st_blocks), (0, 0))
        fd = os.open(v, os.O_RDWR)
        os.unlink(v)
        os.ftruncate(fd, 12345)  # has no name any more
        same(os.fstat(fd).st_size, 12345)
        os.close(fd)


def test_fallocate():
    with mount() as m:
        fd = os.open(m.f('vol'), os.O_RDWR | os.O_CREAT)
        fallocate(fd, 0, 0, 3 * BLOCK + 5)
        same((os.fstat(fd).st_size, os.fstat(fd).st_blocks), (3 * BLOCK + 5, 4 * 128))
        fallocate(fd, KEEP, 3 * BLOCK, 10 * BLOCK)
        same(os.fstat(fd).st_size, 3 * BLOCK + 5)
        os.pwrite(fd, b'y' * 3 * BLOCK, 0)
        fallocate(fd, PUNCH | KEEP, 100, 2 * BLOCK)
        same(os.pread(fd, 4 * BLOCK, 0),
             b'y' * 100 + bytes(2 * BLOCK) + b'y' * (BLOCK - 100) + bytes(5))
        same(os.fstat(fd).st_blocks, 3 * 128)
        fallocate(fd, ZERO, 3 * BLOCK, 2 * BLOCK)
        same(os.fstat(fd).st_size, 5 * BLOCK)
        fallocate(fd, ZERO | KEEP, 0, 100 * BLOCK)
        same(os.fstat(fd).st_size, 5 * BLOCK)
        same(os.pread(fd, 5 * BLOCK, 0), bytes(5 * BLOCK))
        fallocate(fd, PUNCH | KEEP, 50 * BLOCK, BLOCK)
        fails(errno.EOPNOTSUPP, fallocate, fd, COLLAPSE, 0, BLOCK)
        c = m.counts()
        same((c['punches'], c['zeroes'], c['allocates']), (1, 2, 2))
        os.close(fd)


def test_seek():
    with mount() as m:
        fd = os.open(m.f('vol'), os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 10 * BLOCK)
        os.pwrite(fd, b'x', 3 * BLOCK + 7)
        same(os.lseek(fd, 0, os.SEEK_DATA), 3 * BLOCK)
        same(os.lseek(fd, 3 * BLOCK + 5, os.SEEK_DATA), 3 * BLOCK + 5)
        same(os.lseek(fd, 3 * BLOCK, os.SEEK_HOLE), 4 * BLOCK)
        same(os.lseek(fd, 0, os.SEEK_HOLE), 0)
        fails(errno.ENXIO, os.lseek, fd, 4 * BLOCK, os.SEEK_DATA)
        fails(errno.ENXIO, os.lseek, fd, 10 * BLOCK, os.SEEK_HOLE)
        same(os.lseek(fd, -1, os.SEEK_END), 10 * BLOCK - 1)
        os.close(fd)
        m.counts()
        subprocess.run(['cp', '--sparse=auto', m.f('vol'), m.f('copy')], check=True)
        same(get(m.f('copy')), get(m.f('vol')))


def test_link_is_a_snapshot():
    with mount() as m:
        put(m.f('vol'), b'old')
        os.link(m.f('vol'), m.f('snap'))
        a, b = os.stat(m.f('vol')), os.stat(m.f('snap'))
        check(a.st_ino != b.st_ino, 'an inode of its own')
        same((a.st_nlink, b.st_nlink), (1, 1))
        put(m.f('vol'), b'new')
        same((get(m.f('vol')), get(m.f('snap'))), (b'new', b'old'))
        put(m.f('snap'), b'own')
        same((get(m.f('vol')), get(m.f('snap'))), (b'new', b'own'))
        fails(errno.EEXIST, os.link, m.f('vol'), m.f('snap'))
        fails(errno.EINVAL, os.link, m.f('vol'), m.f('.s'))
        same(os.getxattr(m.f('snap'), 'user.thinpool.origin'),
             os.getxattr(m.f('vol'), 'user.thinpool.id'))
        fd = os.open(m.f('vol'), os.O_RDONLY)
        os.unlink(m.f('vol'))
        fails(errno.ENOENT, libc_call, 'linkat', fd, b'', -100, os.fsencode(m.f('late')), 0x1000)
        os.close(fd)


def test_rename():
    with mount() as m:
        for n in 'abc':
            put(m.f(n), n.encode())
        os.rename(m.f('a'), m.f('d'))
        fails(errno.ENOENT, os.stat, m.f('a'))
        same(get(m.f('d')), b'a')
        fails(errno.EEXIST, renameat2, m.f('d'), m.f('b'), NOREPLACE)
        renameat2(m.f('d'), m.f('b'), EXCHANGE)
        same((get(m.f('d')), get(m.f('b'))), (b'b', b'a'))
        fd = os.open(m.f('c'), os.O_RDWR)
        os.rename(m.f('b'), m.f('c'))  # over an open one
        same(get(m.f('c')), b'a')
        same(os.pread(fd, 10, 0), b'c')
        os.pwrite(fd, b'still', 0)
        same(os.pread(fd, 10, 0), b'still')
        same(m.counts()['volumes'], 3)
        os.close(fd)
        eventually(lambda: m.counts()['volumes'] == 2, 'gone at the last close')
        same(sorted(os.listdir(m.path)), ['.thinpool', 'c', 'd'])


def test_unlink_while_open():
    with mount() as m:
        put(m.f('vol'), b'data')
        a = os.open(m.f('vol'), os.O_RDWR)
        b = os.open(m.f('vol'), os.O_RDONLY)
        os.unlink(m.f('vol'))
        fails(errno.ENOENT, os.stat, m.f('vol'))
        put(m.f('vol'), b'another')
        os.pwrite(a, b'DATA', 0)
        same(os.pread(b, 10, 0), b'DATA')
        same(os.fstat(b).st_nlink, 0)
        os.close(a)
        same(m.counts()['volumes'], 2)
        os.close(b)
        eventually(lambda: m.counts()['volumes'] == 1, 'gone at the last close')
        same(get(m.f('vol')), b'another')


def test_id_used_again_shows_nothing_old():
    with mount() as m:
        for i in range(20):
            data = bytes([65 + i]) * (1000 + i)
            put(m.f('vol'), data)
            same(get(m.f('vol')), data)
            same(os.stat(m.f('vol')).st_ino, 16)
            os.unlink(m.f('vol'))


def test_directory_of_2000():
    with mount() as m:
        names = {f'volume-{i:04}' for i in range(2000)}
        for n in sorted(names):
            m(f'create {n} {4096}')
        same(set(os.listdir(m.path)) - {'.thinpool'}, names)
        same({e.name for e in os.scandir(m.path)
              if e.is_file() and e.stat().st_size == 4096}, names)
        # What is there all the time is shown once, whatever comes and goes meanwhile.
        seen = []
        with os.scandir(m.path) as entries:
            for i, e in enumerate(entries):
                seen.append(e.name)
                if i % 100 == 50:
                    m(f'delete volume-{i + 4:04}')
                    names.discard(f'volume-{i + 4:04}')
        same(len(seen), len(set(seen)), 'shown twice')
        check(names <= set(seen), 'left out')
        same(set(os.listdir(m.path)) - {'.thinpool'}, names)


def test_xattrs():
    with mount() as m:
        put(m.f('vol'), b'x')
        same(os.getxattr(m.path, 'user.thinpool.socket'), b'/run/fake/socket')
        same(os.listxattr(m.path), ['user.thinpool.socket'])
        same(os.getxattr(m.f('vol'), 'user.thinpool.used'), str(BLOCK).encode())
        names = 'id', 'used', 'mapped', 'read_only', 'created'
        same(set(os.listxattr(m.f('vol'))), {'user.thinpool.' + n for n in names})
        same(os.getxattr(m.f('vol'), 'user.thinpool.mapped'), b'1')
        for path in m.path, m.f('vol'), m.f('.thinpool/status'):
            for name in ['security.capability', 'user.none', 'system.posix_acl_access',
                         'user.thinpool.none']:
                fails((errno.ENODATA, errno.EOPNOTSUPP), os.getxattr, path, name)
        fails(errno.EOPNOTSUPP, os.setxattr, m.f('vol'), 'user.x', b'1')


def test_read_only_can_be_set_and_nothing_else():
    with mount() as m:
        put(m.f('vol'), b'x')
        name = 'user.thinpool.read_only'
        same(os.getxattr(m.f('vol'), name), b'0')
        fd = os.open(m.f('vol'), os.O_RDWR)
        os.setxattr(m.f('vol'), name, b'1')
        same(os.getxattr(m.f('vol'), name), b'1')
        same(os.stat(m.f('vol')).st_mode & 0o777, 0o400)
        fails(errno.EROFS, os.open, m.f('vol'), os.O_RDWR)
        fails(errno.EROFS, os.pwrite, fd, b'y', 0)
        os.setxattr(m.f('vol'), name, b'0')
        os.pwrite(fd, b'y', 0)
        os.close(fd)
        for value in b'', b'2', b'yes', b'1\n', b'01':
            fails(errno.EINVAL, os.setxattr, m.f('vol'), name, value)
        fails(errno.EEXIST, os.setxattr, m.f('vol'), name, b'1', os.XATTR_CREATE)
        for other in 'id', 'used', 'mapped', 'origin', 'created', 'none':
            fails(errno.EPERM, os.setxattr, m.f('vol'), 'user.thinpool.' + other, b'1')
        fails(errno.EPERM, os.setxattr, m.path, 'user.thinpool.socket', b'1')
        fails(errno.EPERM, os.removexattr, m.f('vol'), name)
        fails(errno.EOPNOTSUPP, os.removexattr, m.f('vol'), 'user.x')


def direct_buffer(data):
    b = mmap.mmap(-1, max(len(data), 4096))
    b[:len(data)] = data
    return b


class Model:
    """A volume and what it must hold."""

    def __init__(self, m, name, rng):
        self.path, self.rng, self.data = m.f(name), rng, bytearray()
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT)
        self.direct = os.open(self.path, os.O_RDWR | os.O_DIRECT)

    def range(self, unit=1, limit=400000):
        r = self.rng
        length = r.choice([1, 512, 4096, 65536, 200000])
        return (r.randrange(limit) // unit * unit,
                max(r.randrange(1, length + 1) // unit * unit, unit))

    def store(self, offset, piece):
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset:offset + len(piece)] = piece

    def step(self):
        r = self.rng
        what = r.choice(['write', 'write', 'dwrite', 'read', 'read', 'dread', 'truncate', 'punch',
                         'zero', 'allocate', 'map', 'sync', 'reopen', 'seek'])
        getattr(self, what)()
        return what

    def write(self):
        offset, n = self.range()
        piece = self.rng.randbytes(n)
        same(os.pwrite(self.fd, piece, offset), n)
        self.store(offset, piece)

    def dwrite(self):
        offset, n = self.range(512)
        piece = self.rng.randbytes(n)
        with direct_buffer(piece) as b, memoryview(b) as view:
            same(os.pwritev(self.direct, [view[:n]], offset), n)
        self.store(offset, piece)

    def read(self):
        offset, n = self.range()
        same(os.pread(self.fd, n, offset), bytes(self.data[offset:offset + n]), f'read {offset}+{n}')

    def dread(self):
        offset, n = self.range(512)
        with mmap.mmap(-1, n + 4096) as b:
            view = memoryview(b)
            got = os.preadv(self.direct, [view[:n]], offset)
            same(bytes(view[:got]), bytes(self.data[offset:offset + n]), f'direct {offset}+{n}')
            view.release()

    def truncate(self):
        n = self.rng.randrange(400000)
        os.ftruncate(self.fd, n)
        self.data[n:] = bytes(max(0, n - len(self.data)))

    def wipe(self, mode):
        offset, n = self.range()
        fallocate(self.fd, mode | KEEP, offset, n)
        end = min(offset + n, len(self.data))
        if offset < end:
            self.data[offset:end] = bytes(end - offset)

    def punch(self):
        self.wipe(PUNCH)

    def zero(self):
        self.wipe(ZERO)

    def allocate(self):
        offset, n = self.range()
        fallocate(self.fd, 0, offset, n)
        self.data.extend(bytes(max(0, offset + n - len(self.data))))

    def map(self):
        if not self.data:
            return
        with mmap.mmap(self.fd, len(self.data)) as view:
            offset, n = self.range()
            same(view[offset:offset + n], bytes(self.data[offset:offset + n]), 'mapped')
            if offset + n <= len(self.data):
                piece = self.rng.randbytes(n)
                view[offset:offset + n] = piece
                self.data[offset:offset + n] = piece
                if self.rng.random() < 0.5:
                    view.flush()

    def sync(self):
        os.fsync(self.fd)

    def reopen(self):
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)

    def seek(self):
        offset = self.rng.randrange(400000)
        try:
            data = os.lseek(self.fd, offset, os.SEEK_DATA)
        except OSError as e:
            same(e.errno, errno.ENXIO)
            data = len(self.data)
        same(bytes(self.data[offset:data]), bytes(max(0, min(data, len(self.data)) - offset)))

    def verify(self):
        os.fsync(self.fd)
        same(os.fstat(self.fd).st_size, len(self.data))
        check(get(self.path) == bytes(self.data), 'content')
        os.close(self.fd)
        os.close(self.direct)


def random_against_model(mode, workers, ops):
    print(f'# seed {SEED}, {ops} operations', flush=True)
    rng = random.Random(SEED)
    with mount(mode, workers) as m:
        models = [Model(m, f'v{i}', rng) for i in range(3)]
        for i in range(ops):
            if i % 100 == 0:
                m(f'defer {i // 100 % 2}')
            model = rng.choice(models)
            try:
                model.step()
            except Exception:
                print(f'# operation {i} on {model.path}', flush=True)
                raise
        for model in models:
            model.verify()


def test_random_cached():
    random_against_model('pages', 2, OPS)


def test_random_uncached():
    random_against_model('none', 2, OPS)


def test_random_one_worker():
    random_against_model('pages', 1, OPS // 2)


def test_payload_is_aligned():
    for mode in 'pages', 'none':
        with mount(mode) as m:
            fd = os.open(m.f('vol'), os.O_RDWR | os.O_CREAT | os.O_DIRECT)
            with mmap.mmap(-1, 1 << 20) as b:
                for i in range(4):
                    same(os.pwritev(fd, [b], i << 20), 1 << 20)
                    same(os.preadv(fd, [b], i << 20), 1 << 20)
            os.close(fd)
            with open(m.f('vol'), 'rb') as f:
                while f.read(100001):
                    pass
            same(m.counts()['unaligned'], 0, 'copied')


def durability_of(m, flags, how):
    """Returns (flushes, durable writes) that one write has caused."""
    before = m.counts()
    fd = os.open(m.f('vol'), os.O_RDWR | os.O_CREAT | flags)
    with direct_buffer(b'd' * 4096) as b:
        how(fd, b)
    os.close(fd)
    after = m.counts()
    return after['flushes'] - before['flushes'], after['durable'] - before['durable']


def test_dsync_reaches_the_disk():
    def plain(fd, b):
        os.pwritev(fd, [b], 0)

    def rwf_dsync(fd, b):
        os.pwritev(fd, [b], 0, os.RWF_DSYNC)

    for mode in 'pages', 'none':
        with mount(mode) as m:
            put(m.f('vol'), bytes(1 << 20))
            same(durability_of(m, 0, plain), (0, 0), mode)
            for flags, how in [(os.O_DSYNC, plain), (os.O_SYNC, plain), (0, rwf_dsync),
                               (os.O_DSYNC | os.O_DIRECT, plain), (os.O_DIRECT, rwf_dsync)]:
                flushes, durable = durability_of(m, flags, how)
                check(flushes + durable > 0, f'{mode} {flags:o} {how.__name__}: not durable')
                if mode == 'pages' and not flags & os.O_DIRECT:
                    same((flushes, durable), (1, 0), 'once is enough')


def test_dsync_of_asynchronous_writes():
    if not shutil.which('fio'):
        return 'fio is missing'
    for mode in 'pages', 'none':
        with mount(mode) as m:
            put(m.f('vol'), bytes(1 << 20))
            before = m.counts()
            subprocess.run(['fio', '--name=x', f'--filename={m.f("vol")}', '--rw=randwrite', '--bs=4k',
                            '--size=1M', '--iodepth=16', '--ioengine=io_uring', '--direct=1',
                            '--sync=dsync', '--overwrite=1'], check=True, stdout=subprocess.DEVNULL)
            c = m.counts()
            n = c['writes'] - before['writes']
            done = c['durable'] - before['durable'] + c['flushes'] - before['flushes']
            check(n >= 256 and done >= 256, f'{mode}: {done} of {n} durable')


def test_a_write_is_one_request():
    """The kernel asks for no security.capability first: HANDLE_KILLPRIV_V2 was negotiated."""
    with mount() as m:
        fd = os.open(m.f('vol'), os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b'x', 0)
        before = m.counts()['requests']
        for i in range(100):
            os.pwrite(fd, b'y' * 100, 100 * i)
        n = m.counts()['requests'] - before
        check(100 <= n < 110, f'{n} requests for 100 writes')
        os.close(fd)


def test_fsync_and_errors():
    with mount() as m:
        fd = os.open(m.f('vol'), os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b'x' * 8192, 0)
        flushes = m.counts()['flushes']
        os.fsync(fd)
        os.fdatasync(fd)
        same(m.counts()['flushes'], flushes + 2)
        m(f'fail {OP_FLUSH} {errno.EIO} 1')
        fails(errno.EIO, os.fsync, fd)
        os.fsync(fd)
        m(f'fail {OP_WRITE} {errno.ENOSPC} 1')
        fails(errno.ENOSPC, os.pwrite, fd, b'y', 0)
        m(f'fail {OP_WRITE} {errno.EUCLEAN} 1')
        fails(errno.EIO, os.pwrite, fd, b'y', 0)
        direct = os.open(m.f('vol'), os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, 4096) as b:
            m(f'fail {OP_READ} {errno.EILSEQ} 1')
            fails(errno.EIO, os.preadv, direct, [b], 0)
            same(os.preadv(direct, [b], 0), 4096)
        os.close(direct)
        os.close(fd)
        flushes = m.counts()['flushes']
        put(m.f('vol'), b'z')
        same(m.counts()['flushes'], flushes, 'a close is no commit')
        d = os.open(m.path, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(d)
        os.close(d)
        same(m.counts()['commits'], 1)


def test_control_changes_are_seen():
    with mount() as m:
        put(m.f('vol'), b'a' * BLOCK)
        same(get(m.f('vol')), b'a' * BLOCK)
        fd = os.open(m.f('vol'), os.O_RDONLY)
        m('fill vol 98')
        eventually(lambda: os.pread(fd, 10, 0) == b'b' * 10, 'rolled back content')
        m(f'resize vol {5 * BLOCK}')
        eventually(lambda: os.fstat(fd).st_size == 5 * BLOCK, 'size', 0.9)
        m(f'resize vol 100')
        m(f'resize vol 1000')
        eventually(lambda: os.pread(fd, 2000, 0) == b'b' * 100 + bytes(900), 'cut off')
        m('rename vol other')
        eventually(lambda: not os.path.exists(m.f('vol')), 'renamed away', 0.9)
        same(os.stat(m.f('other')).st_ino, os.fstat(fd).st_ino)
        m('delete other')
        eventually(lambda: not os.path.exists(m.f('other')), 'deleted', 0.9)
        m('create new 4096')
        same(os.stat(m.f('new')).st_size, 4096)
        os.close(fd)


def test_own_changes_leave_open_files_alone():
    """The pool reports what came through the mount as well; names must only expire by that."""
    with mount() as m:
        put(m.f('vol'), b'a')
        fd = os.open(m.f('vol'), os.O_RDONLY)
        os.rename(m.f('vol'), m.f('new'))
        os.rename(m.f('new'), m.f('vol'))
        os.truncate(m.f('vol'), 10)
        eventually(lambda: m.counts()['notices'] == 6, 'notices sent')
        same(os.readlink(f'/proc/self/fd/{fd}'), m.f('vol'))
        same(os.fstat(fd).st_nlink, 1)
        os.close(fd)


def test_thousands_of_events():
    with mount() as m:
        put(m.f('vol'), b'a' * 4096)
        for i in range(3000):
            m(f'fill vol {i % 26 + 65}')
        last = bytes([2999 % 26 + 65]) * 4096
        eventually(lambda: get(m.f('vol')) == last, 'the last one counts')


def test_drop_pages_writes_dirty_ones_back():
    with mount() as m:
        put(m.f('vol'), b'a' * BLOCK)
        fd = os.open(m.f('vol'), os.O_RDWR)
        with mmap.mmap(fd, BLOCK) as view:
            view[0:4] = b'edit'
            before = m.counts()['writes']
            m('drop')
            check(m.counts()['writes'] > before, 'written back')
            same(view[0:5], b'edita')
        os.close(fd)


def test_parallel_commands_and_io():
    with mount() as m:
        def work(i):
            rng = random.Random(SEED + i)
            for k in range(25):
                name, snap = m.f(f'v{i}-{k}'), m.f(f's{i}-{k}')
                data = rng.randbytes(rng.randrange(1, 300000))
                put(name, data)
                os.link(name, snap)
                put(name, b'changed')
                os.rename(snap, snap + 'r')
                same(get(snap + 'r'), data)
                os.unlink(name)
                os.listdir(m.path)
                if k % 2:
                    os.unlink(snap + 'r')
        m('defer 1')
        in_threads(8, work)
        eventually(lambda: m.counts()['volumes'] == 8 * 13, 'as many as were kept')
        check(m.counts()['handed_over'] > 1000, 'answered by the other thread')


def test_waiting_requests_hold_up_nobody():
    with mount('pages', 1) as m:
        put(m.f('slow'), b's' * (1 << 20))
        m('defer 1')
        m('hold 1')

        def read(i):
            fd = os.open(m.f('slow'), os.O_RDONLY | os.O_DIRECT)
            with mmap.mmap(-1, 4096) as b:
                same(os.preadv(fd, [b], i * 4096), 4096)
            os.close(fd)

        readers = threading.Thread(target=in_threads, args=(64, read))
        readers.start()
        eventually(lambda: m.counts()['open'] == 1, 'under way')
        m('create other 10')
        os.stat(m.f('other'))
        os.rename(m.f('other'), m.f('third'))
        os.unlink(m.f('third'))
        check(len(os.listdir(m.path)) == 2)
        check(readers.is_alive(), 'held')
        m('hold 0')
        readers.join()


def out_of_buffers(workers, more):
    with mount('pages', workers) as m:
        # One volume a thread: the kernel lets only one small write of an inode go at a time, and
        # limits direct ones, of all inodes together, to max_background.
        fds = []
        for i in range(1100):
            m(f'create v{i} 0')
            fds.append(os.open(m.f(f'v{i}'), os.O_RDWR))
        m('defer 1')
        m('hold 1')
        threading.stack_size(256 << 10)
        writers = threading.Thread(
            target=in_threads, args=(1100, lambda i: same(os.pwrite(fds[i], b'w' * 100, 7), 100)))
        writers.start()
        more(m)
        check(writers.is_alive(), 'held')
        m('hold 0')
        writers.join()
        for fd in fds:
            same(os.pread(fd, 200, 0), bytes(7) + b'w' * 100)
            os.close(fd)


def all_wait(m):
    eventually(lambda: int(open(f'{FUSECTL}/{m.connection}/waiting').read()) >= 1100, 'waiting', 60)


def test_out_of_buffers():
    """More requests than a worker has buffers: it waits, and wakes up when some come back."""
    def more(m):
        if URING:  # then it is the kernel that waits
            all_wait(m)
        else:
            eventually(lambda: m.counts()['starved'] > 0, 'starved', 60)
    out_of_buffers(1, more)


def test_out_of_buffers_others_help():
    """The others rested while one worker was enough; they must not when it has no buffers left."""
    def more(m):
        all_wait(m)
        for i in range(0 if URING else 200):  # each CPU has a queue of its own, and that is full
            os.mknod(m.f(f'new{i}'), 0o100600)
            os.unlink(m.f(f'new{i}'))
    out_of_buffers(2, more)


def test_umount_ends_the_server():
    for mode, workers in ('pages', 1), ('none', 2), ('pages', 8):
        with mount(mode, workers) as m:
            put(m.f('vol'), b'x')
            subprocess.run(['umount', m.path], check=True)
            m.ended()


def test_stop_while_in_use():
    with mount() as m:
        put(m.f('vol'), b'x' * 4096)
        fd = os.open(m.f('vol'), os.O_RDWR)
        status = os.open(m.f('.thinpool/status'), os.O_RDONLY)
        m.stop(grace=300)
        fails((errno.ENOTCONN, errno.EIO, errno.ECONNABORTED), os.pwrite, fd, b'y', 0)
        os.close(fd)
        os.close(status)
        same(os.listdir(m.path), [], 'detached')


def test_stop_waits_for_the_last_close():
    with mount() as m:
        put(m.f('vol'), b'x' * 4096)
        fd = os.open(m.f('vol'), os.O_RDWR)
        m.p.stdin.write('stop 60000\n')
        m.p.stdin.flush()
        eventually(lambda: m.find_connection() is None, 'detached')
        os.pwrite(fd, b'y', 0)  # served all the same
        os.fsync(fd)
        os.close(fd)
        began = time.monotonic()
        m.ended()
        check(time.monotonic() - began < 30, 'ends with the last close')


def test_abort_with_requests_in_flight():
    with mount() as m:
        put(m.f('vol'), b'x' * 65536)
        m('defer 1')
        m('hold 1')

        def read(i):
            fd = os.open(m.f('vol'), os.O_RDONLY | os.O_DIRECT)
            with mmap.mmap(-1, 4096) as b:
                fails((errno.ENOTCONN, errno.ECONNABORTED, errno.EIO), os.preadv, fd, [b], 0)
            os.close(fd)

        readers = threading.Thread(target=in_threads, args=(10, read))
        readers.start()
        eventually(lambda: m.counts()['references'] > 0, 'under way')
        eventually(lambda: int(open(f'{FUSECTL}/{m.connection}/waiting').read()) >= 10, 'waiting')
        m.abort()
        readers.join()
        m.p.stdin.close()  # the daemon ends; what is in flight must end first
        try:
            m.p.wait(0.5)
            raise AssertionError('ended with requests in flight')
        except subprocess.TimeoutExpired:
            pass
        m.p.kill()
        m.p.wait()


def test_abort():
    with mount() as m:
        put(m.f('vol'), b'x')
        fd = os.open(m.f('vol'), os.O_RDWR)
        m.abort()
        m.ended()
        os.close(fd)
        same(os.listdir(m.path), [], 'nothing is left mounted')


def refused(path, number):
    with mount(path=path) as m:
        check(m.first.startswith(f'error {number} '), m.first)
        same(m.p.wait(), 3)


def test_refused_mount_points():
    base = tempfile.mkdtemp(prefix='tp-fuse-')
    refused(base + '/none', errno.ENOENT)
    open(base + '/file', 'w').close()
    refused(base + '/file', errno.ENOTDIR)
    refused(base, errno.ENOTEMPTY)
    os.unlink(base + '/file')
    with mount() as m:
        other = Mount(path=m.path)
        check(other.first.startswith(f'error {errno.EBUSY} '), other.first)
        other.p.wait()
        put(m.f('vol'), b'still there')
    os.makedirs(base, exist_ok=True)
    os.rmdir(base)


def test_read_only_mount():
    with mount('pages', 2, 'ro') as m:
        m('create vol 4096')
        same(get(m.f('vol')), bytes(4096))
        fails(errno.EROFS, os.open, m.f('vol'), os.O_WRONLY)
        fails(errno.EROFS, os.open, m.f('new'), os.O_WRONLY | os.O_CREAT)
        fails(errno.EROFS, os.unlink, m.f('vol'))
        fails(errno.EROFS, os.truncate, m.f('vol'), 0)


def run(*args):
    return subprocess.run(args, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class Loop:
    def __init__(self, path, *options):
        self.dev = run('losetup', '-f', '--show', *options, path)

    def __enter__(self):
        return self

    def queue(self, name):
        with open(f'/sys/block/{os.path.basename(self.dev)}/queue/{name}') as f:
            return int(f.read())

    def __exit__(self, *_):
        run('losetup', '-d', self.dev)


def loop_works(m, *options):
    v, size = m.f('vol'), 64 * BLOCK
    put(v, b'')
    os.truncate(v, size)
    with Loop(v, *options) as loop:
        same(loop.queue('logical_block_size'), 512)
        same(loop.queue('discard_granularity'), BLOCK)
        data = random.Random(SEED).randbytes(size)
        fd = os.open(loop.dev, os.O_RDWR)
        same(os.pwrite(fd, data, 0), size)
        flushes = m.counts()['flushes']
        os.fsync(fd)
        check(m.counts()['flushes'] > flushes, 'flush')
        same(os.stat(v).st_blocks, size // 512)
        os.close(fd)
        run('blkdiscard', '-o', str(8 * BLOCK), '-l', str(16 * BLOCK), loop.dev)
        run('blkdiscard', '-z', '-o', str(40 * BLOCK), '-l', str(BLOCK), loop.dev)
        data = (data[:8 * BLOCK] + bytes(16 * BLOCK) + data[24 * BLOCK:40 * BLOCK] + bytes(BLOCK) +
                data[41 * BLOCK:])
        check(get(loop.dev) == data, 'through the loop device')
        eventually(lambda: os.stat(v).st_blocks == (64 - 17) * 128, 'given back')
        os.truncate(v, 2 * size)
        run('losetup', '-c', loop.dev)
        same(int(run('blockdev', '--getsize64', loop.dev)), 2 * size)
    eventually(lambda: m.counts()['open'] == 0, 'loop has let go')
    check(get(v) == data + bytes(size), 'through the file')


def test_without_queues_all_comes_as_ever():
    """From its offer on the kernel holds requests back; that must not be for ever."""
    if URING or not os.path.exists(OFFERS_URING):
        return None if URING else 'this kernel has no FUSE over io_uring'
    with uring_offered():
        m = mount('pages', 2, 'rw', 'uring=64', 'refused')
    with m:
        put(m.f('vol'), b'x' * 100000)
        same(m.counts()['uring'], 0, 'over /dev/fuse')
        same(get(m.f('vol')), b'x' * 100000)
    return None


def test_loop_devices():
    if not os.path.exists('/dev/loop-control'):
        return 'no loop devices'
    for mode in 'pages', 'none':
        for options in [], ['--direct-io=on']:
            with mount(mode) as m:
                loop_works(m, *options)
    return None


if __name__ == '__main__':
    main(globals())
