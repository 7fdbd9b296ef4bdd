# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that is given back: how much, on whose word, and that nobody reads anything wrong meanwhile.

TP_RECLAIM_MIB is how much metadata is read through the cache (default: 160).
"""
import contextlib
import json
import mmap
import os
import pathlib
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

from conftest import FAILED, KIB, MIB, THINPOOLCTL, refused, run, wait_for, workbench

BLOCK = 64 * KIB
LEAF = 240 * BLOCK  # of a volume, in one leaf of its tree
CACHE = 128 * MIB


def resident(d, what='RssAnon'):
    text = pathlib.Path(f'/proc/{d.proc.pid}/status').read_text()
    return int(re.search(rf'^{what}:\s+(\d+) kB$', text, re.M)[1]) * KIB


def pressure(d):
    return d.status()['pressure']


def events(d, source):
    return pressure(d)['sources'][source]['events']


def reclaim(d):
    return json.loads(run(THINPOOLCTL, 'reclaim', d.mnt, '--json').stdout)


def pool_with(bench, settings, size='256M'):
    pooldir = bench.format('pool', size)
    (pooldir / 'pool.conf').write_text(settings)
    return pooldir


# ---- memory ----

@pytest.fixture(scope='module')
def much_metadata():
    """Making it takes a while, so it is made once; each test serves it anew."""
    with workbench(580) as bench:
        yield bench, *pool_with_much_metadata(bench)


def serve_with(bench, pooldir, locked):
    (pooldir / 'pool.conf').write_text(
        f'[pool]\ncache_size = {CACHE}\n[daemon]\nlock_memory = {locked}\n'
        '[reclaim]\npsi = no\ncgroup = no\n')
    return bench.serve(pooldir)


def pool_with_much_metadata(bench):
    """One volume, every block of it mapped, with about so many bytes of leaves: the daemon fills them up
    when blocks are mapped in order.  Of every sixteenth leaf one block begins with a number, see expected(),
    the others are zeros."""
    leaves = int(os.environ.get('TP_RECLAIM_MIB', 160)) * MIB // 4096
    size = leaves * LEAF
    pooldir = bench.format('pool', f'{size + 64 * MIB}', '--metadata-size', f'{leaves * 5120 + 64 * MIB}')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', f'{size}')
    page = mmap.mmap(-1, 4096)
    fd = os.open(d.vol('v'), os.O_RDWR | os.O_DIRECT)
    os.posix_fallocate(fd, 0, size)
    for leaf in range(0, leaves, 16):
        page[:8] = expected(leaf)
        os.pwritev(fd, [page], leaf * LEAF)
    os.close(fd)
    d.stop()
    return pooldir, leaves


def expected(leaf):
    return struct.pack('<Q', leaf + 1 if leaf % 16 == 0 else 0)


class Readers:
    """Threads that look up leaves at random, past the kernel's cache, and check what they get."""

    def __init__(self, path, leaves, seed, nr=3):
        self.path, self.leaves, self.stop = path, leaves, False
        self.reads, self.wrong = 0, []
        self.threads = [threading.Thread(target=self.work, args=(random.Random(seed + i),))
                        for i in range(nr)]
        for t in self.threads:
            t.start()

    def work(self, rng):
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        page = mmap.mmap(-1, 4096)
        try:
            while not self.stop:
                self.look(fd, page, rng.randrange(self.leaves))
        except OSError as e:
            self.wrong.append(str(e))
        finally:
            os.close(fd)

    def look(self, fd, page, leaf):
        os.preadv(fd, [page], leaf * LEAF)
        if page[:8] != expected(leaf):
            self.wrong.append(f'leaf {leaf}: {page[:8].hex()}')
        self.reads += 1

    def join(self):
        self.stop = True
        for t in self.threads:
            t.join()


def read_every_leaf(path, leaves):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    for leaf in range(leaves):
        os.preadv(fd, [page], leaf * LEAF)
        assert page[:8] == expected(leaf), leaf
    os.close(fd)


@pytest.mark.parametrize('locked', ['yes', 'no'])
def test_a_full_cache_is_given_back(much_metadata, locked):
    bench, pooldir, leaves = much_metadata
    d = serve_with(bench, pooldir, locked)
    before = resident(d)
    read_every_leaf(d.vol('v'), leaves)
    cache = d.status()['cache']
    full = resident(d)
    assert CACHE * 0.9 < cache['used'] <= cache['limit'] == CACHE, cache
    assert cache['misses'] >= leaves * 0.9
    assert full > before + CACHE * 0.8
    # Obeyed: what was read besides is not there.  (Sanitizers have memory of their own.)
    assert full < before + CACHE * 1.3 + 16 * MIB

    answer = reclaim(d)
    after = resident(d)
    print(f'RssAnon: {before >> 20} MiB at the start, {full >> 20} with a full cache, '
          f'{after >> 20} after a reclaim that told {answer["bytes"] >> 20}; registry held for '
          f'{pressure(d)["longest_registry_hold_usec"]} us')
    assert after < before + CACHE * 0.1 + 8 * MIB
    assert answer['bytes'] > CACHE * 0.8
    assert answer['resident_before'] - answer['resident_after'] > CACHE * 0.8
    assert sum(s['bytes'] for s in answer['shrinkers']) == answer['bytes']
    cache = d.status()['cache']
    assert cache['used'] < MIB and cache['shrunk'] * 4096 > CACHE * 0.8
    d.stop()


def test_lookups_are_right_while_memory_is_given_back(much_metadata, seed):
    bench, pooldir, leaves = much_metadata
    d = serve_with(bench, pooldir, 'yes')
    readers = Readers(d.vol('v'), leaves, seed)
    try:
        for _ in range(20):
            reads = readers.reads
            wait_for('readers to go on', lambda: readers.reads > reads + 500 or readers.wrong)
            reclaim(d)
    finally:
        readers.join()
    assert not readers.wrong, readers.wrong[:5]
    assert events(d, 'request') == pressure(d)['runs'] == 20
    read_every_leaf(d.vol('v'), leaves // 10)
    d.stop()


@pytest.mark.quick
def test_buffers_of_requests_are_given_back(bench):
    d = bench.serve(pool_with(bench, ''))
    bench.ctl('create', d.vol('v'), '--size', '128M')
    run('fio', '--name=w', f'--filename={d.vol("v")}', '--rw=write', '--bs=1M', '--size=128M',
        '--iodepth=32', '--ioengine=libaio', '--direct=1')
    answer = reclaim(d)
    given = {s['name']: s['bytes'] for s in answer['shrinkers']}
    assert given['request buffers'] > 4 * MIB, given
    assert {s['name']: s['bytes'] for s in reclaim(d)['shrinkers']}['request buffers'] < MIB
    d.stop()
    bench.check_clean(d.pooldir)


# ---- who says that memory is short ----

@contextlib.contextmanager
def stalls(bench):
    """A process in a group of its own that has too little memory for what it reads, so that it stalls.
    Gives the directory of its group in the hierarchy of version 2, or None."""
    v1, v2 = pathlib.Path('/sys/fs/cgroup/memory'), None
    for line in open('/proc/self/mountinfo'):
        if ' - cgroup2 ' in line:
            v2 = pathlib.Path(line.split()[4])
    groups = []
    name = f'thinpoold-test-{os.getpid()}'
    if v2:
        groups.append(v2 / name)
        groups[-1].mkdir()
    if v1.is_dir():
        groups.append(v1 / name)
        groups[-1].mkdir()
        limit = groups[-1] / 'memory.limit_in_bytes'
    else:
        limit = groups[-1] / 'memory.high'
    limit.write_text(str(24 * MIB))
    file = bench.tmp / 'too-large'
    script = f'''
import mmap, os
for group in {[str(g) for g in groups]}:
    open(group + '/cgroup.procs', 'w').write(str(os.getpid()))
fd = os.open({str(file)!r}, os.O_RDWR | os.O_CREAT)
for i in range(128):
    os.pwrite(fd, os.urandom(1 << 20), i << 20)
m = mmap.mmap(fd, 128 << 20, prot=mmap.PROT_READ)
while True:
    sum(m[i] for i in range(0, 128 << 20, 4096))
'''
    procs = []
    try:
        yield groups[0] if v2 else None, lambda: procs.append(
            bench.popen(sys.executable, '-c', script))
    finally:
        for p in procs:
            p.kill()
            p.wait()
        for g in groups:
            with contextlib.suppress(OSError):
                wait_for('the group to be empty', lambda: not (g / 'cgroup.procs').read_text(), 20)
            g.rmdir()


def fill_cache(bench, d):
    bench.ctl('create', d.vol('v'), '--size', '1G')
    with open(d.vol('v'), 'r+b', buffering=0) as f:
        for i in range(1000):
            os.pwrite(f.fileno(), b'x' * 512, i * BLOCK)
        os.fsync(f.fileno())


def test_stalls_of_the_system_and_of_the_own_group(bench):
    pooldir = pool_with(bench, '[reclaim]\nstall = 0.02\n')
    with stalls(bench) as (group, begin):
        if not group:
            pytest.skip('needs control groups of version 2')
        own = pathlib.Path(str(group).removesuffix(group.name)) / next(
            line[3:].strip() for line in open('/proc/self/cgroup') if line.startswith('0::'))[1:]
        # A daemon watches the group that it is started in.
        (group / 'cgroup.procs').write_text(str(os.getpid()))
        try:
            d = bench.serve(pooldir)
        finally:
            (own / 'cgroup.procs').write_text(str(os.getpid()))
        log = d.log_text()
        assert 'memory pressure is watched by psi, cgroup, request; not by watch ' \
               '(MEMORY_PRESSURE_WATCH is not set)' in log
        fill_cache(bench, d)
        used = d.status()['cache']['used']
        begin()
        wait_for('events', lambda: events(d, 'psi') and events(d, 'cgroup'))
        wait_for('less', lambda: d.status()['cache']['used'] < used and pressure(d)['given_back'])
        assert pressure(d)['runs'] <= events(d, 'psi') + events(d, 'cgroup')
        # Out of the group again, so that it can go.
        (own / 'cgroup.procs').write_text(str(d.proc.pid))
    d.stop()
    bench.check_clean(pooldir)


@pytest.mark.quick
@pytest.mark.parametrize('kind', ['fifo', 'socket'])
def test_what_the_service_manager_names(bench, monkeypatch, kind):
    watch = bench.tmp / 'watch'
    monkeypatch.setenv('MEMORY_PRESSURE_WATCH', str(watch))
    monkeypatch.setenv('MEMORY_PRESSURE_WRITE', 'aGVsbG8=')
    if kind == 'fifo':
        os.mkfifo(watch)
        monkeypatch.delenv('MEMORY_PRESSURE_WRITE')
    else:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(watch))
        listening.listen(1)
    d = bench.serve(pool_with(bench, '[reclaim]\npsi = no\ncgroup = no\n'))
    if kind == 'fifo':
        peer = open(watch, 'wb', buffering=0)
        tell = peer.write
    else:
        peer = listening.accept()[0]
        assert peer.recv(100) == b'hello'
        tell = peer.send
    fill_cache(bench, d)
    used = d.status()['cache']['used']
    assert pressure(d)['sources']['watch'] == {'state': 'watched', 'why': '', 'events': 0}
    assert pressure(d)['sources']['psi'] == {'state': 'off', 'why': '', 'events': 0}
    tell(b'1')
    wait_for('less', lambda: d.status()['cache']['used'] < used)
    assert events(d, 'watch') == 1
    peer.close()
    if kind == 'socket':
        wait_for('the loss to be told',
                 lambda: pressure(d)['sources']['watch']['state'] == 'missing')
        assert 'memory pressure is no longer watched by watch' in d.log_text()
        listening.close()
    assert events(d, 'request') == 0
    reclaim(d)
    d.stop()


@pytest.mark.quick
def test_a_service_manager_can_forbid_it(bench, monkeypatch):
    monkeypatch.setenv('MEMORY_PRESSURE_WATCH', '/dev/null')
    d = bench.serve(pool_with(bench, ''))
    sources = pressure(d)['sources']
    assert [sources[s]['state'] for s in ('psi', 'cgroup', 'watch')] == ['missing'] * 3
    assert all('forbids' in sources[s]['why'] for s in ('psi', 'cgroup', 'watch'))
    reclaim(d)
    d.stop()


@pytest.mark.quick
def test_what_is_missing_stops_nothing(bench, monkeypatch):
    monkeypatch.setenv('MEMORY_PRESSURE_WATCH', '/nowhere/at/all')
    d = bench.serve(pool_with(bench, ''))
    assert pressure(d)['sources']['watch'] == {
        'state': 'missing', 'why': '/nowhere/at/all: No such file or directory', 'events': 0}
    assert d.log_text().count('/nowhere/at/all') == 1
    for text in (d.mnt / '.thinpool/status').read_text(), bench.ctl('status', d.mnt).stdout:
        assert 'watch, missing: /nowhere/at/all: No such file or directory, 0 events' in text
    metrics = (d.mnt / '.thinpool/metrics').read_text()
    assert 'thinpoold_pressure_watched{source="watch"} 0\n' in metrics
    assert 'thinpoold_pressure_watched{source="request"} 1\n' in metrics
    d.stop()


@pytest.mark.quick
def test_the_timer(bench):
    d = bench.serve(pool_with(bench, '[reclaim]\ntimer = 0.01\nrequest = no\n'))
    wait_for('some rounds', lambda: events(d, 'timer') > 20)
    refused(bench.ctl('reclaim', d.mnt, check=False), FAILED, 'request = yes', '[reclaim]')
    metrics = (d.mnt / '.thinpool/metrics').read_text()
    told = re.search(r'^thinpoold_pressure_events_total\{source="timer"\} (\d+)$', metrics, re.M)
    assert int(told[1]) > 20
    assert re.search(r'^thinpoold_registry_hold_longest_seconds \d+\.\d{6}$', metrics, re.M)
    assert re.search(r'^thinpoold_throttle_seconds_total \d+\.\d{6}$', metrics, re.M)
    d.stop()
    bench.check_clean(d.pooldir)


# ---- the kernel's pages of volumes ----

def cached_pages(path):
    out = run('fincore', '--bytes', '--noheadings', '--output', 'PAGES', path).stdout
    return int(out)


PAGES = '[reclaim]\npage_cache = yes\npage_cache_limit = 5\npage_cache_interval = 0\n'


@pytest.mark.quick
def test_pages_are_dropped_and_dirty_ones_written_back(bench, seed):
    d = bench.serve(pool_with(bench, PAGES + 'timer = 0.05\n'))
    bench.ctl('create', d.vol('v'), '--size', '100M')
    rng = random.Random(seed)

    def writes():
        return json.loads((d.mnt / '.thinpool/status.json').read_text())['statistics']['writes']

    # No process is started meanwhile: its start would close our file once more, which flushes.
    with open(d.vol('v'), 'r+b') as f, mmap.mmap(f.fileno(), 100 * MIB) as view:
        before = writes()
        for i in range(0, 100 * MIB, MIB):
            view[i:i + 4096] = rng.randbytes(4096)
        copy = bytes(view)
        # The kernel by itself takes half a minute.
        wait_for('the writes', lambda: writes() >= before + 100, 20)
        assert bytes(view) == copy
    wait_for('pages to go', lambda: cached_pages(d.vol('v')) < 200)
    with open(d.vol('v'), 'rb') as f:
        assert f.read() == copy
    run(THINPOOLCTL, 'reclaim', d.mnt)
    d.stop()
    bench.check_clean(d.pooldir)


def test_off_means_that_pages_stay(bench):
    d = bench.serve(pool_with(bench, ''))
    bench.ctl('create', d.vol('v'), '--size', '10M')
    d.vol('v').read_bytes()
    pages = cached_pages(d.vol('v'))
    assert pages > 2000
    answer = reclaim(d)
    assert 'pages of volumes' not in [s['name'] for s in answer['shrinkers']]
    assert cached_pages(d.vol('v')) == pages
    d.stop()


@pytest.mark.timeout(300)
@pytest.mark.parametrize('how', ['umount', 'SIGTERM', 'SIGTERM, in use', 'abort'])
def test_it_ends_while_pages_are_being_written_back(bench, seed, how):
    """The pressure thread sits on the registry and waits for the kernel, which waits for us."""
    rng = random.Random(seed)
    for _ in range(1 if 'in use' in how else 3):
        pooldir = bench.tmp / 'pool'
        if not pooldir.exists():
            pooldir = pool_with(bench, PAGES + 'timer = 0.001\n')
        d = bench.serve(pooldir)
        if not d.vol('v').exists():
            bench.ctl('create', d.vol('v'), '--size', '64M')
        script = f'''
import mmap, signal, sys
f = open({str(d.vol('v'))!r}, 'r+b')
view = mmap.mmap(f.fileno(), 64 << 20)
print('ready', flush=True)
while True:
    for i in range(0, 64 << 20, 4096):
        view[i] = (view[i] + 1) & 255
'''
        writer = bench.popen(sys.executable, '-c', script, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL)
        assert writer.stdout.readline() == b'ready\n'
        runs = pressure(d)['runs']
        wait_for('some sweeps', lambda: pressure(d)['runs'] > runs + 2)
        time.sleep(rng.random() / 20)  # not to await something, but to meet any moment
        if how.startswith('SIGTERM'):
            d.proc.send_signal(signal.SIGTERM)
        elif how == 'abort':
            end_connection(d)
        if 'in use' in how:
            assert d.proc.wait(60) == 0, d.log_text()
            assert 'is still in use' in d.log_text()
        writer.kill()
        writer.wait()
        writer.stdout.close()
        if how == 'umount':
            run('umount', d.mnt)
        assert d.proc.wait(60) == 0, d.log_text()
        d.log.close()
    bench.check_clean(pooldir)


def end_connection(d):
    control = pathlib.Path(f'/sys/fs/fuse/connections/{d.connection}/abort')
    if not control.exists():
        run('mount', '-t', 'fusectl', 'fusectl', '/sys/fs/fuse/connections', check=False)
    control.write_text('1')
