# SPDX-License-Identifier: GPL-2.0-or-later
"""
Requests and answers over io_uring instead of /dev/fuse.

The kernel offers it to mounts made while its module parameter enable_uring is on; the tests turn it
on for just as long as that takes.
"""
import contextlib
import errno
import os
import pathlib
import shutil
import signal
import subprocess

import pytest

import conftest
from conftest import FAILED, MIB, refused, run, wait_for
from test_consistency import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate
from test_handover import daemon_of, fio_through, restarts
from test_space import is_full

OFFERS = pathlib.Path('/sys/module/fuse/parameters/enable_uring')
GONE = (errno.ENOTCONN, errno.ECONNABORTED)

pytestmark = [pytest.mark.timeout(300),
              pytest.mark.skipif(not OFFERS.exists(), reason='this kernel has no FUSE over io_uring')]


@contextlib.contextmanager
def offered(yes=True):
    before = OFFERS.read_text()
    OFFERS.write_text('Y' if yes else 'N')
    try:
        yield
    finally:
        OFFERS.write_text(before)


def serve(bench, *args, settings='', size='4G', transport='io_uring', offer=True):
    pooldir = bench.format('pool', size) if not (bench.tmp / 'pool').exists() else bench.tmp / 'pool'
    (pooldir / 'pool.conf').write_text(settings)
    with offered(offer):
        d = bench.serve(pooldir, *args)
    assert d.status()['transport'] == transport
    return d


def metric(d, name):
    text = (d.mnt / '.thinpool/metrics').read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(f'{name} ')))


def ends_clean(bench, d, how='umount'):
    d.stop(how)
    bench.check_clean(d.pooldir)


@pytest.mark.quick
def test_it_is_used_if_it_is_offered_and_nobody_keeps_the_mount(bench):
    """The reason: what a dead daemon had taken cannot be had again, see below."""
    too_deep = '[fuse]\nworkers = 1\nio_uring_depth = 960\n'  # for two CPUs
    for settings, args, offer, transport in (('', [], True, 'io_uring'),
                                             ('', [], False, '/dev/fuse'),
                                             (too_deep, [], True, '/dev/fuse'),
                                             ('[fuse]\nio_uring = no\n', [], True, '/dev/fuse'),
                                             ('', ['--keeper'], True, '/dev/fuse'),
                                             ('[fuse]\nio_uring = yes\n', [], False, '/dev/fuse'),
                                             ('[fuse]\nio_uring = yes\n', ['--keeper'], True, 'io_uring')):
        d = serve(bench, *args, settings=settings, offer=offer, transport=transport)
        assert f'transport    {transport}\n' in (d.mnt / '.thinpool/status').read_text()
        assert transport in bench.ctl('status', d.mnt).stdout
        assert metric(d, 'thinpoold_fuse_over_io_uring') == (transport == 'io_uring')
        assert '<4>' not in d.log_text(), 'nothing to warn of'
        d.stop('SIGTERM')


FIO = ('fio', '--name=v', '--rw=randrw', '--randrepeat=0', '--verify=crc32c', '--verify_fatal=1', '--do_verify=1')


@pytest.mark.quick
@pytest.mark.parametrize('depth', [1, 320])
def test_fio_verifies(bench, depth):
    d = serve(bench, settings=f'[fuse]\nio_uring_depth = {depth}\n')
    for name, more in (('direct', ('--ioengine=libaio', '--direct=1', '--iodepth=32', '--bsrange=4k-256k')),
                       ('odd', ('--ioengine=libaio', '--direct=1', '--iodepth=8', '--bsrange=512-64k',
                                '--blockalign=512')),
                       ('cached', ('--ioengine=psync', '--bsrange=1k-2m', '--fsync=64'))):
        bench.ctl('create', d.vol(name), '--size', '64M')
        run(*FIO, f'--filename={d.vol(name)}', '--size=32M', *more, cwd=bench.tmp)
    ends_clean(bench, d)


@pytest.mark.quick
def test_snapshots_discards_and_names(bench):
    d = serve(bench)
    data = os.urandom(8 * MIB)
    d.vol('v').write_bytes(data)
    os.link(d.vol('v'), d.vol('s'))
    with open(d.vol('v'), 'r+b') as f:
        f.write(b'n' * MIB)
        os.fsync(f.fileno())
        used = d.status()['data_used']
        fallocate(f.fileno(), FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, MIB)
        os.fsync(f.fileno())
        wait_for('the discard', lambda: d.status()['data_used'] < used)
    assert d.vol('s').read_bytes() == data
    assert d.vol('v').read_bytes() == bytes(MIB) + data[MIB:]
    os.rename(d.vol('s'), d.vol('t'))
    for i in range(500):
        d.vol(f'n{i}').touch()
    assert len(os.listdir(d.mnt)) == 503
    assert len(os.getxattr(d.vol('t'), 'user.thinpool.id')) > 0
    os.unlink(d.vol('v'))
    os.stat(d.vol('t'))
    ends_clean(bench, d)


def test_a_file_system_on_a_loop_device(bench):
    d = serve(bench)
    bench.ctl('create', d.vol('v'), '--size', '1G')
    lo = bench.loop(d.vol('v'))
    run('mkfs.ext4', '-q', lo.dev)
    fs = bench.mount(lo.dev, 'fs')
    tree = conftest.ROOT / 'tests/e2e'
    for i in range(5):
        shutil.rmtree(fs / 'tree', ignore_errors=True)
        shutil.copytree(tree, fs / 'tree')
        run('diff', '-r', tree, fs / 'tree')
        run('fstrim', fs)
    run(*FIO, f'--filename={fs / "file"}', '--size=64M', '--ioengine=libaio', '--direct=1', '--iodepth=16',
        '--bsrange=4k-64k', cwd=bench.tmp)
    bench.umount(fs)
    run('fsck.ext4', '-fn', lo.dev)
    lo.detach()
    ends_clean(bench, d)


@pytest.mark.quick
def test_who_waits_for_space_keeps_nobody_else_waiting(bench):
    """Every entry that waits is one that serves no other: there are more than the kernel has in the background."""
    d = serve(bench, size='64M', settings='[pool]\nautoextend_threshold = 100%\n'
                                          'no_space = queue\nno_space_timeout = 0\n')
    bench.ctl('create', d.vol('v'), '--size', '1G')
    job = bench.popen('fio', '--name=v', f'--filename={d.vol("v")}', '--size=96M', '--rw=randwrite', '--bs=64k',
                      '--ioengine=libaio', '--direct=1', '--iodepth=512', '--randrepeat=0', cwd=bench.tmp,
                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for('the pool to be full', lambda: is_full(d))
    for cpu in os.sched_getaffinity(0):
        run('taskset', '-c', cpu, 'ls', '-l', d.mnt, timeout=60)
        run('taskset', '-c', cpu, 'touch', d.vol(f'new{cpu}'), timeout=60)
    assert job.poll() is None
    bench.ctl('extend', d.mnt, '--data', '256M')
    text = job.communicate(timeout=120)[0]
    assert job.returncode == 0, text
    ends_clean(bench, d)


def fails_with(errors, fn):
    with pytest.raises(OSError) as e:
        fn()
    assert e.value.errno in errors, e.value


@pytest.mark.quick
@pytest.mark.parametrize('args', [[], ['--keeper']], ids=['alone', 'kept'])
def test_the_mount_ends_with_its_daemon(bench, args):
    """Also that of a daemon with a keeper, if the user will have it so; and nobody waits for ever."""
    d = serve(bench, *args, settings='[fuse]\nio_uring = yes\n')
    f = open(d.vol('v'), 'w+b', buffering=0)
    f.write(b'v' * MIB)
    os.fsync(f.fileno())
    job = bench.popen('fio', '--name=v', f'--filename={d.vol("w")}', '--size=64M', '--rw=randrw', '--bs=4k',
                      '--ioengine=libaio', '--direct=1', '--iodepth=64', '--time_based', '--runtime=3600',
                      cwd=bench.tmp, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for('some load', lambda: metric(d, 'thinpoold_fuse_requests_total') > 2000)
    os.kill(daemon_of(d.proc.pid) if args else d.proc.pid, signal.SIGKILL)
    d.proc.wait(60)
    assert job.wait(60) != 0
    fails_with(GONE, lambda: os.pwrite(f.fileno(), b'v', 0))
    fails_with(GONE, lambda: os.listdir(d.mnt))
    f.close()
    assert not args or 'left no mount to go on with' in d.log_text()
    run('umount', '-l', d.mnt)

    d = serve(bench, settings='[fuse]\nio_uring = yes\n')
    assert d.vol('v').read_bytes() == b'v' * MIB
    ends_clean(bench, d)


@pytest.mark.quick
def test_it_is_not_handed_over(bench):
    d = serve(bench)
    f = open(d.mnt / 'v', 'w+b', buffering=0)
    f.write(b'v' * 1000)
    refused(bench.ctl('restart', d.mnt, check=False), FAILED, 'io_uring = no')
    d.proc.send_signal(signal.SIGUSR2)
    wait_for('the refusal', lambda: d.log_text().count('no hand-over') == 2)
    assert os.pread(f.fileno(), 1000, 0) == b'v' * 1000 and restarts(d) == 0
    f.close()
    ends_clean(bench, d)


def test_a_kept_mount_is_handed_over_though_it_is_offered(bench):
    """Over /dev/fuse, where the kernel sends again what a dead daemon had taken."""
    d = serve(bench, '--keeper', transport='/dev/fuse')
    bench.ctl('create', d.vol('v'), '--size', '256M')

    def replace(job):
        for i in range(2):
            wait_for('some load', lambda: metric(d, 'thinpoold_fuse_requests_total') > 500)
            bench.ctl('restart', d.mnt)
            os.kill(wait_for('a daemon', lambda: daemon_of(d.proc.pid)), signal.SIGKILL)
            wait_for('the next daemon', lambda: restarts(d) == 2 * i + 2)
        wait_for('some load', lambda: metric(d, 'thinpoold_fuse_requests_total') > 500)
    with offered():
        fio_through(bench, d.vol('v'), '64M', replace)
    assert d.status()['transport'] == '/dev/fuse'
    ends_clean(bench, d, 'SIGTERM')


@pytest.mark.quick
def test_an_end_under_load(bench):
    """Whatever is in flight is answered or fails, and the pool is clean."""
    for how in 'SIGTERM', 'abort':
        d = serve(bench)
        bench.ctl('create', d.vol(how), '--size', '64M')
        # It must not make a file: that would be one below the mount, if it is slow to begin.
        job = bench.popen('fio', '--name=v', f'--filename={d.vol(how)}', '--size=64M', '--rw=randrw', '--bs=4k',
                          '--allow_file_create=0',
                          '--ioengine=libaio', '--direct=1', '--iodepth=64', '--time_based', '--runtime=3600',
                          cwd=bench.tmp, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for('some load', lambda: metric(d, 'thinpoold_fuse_requests_total') > 2000)
        if how == 'abort':
            pathlib.Path(f'/sys/fs/fuse/connections/{d.connection}/abort').write_text('1')
        else:
            d.proc.send_signal(signal.SIGTERM)
        assert d.proc.wait(60) == 0, d.log_text()
        assert job.wait(60) != 0
        wait_for('the mount to go', lambda: not os.path.ismount(d.mnt))
        bench.check_clean(d.pooldir)
