# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon dies, or is replaced, under what uses its mount, and nobody notices.

Environment: TP_KILLS, how often the daemon is killed in a run of each kind of load (default 12);
TP_RESTARTS, how often it is replaced by a newer one (default 5).
"""
import array
import ctypes
import errno
import json
import mmap
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

import conftest
from conftest import FAILED, MIB, THINPOOLCTL, THINPOOLD, refused, run, wait_for

KILLS = int(os.environ.get('TP_KILLS', 12))
RESTARTS = int(os.environ.get('TP_RESTARTS', 5))
pytestmark = pytest.mark.timeout(60 + 20 * (KILLS + RESTARTS))
LIBC = ctypes.CDLL(None, use_errno=True)
ENDLESS = '[daemon]\nrestart_limit = 100000\nrestart_window = 1\n'


def pool_with(bench, settings=ENDLESS, size='4G'):
    """Over /dev/fuse, whatever the kernel offers: the rest is in test_io_uring.py."""
    pooldir = bench.format('pool', size)
    (pooldir / 'pool.conf').write_text(settings + '[fuse]\nio_uring = no\n')
    return pooldir


def daemon_of(keeper):
    """The pid of the daemon that a keeper has now; None: none."""
    try:
        with open(f'/proc/{keeper}/task/{keeper}/children') as f:
            pids = f.read().split()
    except FileNotFoundError:
        return None
    for pid in pids:
        try:
            with open(f'/proc/{pid}/stat') as f:
                if f.read().rsplit(')', 1)[1].split()[0] not in 'ZX':
                    return int(pid)
        except (FileNotFoundError, ProcessLookupError):
            pass
    return None


def kill_daemon(d):
    os.kill(wait_for('a daemon', lambda: daemon_of(d.proc.pid)), signal.SIGKILL)


class Killer(threading.Thread):
    """Kills the daemon again and again, at random moments, while somebody works."""

    def __init__(self, d, rng, times=KILLS, pause=(0.05, 1.0)):
        super().__init__(daemon=True)
        self.d, self.rng, self.times, self.pause = d, rng, times, pause
        self.enough = threading.Event()
        self.kills = 0
        self.start()

    def run(self):
        while self.kills < self.times and not self.enough.wait(self.rng.uniform(*self.pause)):
            pid = daemon_of(self.d.proc.pid)
            if pid:
                try:
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1
                except ProcessLookupError:
                    pass

    def end(self):
        self.enough.set()
        self.join()
        print(f'{self.kills} kills')
        return self.kills


def restarts(d):
    text = (d.mnt / '.thinpool/metrics').read_text()
    return int(next(line.split()[1] for line in text.splitlines()
                    if line.startswith('thinpoold_restarts_total')))


@pytest.mark.quick
def test_a_killed_daemon_is_replaced_and_its_files_stay_open(bench):
    pooldir = pool_with(bench)
    d = bench.serve(pooldir, '--keeper')
    bench.ctl('create', d.vol('v'), '--size', '10M')
    bench.ctl('create', d.vol('gone'), '--size', '10M')
    connection = os.stat(d.mnt).st_dev
    v, gone = open(d.vol('v'), 'r+b', buffering=0), open(d.vol('gone'), 'r+b', buffering=0)
    for f, byte in (v, b'v'), (gone, b'g'):
        f.write(byte * MIB)
        os.fsync(f.fileno())
    os.unlink(d.vol('gone'))
    before = d.status()['pid']
    socket_before = os.getxattr(d.mnt, 'user.thinpool.socket')
    status = open(d.mnt / '.thinpool/status', 'rb', buffering=0)

    kill_daemon(d)
    assert os.pread(v.fileno(), MIB, 0) == b'v' * MIB
    os.posix_fadvise(gone.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(gone.fileno(), MIB, 0) == b'g' * MIB, 'unlinked, but open: it stays'
    assert os.fstat(gone.fileno()).st_nlink == 0
    assert d.status()['pid'] != before and restarts(d) == 1
    assert b'rw' in status.read(), 'a file of .thinpool goes on, too'
    assert os.stat(d.mnt).st_dev == connection, 'the same mount'
    assert not os.path.exists(socket_before), 'nothing is left of the dead daemon'
    assert {x['name']: x['open'] for x in d.list()} == {'v': True}
    refused(bench.ctl('delete', d.vol('v'), check=False), conftest.BUSY)
    used = d.status()['data_used']
    os.pwrite(gone.fileno(), b'G' * 10, 5)
    assert os.pread(gone.fileno(), 4, 4) == b'gGGG'

    gone.close()
    wait_for('the unlinked volume to go', lambda: d.status()['data_used'] < used)
    v.close()
    wait_for('the close', lambda: not d.list()[0]['open'])
    d.stop('SIGTERM')
    bench.check_clean(pooldir)


@pytest.mark.quick
def test_what_was_closed_while_nobody_served_is_closed(bench):
    d = bench.serve(pool_with(bench), '--keeper')
    bench.ctl('create', d.vol('v'), '--size', '10M')
    open(d.vol('v'), 'r+b').close()  # from the first on the kernel knows that a close need not wait
    f = open(d.vol('v'), 'r+b')
    os.kill(d.proc.pid, signal.SIGSTOP)  # so that no new daemon comes at once
    os.kill(daemon_of(d.proc.pid), signal.SIGKILL)
    f.close()
    os.kill(d.proc.pid, signal.SIGCONT)
    wait_for('the close', lambda: not d.list()[0]['open'])
    bench.ctl('delete', d.vol('v'))


@pytest.mark.quick
def test_an_unmount_while_nobody_serves_ends_all(bench):
    pooldir = pool_with(bench)
    d = bench.serve(pooldir, '--keeper')
    os.kill(d.proc.pid, signal.SIGSTOP)
    os.kill(daemon_of(d.proc.pid), signal.SIGKILL)
    run('umount', '-l', d.mnt)
    os.kill(d.proc.pid, signal.SIGCONT)
    assert d.proc.wait(60) == 0, d.log_text()
    bench.check_clean(pooldir)


def exchange(a, b):
    if LIBC.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), 2) < 0:
        raise OSError(ctypes.get_errno(), f'exchange {a} and {b}')


def names_at_random(d, rng, stop):
    """One user's changes of names; each must do what it says, once."""
    names, serial = set(), 0
    while not stop():
        what = rng.choice(['create', 'mknod', 'link', 'unlink', 'rename', 'over', 'swap', 'open'])
        serial += 1
        new, old = f'n{serial}', rng.choice(sorted(names)) if names else None
        if what in ('create', 'mknod') or not old:
            if what == 'mknod':
                os.mknod(d.vol(new))
            else:
                os.close(os.open(d.vol(new), os.O_RDWR | os.O_CREAT | os.O_EXCL))
            os.truncate(d.vol(new), serial)
            names.add(new)
        elif what == 'link':
            os.link(d.vol(old), d.vol(new))
            names.add(new)
        elif what == 'unlink':
            os.unlink(d.vol(old))
            names.discard(old)
        elif what == 'rename':
            os.rename(d.vol(old), d.vol(new))
            names.discard(old)
            names.add(new)
        elif what == 'over' and len(names) > 1:
            other = rng.choice(sorted(names - {old}))
            os.rename(d.vol(old), d.vol(other))
            names.discard(old)
        elif what == 'swap' and len(names) > 1:
            other = rng.choice(sorted(names - {old}))
            a, b = os.stat(d.vol(old)).st_ino, os.stat(d.vol(other)).st_ino
            exchange(d.vol(old), d.vol(other))
            assert (os.stat(d.vol(old)).st_ino, os.stat(d.vol(other)).st_ino) == (b, a)
        elif what == 'open':
            with open(d.vol(old), 'r+b'):
                pass
        if len(names) > 12:
            for n in sorted(names)[:6]:
                os.unlink(d.vol(n))
                names.discard(n)
        assert set(os.listdir(d.mnt)) - {'.thinpool'} == names
    return names, serial


@pytest.mark.quick
def test_changes_of_names_happen_once(bench, seed):
    rng = random.Random(seed)
    pooldir = pool_with(bench)
    d = bench.serve(pooldir, '--keeper')
    killer = Killer(d, rng, pause=(0.02, 0.4))
    names, serial = names_at_random(d, rng, lambda: not killer.is_alive())
    kills = killer.end()
    print(f'{serial} changes')
    assert kills == KILLS and serial > 10
    assert {x['name'] for x in d.list()} == names
    assert not any(x['open'] for x in d.list())
    d.stop('SIGTERM')
    bench.check_clean(pooldir)


FIO = ('fio', '--name=v', '--rw=randwrite', '--ioengine=libaio', '--iodepth=16', '--direct=1',
       '--verify=crc32c', '--verify_fatal=1', '--randrepeat=0',
       '--verify_backlog=256', '--verify_state_save=0', '--time_based', '--runtime=3600', '--exitall_on_error')


def fio_through(bench, target, size, while_running, sizes='4k-64k'):
    """fio writes and verifies until @while_running has come to its end."""
    job = bench.popen(*FIO, f'--filename={target}', f'--size={size}', f'--bsrange={sizes}',
                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while_running(job)
    assert job.poll() is None, f'fio ended: {job.communicate()[0]}'
    job.send_signal(signal.SIGINT)
    text = job.communicate(timeout=120)[0]
    assert 'err= 0' in text and 'verify:' not in text, text


@pytest.mark.parametrize('sizes', ['4k-64k', '256k-1M'])
def test_a_volume_is_written_while_the_daemon_is_killed(bench, seed, sizes):
    rng = random.Random(seed)
    pooldir = pool_with(bench)
    d = bench.serve(pooldir, '--keeper')
    bench.ctl('create', d.vol('v'), '--size', '256M')
    killer = Killer(d, rng)

    def until_killed(job):
        while killer.is_alive() and job.poll() is None:
            killer.join(0.1)
    fio_through(bench, d.vol('v'), '256M', until_killed, sizes)
    assert killer.end() == KILLS
    d.stop('SIGTERM')
    bench.check_clean(pooldir)


def test_a_file_system_on_a_loop_device_sees_nothing_of_it(bench, seed):
    rng = random.Random(seed)
    pooldir = pool_with(bench)
    d = bench.serve(pooldir, '--keeper')
    bench.ctl('create', d.vol('v'), '--size', '1G')
    lo = bench.loop(d.vol('v'))
    run('mkfs.ext4', '-q', lo.dev)
    fs = bench.mount(lo.dev, 'fs')
    killer = Killer(d, rng)

    def until_killed(job):
        while killer.is_alive() and job.poll() is None:
            tree = fs / f'tree{rng.randrange(3)}'
            shutil.rmtree(tree, ignore_errors=True)
            shutil.copytree(conftest.ROOT / 'tests/e2e', tree)
            run('diff', '-r', conftest.ROOT / 'tests/e2e', tree)
            run('fstrim', fs)
    fio_through(bench, fs / 'file', '128M', until_killed)
    assert killer.end() == KILLS
    bench.umount(fs)
    run('fsck.ext4', '-fn', lo.dev)
    lo.detach()
    d.stop('SIGTERM')
    bench.check_clean(pooldir)


@pytest.fixture
def program(bench, monkeypatch):
    """A thinpoold that can be replaced."""
    path = bench.tmp / 'bin/thinpoold'
    path.parent.mkdir()
    shutil.copy(THINPOOLD, path)
    monkeypatch.setattr(conftest, 'THINPOOLD', path)
    return path


def put_in_place(path, text=None):
    """A newer program (the same, to say the truth) or a script instead of the one at @path."""
    new = path.with_name('new')
    if text is None:
        shutil.copy(THINPOOLD, new)
    else:
        new.write_text(text)
    new.chmod(0o755)
    new.rename(path)


@pytest.mark.parametrize('args', [[], ['--keeper']], ids=['alone', 'kept'])
def test_a_newer_program_takes_over(bench, program, args):
    pooldir = pool_with(bench)
    d = bench.serve(pooldir, *args)
    bench.ctl('create', d.vol('v'), '--size', '256M')
    pauses = []

    def replace(job):
        for i in range(RESTARTS):
            time.sleep(0.3)  # some load in between
            put_in_place(program)
            reply = json.loads(bench.ctl('restart', d.mnt, '--json').stdout)
            assert reply['restarts'] == i + 1
            pauses.append(reply['pause_usec'] / 1e6)
            assert os.stat(f"/proc/{d.status()['pid']}/exe").st_ino == os.stat(program).st_ino
    fio_through(bench, d.vol('v'), '256M', replace)
    print('pauses in seconds, sorted:', *(f'{p:.3f}' for p in sorted(pauses)))
    # Sanitizers and a busy machine included; alone it is some hundredths.
    assert sorted(pauses)[len(pauses) // 2] < 1.0
    d.stop('SIGTERM')
    bench.check_clean(pooldir)


@pytest.mark.quick
def test_a_signal_hands_over(bench):
    d = bench.serve(pool_with(bench))
    f = open(d.mnt / 'v', 'w+b', buffering=0)
    f.write(b'v' * 1000)
    d.proc.send_signal(signal.SIGUSR2)
    wait_for('the new daemon', lambda: restarts(d) == 1)
    assert os.pread(f.fileno(), 1000, 0) == b'v' * 1000
    assert d.status()['pid'] == d.proc.pid
    f.close()
    d.stop()


@pytest.mark.quick
def test_a_program_that_does_not_start_is_not_handed_over_to(bench, program):
    d = bench.serve(pool_with(bench))
    for text in 'no program\n', '#!/bin/sh\nexit 1\n':
        put_in_place(program, text)
        refused(bench.ctl('restart', d.mnt, check=False), FAILED, program)
    (d.pooldir / 'pool.conf').write_text('[pool]\nnonsense = 1\n')
    put_in_place(program)
    refused(bench.ctl('restart', d.mnt, check=False), FAILED, 'check-config')
    assert d.status()['mode'] == 'rw' and restarts(d) == 0
    d.stop()


@pytest.mark.quick
def test_who_waits_for_space_goes_on_waiting(bench):
    pooldir = pool_with(bench, '[pool]\nautoextend_threshold = 100%\nno_space = queue\nno_space_timeout = 0\n',
                         '64M')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '80M')
    writer = bench.popen('dd', 'if=/dev/urandom', f"of={d.vol('v')}", 'bs=1M', 'count=80',
                         'conv=notrunc,fsync', stderr=subprocess.PIPE, text=True)
    wait_for('the pool to be full', lambda: d.status()['mode'] == 'out_of_data_space')
    bench.ctl('restart', d.mnt)
    wait_for('the pool to be full again', lambda: d.status()['mode'] == 'out_of_data_space')
    assert writer.poll() is None
    bench.ctl('extend', d.mnt, '--data', '128M')
    assert writer.wait(60) == 0, writer.stderr.read()
    d.stop()


DROPS = '[reclaim]\npage_cache = yes\npage_cache_limit = 5\npage_cache_interval = 0\ntimer = 0.05\n'


@pytest.mark.quick
def test_a_daemon_dies_while_the_kernel_drops_pages_for_it(bench):
    pooldir = pool_with(bench, ENDLESS + '[pool]\nautoextend_threshold = 100%\n'
                        'no_space = queue\nno_space_timeout = 0\n' + DROPS, '64M')
    d = bench.serve(pooldir, '--keeper')
    bench.ctl('create', d.vol('v'), '--size', '10M')
    status = d.status()
    with open(d.vol('fill'), 'wb', buffering=0) as f:
        f.write(bytes(status['data_total'] - status['data_used']))
        os.fsync(f.fileno())
    # No process is started meanwhile: its start would close our file once more, which flushes.
    with open(d.vol('v'), 'r+b') as f, mmap.mmap(f.fileno(), MIB) as pages:
        pages[:5] = b'dirty'

        def mode():
            return json.loads((d.mnt / '.thinpool/status.json').read_text())['mode']
        # The page is written back before it is dropped, and that write waits for space.
        wait_for('the write', lambda: mode() == 'out_of_data_space')
        first = daemon_of(d.proc.pid)
        os.kill(first, signal.SIGKILL)
        wait_for('another daemon', lambda: daemon_of(d.proc.pid) not in (None, first))
        os.unlink(d.vol('fill'))
        pages.flush()
        assert mode() == 'rw'
    assert d.vol('v').read_bytes()[:10] == b'dirty' + bytes(5)
    d.stop('SIGTERM')
    bench.check_clean(pooldir)


CRASHES = '#!/bin/sh\nkill -9 $$\n'


@pytest.mark.quick
def test_a_crash_loop_ends_in_errors_and_can_be_mended(bench, program):
    pooldir = pool_with(bench, '[daemon]\nrestart_limit = 3\n')
    d = bench.serve(pooldir, '--keeper')
    f = open(d.mnt / 'v', 'w+b', buffering=0)
    f.write(b'v' * 1000)
    os.fsync(f.fileno())
    put_in_place(program, CRASHES)
    kill_daemon(d)
    wait_for('the keeper to give up', lambda: 'EIO from now on' in d.log_text())
    assert 'died 3 times within 60 s' in d.log_text()
    for attempt in (lambda: os.stat(d.mnt / 'w'), lambda: os.pread(f.fileno(), 5, 65536),
                    lambda: os.write(f.fileno(), b'x')):
        with pytest.raises(OSError) as e:
            attempt()
        assert e.value.errno == errno.EIO

    put_in_place(program)
    d.proc.send_signal(signal.SIGUSR2)
    wait_for('a daemon', lambda: daemon_of(d.proc.pid))
    wait_for('the mount to answer', lambda: not failing(lambda: os.listdir(d.mnt)))
    assert os.pread(f.fileno(), 1000, 0) == b'v' * 1000

    put_in_place(program, CRASHES)
    kill_daemon(d)
    wait_for('the keeper to give up', lambda: d.log_text().count('EIO from now on') == 2)
    d.proc.send_signal(signal.SIGTERM)
    assert d.proc.wait(60) == 1
    assert not os.path.ismount(d.mnt)
    assert failing(f.close)
    run(THINPOOLCTL, 'check', pooldir)


def failing(fn):
    try:
        fn()
    except OSError:
        return True
    return False


@pytest.mark.quick
def test_a_keeper_of_a_pool_that_cannot_be_served_says_so(bench):
    (bench.tmp / 'mnt').mkdir()
    for args in [], ['-f']:
        p = run(THINPOOLD, '--keeper', *args, bench.tmp, bench.tmp / 'mnt', check=False)
        assert p.returncode == 1 and 'metadata' in p.stdout, p.stdout


@pytest.mark.quick
def test_a_keeper_in_the_background(bench):
    pooldir = pool_with(bench)
    mnt = bench.tmp / 'mnt'
    mnt.mkdir()
    run(THINPOOLD, '--keeper', pooldir, mnt)
    try:
        def pid():
            return json.loads(run(THINPOOLCTL, 'status', mnt, '--json').stdout)['pid']
        first = pid()
        with open(f'/proc/{first}/stat') as f:
            keeper = int(f.read().rsplit(')', 1)[1].split()[1])
        os.kill(first, signal.SIGKILL)
        assert pid() != first
    finally:
        run('umount', mnt)
    wait_for('the keeper to end', lambda: not os.path.exists(f'/proc/{keeper}'))
    bench.check_clean(pooldir)


class ServiceManager:
    """Keeps descriptors, as systemd's fd store does."""

    def __init__(self, bench, pooldir, mnt):
        self.bench, self.pooldir, self.mnt = bench, pooldir, mnt
        self.path = bench.tmp / 'notify'
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(self.path))
        self.sock.settimeout(60)
        self.store = {}

    def start(self):
        names = sorted(self.store)
        fds = [self.store[n] for n in names]

        def place():
            spare = [os.dup2(fd, 100 + i) for i, fd in enumerate(fds)]
            for i, fd in enumerate(spare):
                os.dup2(fd, 3 + i)
                os.close(fd)
        env = dict(os.environ, NOTIFY_SOCKET=str(self.path))
        if fds:
            env.update(LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=':'.join(names))
        # LISTEN_PID is the pid of the program itself.
        self.proc = self.bench.popen(
            'sh', '-c', 'LISTEN_PID=$$ exec "$@"', 'sh', conftest.THINPOOLD, '-f', self.pooldir,
            self.mnt, env=env, preexec_fn=place, close_fds=False,
            stdout=subprocess.DEVNULL)
        self.await_line(b'READY=1')

    def await_line(self, wanted):
        while True:
            message, control, _, _ = self.sock.recvmsg(4096, 1024)
            fields = dict(line.split(b'=', 1) for line in message.splitlines())
            name = fields.get(b'FDNAME', b'').decode()
            for _, kind, data in control:
                if kind == socket.SCM_RIGHTS:
                    fds = array.array('i', data[:len(data) // 4 * 4])
                    assert b'FDSTORE' in fields and len(fds) == 1
                    self.store[name] = fds[0]
            if b'FDSTOREREMOVE' in fields and name in self.store:
                os.close(self.store.pop(name))
            if wanted in message.splitlines():
                return

    def end(self):
        for fd in self.store.values():
            os.close(fd)
        self.sock.close()


@pytest.mark.quick
def test_a_crash_loop_under_a_service_manager_ends_in_errors(bench):
    pooldir = pool_with(bench, '[daemon]\nrestart_limit = 3\n')
    mnt = bench.tmp / 'mnt'
    mnt.mkdir()
    manager = ServiceManager(bench, pooldir, mnt)

    def crash(times):
        for _ in range(times):
            manager.proc.kill()
            manager.proc.wait()
            manager.start()
    try:
        manager.start()
        open(mnt / 'v', 'wb').close()
        f = open(mnt / 'v', 'r+b', buffering=0)
        f.write(b'v' * 1000)
        crash(2)
        manager.proc.send_signal(signal.SIGUSR2)  # a hand-over is no death
        manager.await_line(b'READY=1')
        assert os.pread(f.fileno(), 1000, 0) == b'v' * 1000
        crash(1)
        for attempt in (lambda: os.stat(mnt / 'w'), lambda: os.pread(f.fileno(), 5, 65536)):
            with pytest.raises(OSError) as e:
                attempt()
            assert e.value.errno == errno.EIO
        manager.proc.send_signal(signal.SIGUSR2)
        manager.await_line(b'READY=1')
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(f.fileno(), 1000, 0) == b'v' * 1000
        crash(3)
        assert failing(lambda: os.stat(mnt / 'w'))
        manager.proc.terminate()
        manager.await_line(b'STOPPING=1')
        assert manager.proc.wait(60) == 0
        assert not os.path.ismount(mnt)
        f.close()
    finally:
        manager.end()
        if os.path.ismount(mnt):
            run('umount', '-l', mnt)
    run(THINPOOLCTL, 'check', pooldir)


@pytest.mark.quick
def test_a_service_manager_keeps_the_mount(bench):
    pooldir = pool_with(bench)
    mnt = bench.tmp / 'mnt'
    mnt.mkdir()
    manager = ServiceManager(bench, pooldir, mnt)
    try:
        manager.start()
        assert {'connection', 'state'} <= set(manager.store)
        # The first close waits for an answer; the next daemon is a child of this process, and closes
        # what it inherits before it can give one.
        open(mnt / 'v', 'wb').close()
        f = open(mnt / 'v', 'r+b', buffering=0)
        f.write(b'v' * MIB)
        os.fsync(f.fileno())
        for _ in range(2):
            manager.proc.kill()
            manager.proc.wait()
            manager.start()
            assert os.pread(f.fileno(), MIB, 0) == b'v' * MIB
        manager.proc.send_signal(signal.SIGUSR2)  # becomes another without the manager's help
        manager.await_line(b'READY=1')
        assert os.pread(f.fileno(), MIB, 0) == b'v' * MIB
        f.close()
        manager.proc.terminate()
        manager.await_line(b'STOPPING=1')
        assert manager.proc.wait(60) == 0
        manager.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.await_line(b'')
        assert not manager.store, 'nothing is kept of a mount that is gone'
        assert not os.path.ismount(mnt)
    finally:
        manager.end()
        if os.path.ismount(mnt):
            run('umount', '-l', mnt)
    bench.check_clean(pooldir)
