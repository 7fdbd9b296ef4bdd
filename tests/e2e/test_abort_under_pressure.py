# SPDX-License-Identifier: GPL-2.0-or-later
"""Metadata that fails at random moments under a file system with a load that has little memory, while caches
are dropped again and again: the situation that the reset of the cache exists for.

Each failure is a life of the daemon: ext4 on a loop device with fio in it, a writer that notes what it
has synced, readers; then writes to the metadata fail.  The pool goes read-only, readers go on, everybody
ends, everything can be unmounted, the pool checks clean, and what was synced is there.

TP_FAILURES is the number of failures (20), TP_SEED repeats the choices.
"""
import contextlib
import hashlib
import os
import pathlib
import random
import sys
import threading
import time

import pytest

from conftest import HERE, MIB, run, wait_for
from pressure_worker import BLOCK, fixed_block

WORKER = HERE / 'pressure_worker.py'
MEMORY = 64 * MIB
LARGE = 2 * MEMORY  # a file that is read again and again and fits into no cache
FIXED_BLOCKS = 64
LIFE = 120  # seconds until the mounts of one life are torn down by force
CONF = '''[pool]
cache_size = 1M
[reclaim]
timer = 0.01
page_cache = yes
page_cache_limit = 1
page_cache_interval = 0.05
'''


@contextlib.contextmanager
def little_memory():
    """A control group with so little memory.  Not for the daemon, see thinpoold.conf(5): without CAP_SYS_RESOURCE
    it would have to wait for pages that it is to write itself."""
    v1 = pathlib.Path('/sys/fs/cgroup/memory')
    root = v1 if v1.is_dir() else pathlib.Path('/sys/fs/cgroup')
    group = root / f'thinpoold-abort-{os.getpid()}'
    group.mkdir()
    limit = group / ('memory.limit_in_bytes' if v1.is_dir() else 'memory.max')
    try:
        limit.write_text(str(MEMORY))
        yield group
    finally:
        with contextlib.suppress(OSError):
            for pid in (group / 'cgroup.procs').read_text().split():
                (root / 'cgroup.procs').write_text(pid)
        wait_for('the group to be empty', lambda: not (group / 'cgroup.procs').read_text(), 20)
        group.rmdir()


class Repeat(threading.Thread):
    """Something done again and again until the end of the with statement."""

    def __init__(self, what, pause):
        super().__init__()
        self.what, self.pause, self.stop = what, pause, threading.Event()
        self.count, self.error = 0, None

    def run(self):
        try:
            while not self.stop.wait(self.pause):
                self.what()
                self.count += 1
        except BaseException as e:  # told by the one who waits
            self.error = e

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *unused):
        self.stop.set()
        self.join()
        if self.error:
            raise self.error


def drop_caches():
    with open('/proc/sys/vm/drop_caches', 'w') as f:
        f.write('3\n')


class Life:
    """From one start of the daemon, with metadata that can fail, to its end."""

    def __init__(self, bench, pooldir, group, number, rng):
        self.bench, self.pooldir, self.group, self.number, self.rng = bench, pooldir, group, number, rng
        self.synced = bench.tmp / 'synced'
        self.workers = {}

    def start(self):
        self.device = self.bench.failing_metadata(self.pooldir)
        self.d = self.bench.serve(self.pooldir)
        self.lo = self.bench.loop(self.d.vol('root'))
        self.mnt = self.bench.mount(self.lo.dev, 'root')

    def work(self, kind, path, log, *args):
        self.run_in_group(kind, WORKER, kind, path, log, self.rng.randrange(1 << 32), *args)

    def run_in_group(self, name, *command):
        with open(self.log('output'), 'ab') as out:
            self.workers[name] = self.bench.popen(
                sys.executable, WORKER, 'enter', self.group, *command, stdout=out, stderr=out)

    def start_load(self):
        work = self.mnt / 'fio'
        work.mkdir(exist_ok=True)
        self.run_in_group('fio', 'fio', '--name=load', f'--directory={work}', '--thread', '--numjobs=2',
                  '--rw=randwrite', '--ioengine=psync', '--bsrange=4k-64k', '--size=48m', '--fsync=64',
                  '--time_based', '--runtime=100', f'--randseed={self.rng.randrange(1 << 31)}')
        self.work('sync', self.mnt, self.synced, f'life{self.number}')
        self.work('read', self.d.vol('fixed'), self.log('read'))
        self.work('files', self.mnt, self.log('files'), self.synced)
        self.run_in_group('hog', WORKER, 'hog', self.mnt / 'large')

    def log(self, name):
        return self.bench.tmp / f'life{self.number}.{name}'

    def progress(self, name):
        text = self.log(name).read_text().strip() if self.log(name).exists() else ''
        assert not text.startswith('wrong'), f'{name}: {text}'
        return int(text or 0)

    def readers_go_on(self):
        for name in ('read', 'files'):
            before = self.progress(name)
            wait_for(f'{name} to go on', lambda: self.progress(name) >= before + 20, 60)

    def fail(self):
        """Until the pool is read-only; the load sees to it that something is to be committed."""
        self.device.fail('write')
        wait_for('the pool to be read-only', lambda: self.d.status()['mode'] == 'ro', 60)
        status = self.d.status()
        assert status['needs_check'] and status['reason'], status
        assert self.device.failures('write') > 0
        self.readers_go_on()

    def end_load(self):
        """Who writes ends by itself, with an error; readers are ended."""
        for name in ('sync', 'fio'):
            wait_for(f'{name} to end', lambda: self.workers[name].poll() is not None, 60)
        for name in ('read', 'files', 'hog'):
            assert self.workers[name].poll() is None, (name, self.log('output').read_text())
            self.workers[name].terminate()
            wait_for(f'{name} to end', lambda: self.workers[name].poll() is not None, 60)

    def end(self):
        healed_before = self.rng.random() < 0.5
        if healed_before:
            self.device.heal()
        self.bench.umount(self.mnt)
        self.lo.detach()
        self.d.stop()
        self.device.remove()
        return healed_before


def require_clean_and_clear(bench, pooldir, flag_stored):
    """NEEDS_CHECK is on disk if the device was well again while the daemon was there."""
    if flag_stored:
        d = bench.serve(pooldir)
        status = d.status()
        assert status['mode'] == 'ro' and status['needs_check'], status
        d.stop()
    bench.ctl('check', '--clear-needs-check', pooldir)
    bench.check_clean(pooldir)


def require_synced(bench, root, synced):
    for line in synced.read_text().splitlines():
        name, want = line.split()
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == want, name


def nr_synced(bench):
    return (bench.tmp / 'synced').read_text().count('\n')


def look_after(bench, pooldir):
    """With healthy metadata: the volumes are right, and what was synced is there."""
    d = bench.serve(pooldir)
    assert d.status()['mode'] == 'rw' and not d.status()['needs_check'], d.status()
    lo = bench.loop(d.vol('root'))
    root = bench.mount(lo.dev, 'root')  # ext4 replays its log
    require_synced(bench, root, bench.tmp / 'synced')
    bench.umount(root)
    run('e2fsck', '-fn', lo.dev)
    lo.detach()
    with open(d.vol('fixed'), 'rb') as f:
        for i in range(FIXED_BLOCKS):
            assert f.read(BLOCK) == fixed_block(i), i
    d.stop()


def make_pool(bench):
    pooldir = bench.format('pool', '2G')
    (pooldir / 'pool.conf').write_text(CONF)
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('fixed'), '--size', f'{FIXED_BLOCKS * BLOCK}')
    with open(d.vol('fixed'), 'r+b') as f:
        for i in range(FIXED_BLOCKS):
            f.write(fixed_block(i))
        f.flush()
        os.fsync(f.fileno())
    bench.ctl('create', d.vol('root'), '--size', '1G')
    lo = bench.loop(d.vol('root'))
    run('mkfs.ext4', '-q', '-E', 'nodiscard', lo.dev)
    root = bench.mount(lo.dev, 'root')
    first = random.Random(0).randbytes(100_000)
    (root / 'first').write_bytes(first)
    (bench.tmp / 'synced').write_text(f'first {hashlib.sha256(first).hexdigest()}\n')
    with open(root / 'large', 'wb') as f:
        for i in range(LARGE // MIB):
            f.write(random.Random(i).randbytes(MIB))
    run('sync', '-f', root)
    bench.umount(root)
    lo.detach()
    d.stop()
    return pooldir


def one_failure(bench, pooldir, group, number, seed):
    rng = random.Random(seed)
    life = Life(bench, pooldir, group, number, rng)
    watchdog = threading.Timer(LIFE, bench.abort_mounts)
    watchdog.start()
    began = time.monotonic()
    try:
        life.start()
        synced = nr_synced(bench)
        life.start_load()
        wait_for('a file to be synced', lambda: nr_synced(bench) > synced)
        for reader in ('read', 'files'):
            wait_for(f'{reader} to read', lambda name=reader: life.progress(name))
        with Repeat(drop_caches, 0.2) as drops, \
                Repeat(lambda: bench.ctl('reclaim', life.d.mnt), 0.05) as reclaims:
            time.sleep(rng.uniform(0.3, 2.5))  # not to await something, but to meet any moment
            life.fail()
            failed = time.monotonic()
            life.end_load()
        healed_before = life.end()
        require_clean_and_clear(bench, pooldir, healed_before)
    finally:
        watchdog.cancel()
    assert time.monotonic() - began < LIFE, 'freed by force'
    look_after(bench, pooldir)
    print(f'failure {number}, seed {seed}: after {failed - began:.1f} s, over after '
          f'{time.monotonic() - began:.1f} s; healed {"before" if healed_before else "after"} the end; '
          f'{drops.count} drops, {reclaims.count} reclaims; {nr_synced(bench)} files synced so far', flush=True)


def times_at_the_limit(group):
    if (group / 'memory.failcnt').exists():
        return int((group / 'memory.failcnt').read_text())
    return int(dict(line.split() for line in (group / 'memory.events').open())['max'])


@pytest.mark.timeout(1500)
def test_metadata_that_fails_under_pressure(bench, seed):
    pooldir = make_pool(bench)
    with little_memory() as group:
        for number in range(int(os.environ.get('TP_FAILURES', 20))):
            one_failure(bench, pooldir, group, number, seed + number)
        print(f'memory was at its limit {times_at_the_limit(group)} times')
        assert times_at_the_limit(group)
