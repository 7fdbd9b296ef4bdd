# SPDX-License-Identifier: GPL-2.0-or-later
"""What every end-to-end test stands on: a pool in a scratch directory, served by the real daemon.

Everything made here is unmade here, also when a test fails or hangs: a watchdog aborts the FUSE
connection of a mount that does not answer (nothing else can free the tasks that wait for it),
loop devices are detached, processes are ended by their pid.

Environment: TP_BUILD, the build directory (default: build/ beside src/); TP_SEED, the seed of
random tests.
"""
import contextlib
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = pathlib.Path(os.environ.get('TP_BUILD', ROOT / 'build')).resolve()
THINPOOLD = BUILD / 'src/daemon/thinpoold'
THINPOOLCTL = BUILD / 'src/ctl/thinpoolctl'
THINMETA = ROOT / 'tests/tools/thinmeta.py'

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
ANSWER_SECONDS = 60  # a daemon under sanitizers on a busy machine still answers within this


def run(*args, check=True, timeout=300, **kw):
    """Run a command; its output is text and part of the failure message."""
    args = [str(a) for a in args]
    p = subprocess.run(args, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       timeout=timeout, **kw)
    if check and p.returncode:
        pytest.fail(f'{" ".join(args)}: exit {p.returncode}\n{p.stdout}')
    return p


# Exit codes of thinpoolctl.
OK, FAILED, USAGE, NOT_FOUND, EXISTS, BUSY, NO_SPACE, NO_DAEMON = 0, 1, 2, 3, 4, 5, 6, 69


def refused(p, code, *words):
    """It failed with this code and one line (a usage error may add a hint) that says these words."""
    assert p.returncode == code, p.stdout
    lines = p.stdout.strip().splitlines()
    assert len(lines) == 1 or (code == USAGE and lines[1].startswith('Try `')), p.stdout
    for w in words:
        assert str(w) in p.stdout, p.stdout


def snapshot_of(directory):
    """Names and content of all files in a directory."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(pathlib.Path(directory).iterdir()) if p.is_file()}


def wait_for(what, condition, seconds=ANSWER_SECONDS):
    """Await a condition; its value, once true."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            pytest.fail(f'waited {seconds} s in vain: {what}')
        time.sleep(0.02)


def missing_ability():
    if os.geteuid() != 0:
        return 'needs root'
    for path in ('/dev/fuse', '/dev/loop-control'):
        if not os.path.exists(path):
            return f'needs {path}'
    return None


def pytest_collection_modifyitems(config, items):
    why = missing_ability()
    for item in items:
        if why and 'no_root' not in item.keywords:
            item.add_marker(pytest.mark.skip(reason=why))


def pytest_configure(config):
    config.addinivalue_line('markers', 'no_root: runs without root, FUSE and loop devices')
    config.addinivalue_line('markers', 'quick: part of the quick run')


class Loop:
    """A loop device over a file."""

    def __init__(self, path, direct=True, extra=()):
        self.path = str(path)
        self.dev = run('losetup', '--find', '--show', f'--direct-io={"on" if direct else "off"}',
                       *extra, path).stdout.split()[-1]

    def detach(self):
        if not self.dev:
            return
        dev, self.dev = self.dev, None
        run('losetup', '-d', dev, check=False)
        # Detaching is asynchronous: the file stays open until the kernel is done.
        wait_for(f'{dev} to let go', lambda: not os.path.exists(
            f'/sys/block/{os.path.basename(dev)}/loop/backing_file'))


class Daemon:
    """One thinpoold over one pool directory."""

    def __init__(self, pooldir, mnt, args=(), log=None):
        self.pooldir, self.mnt = pathlib.Path(pooldir), pathlib.Path(mnt)
        self.mnt.mkdir(exist_ok=True)
        self.log_path = pathlib.Path(log or str(self.pooldir) + '.log')
        self.log = open(self.log_path, 'ab')
        self.proc = subprocess.Popen([str(THINPOOLD), '-f', *map(str, args), str(pooldir), str(mnt)],
                                     stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        wait_for('the mount', lambda: self.proc.poll() is not None or os.path.ismount(self.mnt))
        if self.proc.poll() is not None:
            self.log.close()
            pytest.fail(f'thinpoold ended with {self.proc.returncode}:\n{self.log_text()}')
        self.connection = os.minor(os.stat(self.mnt).st_dev)

    def log_text(self):
        return self.log_path.read_text(errors='replace')

    def vol(self, name):
        return self.mnt / name

    def status(self):
        return json.loads(run(THINPOOLCTL, 'status', self.mnt, '--json').stdout)

    def list(self):
        return json.loads(run(THINPOOLCTL, 'list', self.mnt, '--json').stdout)

    def stop(self, how='umount'):
        """End it cleanly; the exit code must be 0."""
        if how == 'umount':
            run('umount', self.mnt)
        else:
            self.proc.send_signal(signal.SIGTERM)
        try:
            code = self.proc.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self.abort()
            pytest.fail(f'thinpoold does not end after {how}:\n{self.log_text()}')
        self.log.close()
        assert code == 0, f'thinpoold ended with {code}:\n{self.log_text()}'
        wait_for('the mount to go', lambda: not os.path.ismount(self.mnt))

    def kill(self):
        """As a crash would."""
        self.proc.kill()
        self.proc.wait()
        self.log.close()
        run('umount', '-l', self.mnt, check=False)

    def abort(self):
        """Free every task that waits for this mount, whatever state the daemon is in."""
        control = f'/sys/fs/fuse/connections/{self.connection}/abort'
        if not os.path.exists(control):
            run('mount', '-t', 'fusectl', 'fusectl', '/sys/fs/fuse/connections', check=False)
        try:
            with open(control, 'w') as f:
                f.write('1')
        except OSError:
            pass  # gone already
        run('umount', '-l', self.mnt, check=False)
        if self.proc.poll() is None:
            self.proc.kill()
            self.proc.wait()
        self.log.close()


class Bench:
    """The workbench of one test: scratch space, and everything that must go when it ends."""

    def __init__(self, tmp):
        self.tmp = pathlib.Path(tmp)
        self.daemons, self.loops, self.mounts, self.procs = [], [], [], []
        self.failing = []

    def ctl(self, *args, check=True, **kw):
        return run(THINPOOLCTL, *args, check=check, **kw)

    def format(self, name='pool', size='4G', *args):
        pooldir = self.tmp / name
        pooldir.mkdir(exist_ok=True)
        self.ctl('format', pooldir, '--size', size, *args)
        return pooldir

    def serve(self, pooldir, *args):
        d = Daemon(pooldir, str(pooldir) + '.mnt', args)
        self.daemons.append(d)
        return d

    def failing_metadata(self, pooldir, name='metadata', **kw):
        """The metadata of a stopped pool moves to a device that can be told to fail."""
        from failing_device import FailingDevice
        backing = pathlib.Path(f'{pooldir}.{name}')
        (pooldir / name).rename(backing)
        device = FailingDevice(backing, **kw)
        self.failing.append(device)
        device.attach(pooldir, name)
        return device

    def failing_data(self, pooldir, **kw):
        return self.failing_metadata(pooldir, 'data', **kw)

    def loop(self, path, **kw):
        lo = Loop(path, **kw)
        self.loops.append(lo)
        return lo

    def mount(self, dev, name, *args):
        where = self.tmp / name
        where.mkdir(exist_ok=True)
        run('mount', *args, dev, where)
        self.mounts.append(where)
        return where

    def umount(self, where):
        run('umount', where)
        self.mounts.remove(where)

    def popen(self, *args, **kw):
        p = subprocess.Popen([str(a) for a in args], **kw)
        self.procs.append(p)
        return p

    def check_clean(self, pooldir):
        """Three judges: our checker, thin_check, and the independent one."""
        self.ctl('check', pooldir)
        # thin_check wants a regular file of its own; it does not lock, so the pool must be stopped.
        run('thin_check', pooldir / 'metadata')
        run(sys.executable, THINMETA, 'check', '--strict', pooldir / 'metadata')

    def abort_mounts(self):
        for d in self.daemons:
            d.abort()
        for device in self.failing:
            device.abort()

    def clean_up(self):
        errors = []

        def attempt(what, *args, **kw):
            try:
                what(*args, **kw)
            except BaseException as e:  # go on with the rest, whatever this was
                errors.append(str(e))

        for p in self.procs:
            if p.poll() is None:
                p.kill()
                p.wait()
        for m in reversed(self.mounts):
            attempt(run, 'umount', '-l', m, check=False)
        for lo in self.loops:
            attempt(lo.detach)
        for d in self.daemons:
            if d.proc.poll() is None:
                attempt(d.stop, 'SIGTERM')
            if d.proc.poll() is None or os.path.ismount(d.mnt):
                attempt(d.abort)
        for device in self.failing:
            attempt(device.close)
        for d in self.daemons:
            text = d.log_text()
            for mark in ('AddressSanitizer', 'LeakSanitizer', 'ThreadSanitizer', 'runtime error:', 'lock order:',
                         'invariant:'):
                if mark in text:
                    errors.append(f'{d.log_path.name} says "{mark}":\n{text[-6000:]}')
        shutil.rmtree(self.tmp, ignore_errors=True)
        return errors


@contextlib.contextmanager
def workbench(seconds):
    """A bench; what waits for its mounts after so many seconds is freed."""
    # Not /tmp, which may be a tmpfs without O_DIRECT and hole punching statistics.
    base = os.environ.get('TP_SCRATCH', '/var/tmp')
    b = Bench(tempfile.mkdtemp(prefix='thinpoold-test-', dir=base))
    watchdog = threading.Timer(seconds, b.abort_mounts)
    watchdog.daemon = True
    watchdog.start()
    yield b
    watchdog.cancel()
    errors = b.clean_up()
    assert not errors, '\n'.join(errors)


@pytest.fixture
def bench(request):
    # pytest-timeout cannot interrupt a task stuck in the kernel: abort the mounts a little earlier.
    limit = request.node.get_closest_marker('timeout')
    with workbench((limit.args[0] if limit else 600) - 20) as b:
        yield b


@pytest.fixture
def seed():
    value = int(os.environ.get('TP_SEED', random.SystemRandom().randrange(1 << 32)))
    print(f'TP_SEED={value}')
    return value
