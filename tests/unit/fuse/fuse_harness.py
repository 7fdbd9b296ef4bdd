#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the tests of the mounted FUSE layer share: the daemon, checks, running with a watchdog.

TP_FUSE_URING: the depth of queues with which requests are to come over io_uring.
"""
import contextlib
import ctypes
import errno
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback

TEST_TIMEOUT = 120  # seconds; ASan and a shared machine included
FUSECTL = '/sys/fs/fuse/connections'

URING = os.environ.get('TP_FUSE_URING')
OFFERS_URING = '/sys/module/fuse/parameters/enable_uring'

libc = ctypes.CDLL(None, use_errno=True)


def check(what, text=''):
    if not what:
        raise AssertionError(text)


def same(is_, wanted, text=''):
    check(is_ == wanted, f'{text}: {is_!r}, not {wanted!r}')


def fails(number, fn, *args, **kw):
    """@fn must fail with @number (or one of several)."""
    numbers = number if isinstance(number, tuple) else (number,)
    try:
        fn(*args, **kw)
    except OSError as e:
        check(e.errno in numbers, f'{fn.__name__}{args}: {errno.errorcode[e.errno]}')
        return
    raise AssertionError(f'{fn.__name__}{args} did not fail')


def libc_call(name, *args):
    if getattr(libc, name)(*args) < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))


def fallocate(fd, mode, offset, length):
    libc_call('fallocate', fd, mode, ctypes.c_longlong(offset), ctypes.c_longlong(length))


def renameat2(a, b, flags):
    libc_call('renameat2', -100, os.fsencode(a), -100, os.fsencode(b), flags)


def eventually(fn, text, seconds=10):
    """Wait for a condition; there is no event for what the kernel has been told."""
    end = time.monotonic() + seconds
    while not fn():
        check(time.monotonic() < end, text)
        time.sleep(0.01)


@contextlib.contextmanager
def uring_offered():
    """What is mounted in here may use io_uring, also afterwards."""
    with open(OFFERS_URING, 'r+') as f:
        before = f.read()
        f.seek(0)
        f.write('Y')
        f.flush()
        try:
            yield
        finally:
            f.seek(0)
            f.write(before)


class Mount:
    daemon = None

    def __init__(self, mode='pages', workers=2, *more, path=None, pass_fds=()):
        self.path = path or tempfile.mkdtemp(prefix='tp-fuse-')
        if URING:
            more = more[:1] or ('rw',), (f'uring={URING}',), more[1:]
            more = [word for words in more for word in words]
        with uring_offered() if URING else contextlib.nullcontext():
            self.p = subprocess.Popen([self.daemon, self.path, mode, str(workers), *more],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                      pass_fds=pass_fds)
            self.first = self.line()
        self.connection = None
        if self.first == 'ready':
            self.connection = self.find_connection()
            check(not URING or self.counts()['uring'], 'over io_uring')

    def line(self):
        return self.p.stdout.readline().strip()

    def find_connection(self):
        with open('/proc/self/mountinfo') as f:
            for line in f:
                word = line.split()
                if word[4] == self.path:
                    return word[2].split(':')[1]
        return None

    def abort(self):
        if self.connection:
            try:
                with open(f'{FUSECTL}/{self.connection}/abort', 'w') as f:
                    f.write('1')
            except OSError:
                pass

    def __call__(self, text):
        self.p.stdin.write(text + '\n')
        self.p.stdin.flush()
        answer = self.line()
        check(answer.startswith('ok'), f'{text}: {answer}')
        return answer

    def counts(self):
        return {k: int(v) for k, v in re.findall(r'(\w+)=(\d+)', self('counts'))}

    def f(self, name):
        return os.path.join(self.path, name)

    def ended(self):
        """The daemon has ended by itself and in order."""
        line = self.line()
        same(line, 'ended references=0', 'last line')
        same(self.p.wait(), 0, 'exit status')

    def stop(self, grace=0):
        self.p.stdin.write(f'stop {grace}\n')
        self.p.stdin.flush()
        self.ended()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind:
            self.abort()
        if self.p.poll() is None:
            if kind is None:
                self.stop()
            else:
                self.p.kill()
                self.p.wait()
        subprocess.run(['umount', '-l', self.path], stderr=subprocess.DEVNULL)
        try:
            os.rmdir(self.path)
        except OSError:
            pass


mounted = []  # for the watchdog


def mount(*args, **kw):
    m = Mount(*args, **kw)
    mounted.append(m)
    if 'path' not in kw:
        same(m.first, 'ready')
    return m


def put(path, data, flags=0, offset=0):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    try:
        same(os.pwrite(fd, data, offset), len(data))
    finally:
        os.close(fd)


def get(path):
    with open(path, 'rb') as f:
        return f.read()


def in_threads(n, fn):
    errors = []

    def run(i):
        try:
            fn(i)
        except Exception:
            errors.append(traceback.format_exc())

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    check(not errors, '\n'.join(errors[:1]))


def prepare():
    if os.geteuid() or not os.path.exists('/dev/fuse'):
        print('1..0 # SKIP needs root and /dev/fuse')
        sys.exit(77)
    if URING and not os.path.exists(OFFERS_URING):
        print('1..0 # SKIP this kernel has no FUSE over io_uring')
        sys.exit(77)
    if not os.path.ismount(FUSECTL):
        subprocess.run(['mount', '-t', 'fusectl', 'fusectl', FUSECTL], check=False)


def watchdog(name, done):
    if done.wait(TEST_TIMEOUT):
        return
    print(f'# {name} hangs, aborting', flush=True)
    for m in mounted:
        m.abort()
        m.p.kill()


def run_test(name, fn):
    done = threading.Event()
    dog = threading.Thread(target=watchdog, args=(name, done))
    dog.start()
    mounted.clear()
    began = time.monotonic()
    try:
        skipped = fn()
        return f'ok - {name}' + (f' # SKIP {skipped}' if skipped else '') + \
            f' # {time.monotonic() - began:.1f} s'
    except Exception:
        print('# ' + traceback.format_exc().replace('\n', '\n# '), flush=True)
        return f'not ok - {name}'
    finally:
        done.set()
        dog.join()


def main(tests):
    """Run functions called test_..., all or those named on the command line."""
    prepare()
    Mount.daemon = sys.argv[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    tests = [(n, f) for n, f in tests.items() if n.startswith('test_')]
    if len(sys.argv) > 2:
        tests = [(n, f) for n, f in tests if n in sys.argv[2:] or n[5:] in sys.argv[2:]]
    print(f'1..{len(tests)}', flush=True)
    bad = 0
    for name, fn in tests:
        line = run_test(name[5:].replace('_', ' '), fn)
        bad += line.startswith('not')
        print(line, flush=True)
    sys.exit(bool(bad))
