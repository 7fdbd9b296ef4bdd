# SPDX-License-Identifier: GPL-2.0-or-later
"""Many volumes, and what the directory promises about each."""
import os
import random
import subprocess

import pytest

from conftest import GIB, MIB, run, wait_for


def names_of(d):
    return sorted(n for n in os.listdir(d.mnt) if not n.startswith('.'))


def mark(path, text):
    with open(path, 'r+b') as f:
        f.write(text.encode())
        f.flush()
        os.fsync(f.fileno())


def read_mark(path):
    with open(path, 'rb') as f:
        return f.read(64).rstrip(b'\0').decode()


@pytest.mark.timeout(600)
def test_a_thousand_volumes(bench, seed):
    rng = random.Random(seed)
    d = bench.serve(bench.format('pool', '2G'))
    want = {}  # name -> (mark, size)
    for i in range(1000):
        name = f'vol-{i:04}-é' if i % 10 == 0 else f'vol-{i:04}'
        size = (i + 1) * MIB
        fd = os.open(d.vol(name), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        os.ftruncate(fd, size)
        text = ''
        if i % 4 == 0:
            text = f'mark of {i}'
            os.pwrite(fd, text.encode(), 0)
        os.close(fd)
        want[name] = (text, size)

    def check():
        assert names_of(d) == sorted(want)
        listed = {v['name']: v for v in d.list()}
        assert sorted(listed) == sorted(want)
        assert len({v['id'] for v in listed.values()}) == len(want)
        for name, (text, size) in want.items():
            assert listed[name]['size'] == size
            assert os.stat(d.vol(name)).st_size == size
        for name in rng.sample(sorted(want), min(200, len(want))):
            assert read_mark(d.vol(name)) == want[name][0], name

    check()
    for name in rng.sample(sorted(want), 300):
        os.rename(d.vol(name), d.vol(name + '.renamed'))
        want[name + '.renamed'] = want.pop(name)
    for name in rng.sample(sorted(want), 200):
        os.link(d.vol(name), d.vol(name + '.snap'))
        want[name + '.snap'] = want[name]
    for name in rng.sample(sorted(want), 300):
        os.unlink(d.vol(name))
        del want[name]
    check()
    d.stop()
    bench.check_clean(d.pooldir)
    d = bench.serve(d.pooldir)
    check()
    for name in sorted(want):
        os.unlink(d.vol(name))
    want.clear()
    check()
    d.stop()
    bench.check_clean(d.pooldir)


@pytest.mark.quick
def test_an_unlinked_open_volume_stays_usable(bench):
    d = bench.serve(bench.format('pool', '1G'))
    bench.ctl('create', d.vol('v'), '--size', '100M')
    empty = d.status()['data_used']
    fd = os.open(d.vol('v'), os.O_RDWR)
    os.pwrite(fd, b'x' * MIB, 0)
    os.unlink(d.vol('v'))
    assert names_of(d) == []
    bench.ctl('create', d.vol('v'), '--size', '1M')  # the name is free again
    assert os.pread(fd, MIB, 0) == b'x' * MIB
    os.pwrite(fd, b'y' * MIB, 5 * MIB)
    assert os.pread(fd, MIB, 5 * MIB) == b'y' * MIB
    os.close(fd)
    wait_for('the unlinked volume to go', lambda: d.status()['data_used'] <= empty)
    d.stop()
    bench.check_clean(d.pooldir)


def test_an_unlinked_volume_is_removed_after_a_crash(bench):
    d = bench.serve(bench.format('pool', '1G'))
    bench.ctl('create', d.vol('v'), '--size', '100M')
    empty = d.status()['data_used']
    fd = os.open(d.vol('v'), os.O_RDWR)
    os.pwrite(fd, b'x' * MIB, 0)
    os.fsync(fd)
    os.unlink(d.vol('v'))
    d.kill()
    try:
        os.close(fd)
    except OSError:
        pass  # the mount is gone
    d = bench.serve(d.pooldir)
    assert names_of(d) == []
    wait_for('the unlinked volume to go', lambda: d.status()['data_used'] <= empty)
    d.stop()
    bench.check_clean(d.pooldir)


@pytest.mark.quick
def test_rename_onto_a_volume_replaces_it(bench):
    d = bench.serve(bench.format('pool', '1G'))
    for name in ('a', 'b'):
        bench.ctl('create', d.vol(name), '--size', '10M')
        mark(d.vol(name), name)
    os.rename(d.vol('a'), d.vol('b'))
    assert names_of(d) == ['b']
    assert read_mark(d.vol('b')) == 'a'
    d.stop()
    d = bench.serve(d.pooldir)
    assert names_of(d) == ['b']
    assert read_mark(d.vol('b')) == 'a'
    d.stop()
    bench.check_clean(d.pooldir)


@pytest.mark.quick
def test_fsync_survives_a_kill(bench):
    d = bench.serve(bench.format('pool', '1G'))
    bench.ctl('create', d.vol('v'), '--size', '1G')
    fd = os.open(d.vol('v'), os.O_RDWR)
    for i in range(64):
        os.pwrite(fd, bytes([i + 1]) * 5000, i * 3 * MIB + i * 777)
    os.fsync(fd)
    synced = os.open(d.vol('v'), os.O_RDWR | os.O_DSYNC)
    os.pwrite(synced, b'durable', 900 * MIB)
    d.kill()
    for f in (fd, synced):
        try:
            os.close(f)
        except OSError:
            pass
    bench.check_clean(d.pooldir)
    d = bench.serve(d.pooldir)
    with open(d.vol('v'), 'rb') as f:
        for i in range(64):
            assert os.pread(f.fileno(), 5000, i * 3 * MIB + i * 777) == bytes([i + 1]) * 5000
        assert os.pread(f.fileno(), 7, 900 * MIB) == b'durable'
    d.stop()


@pytest.mark.quick
def test_a_second_daemon_and_offline_verbs_refuse_a_pool_in_use(bench):
    d = bench.serve(bench.format('pool', '1G'))
    other = bench.tmp / 'other'
    other.mkdir()
    from conftest import THINPOOLD
    p = run(THINPOOLD, '-f', d.pooldir, other, check=False)
    assert p.returncode == 1 and 'in use' in p.stdout
    assert not os.path.ismount(other)
    for verb in (('check', d.pooldir), ('format', d.pooldir, '--size', '1G', '--force')):
        p = bench.ctl(*verb, check=False)
        assert p.returncode == 5, p.stdout
        assert len(p.stdout.strip().splitlines()) == 1
    bench.ctl('create', d.vol('still-alive'), '--size', '1M')
    d.stop()
    bench.check_clean(d.pooldir)


@pytest.mark.quick
def test_read_only_changes_nothing(bench):
    d = bench.serve(bench.format('pool', '1G'))
    bench.ctl('create', d.vol('v'), '--size', '10M')
    mark(d.vol('v'), 'kept')
    d.stop()
    sums = [run('sha256sum', d.pooldir / n).stdout for n in ('metadata', 'data')]
    d = bench.serve(d.pooldir, '--read-only')
    assert read_mark(d.vol('v')) == 'kept'
    assert d.status()['mode'] == 'ro'
    with pytest.raises(OSError):
        open(d.vol('v'), 'r+b')
    with pytest.raises(OSError):
        os.unlink(d.vol('v'))
    assert bench.ctl('create', d.vol('w'), '--size', '1M', check=False).returncode == 1
    d.stop()
    assert [run('sha256sum', d.pooldir / n).stdout for n in ('metadata', 'data')] == sums


def serve_of_fixed_size(bench, size):
    pooldir = bench.format('pool', size)
    (pooldir / 'pool.conf').write_text('[pool]\nautoextend_threshold = 100%\n')
    return bench.serve(pooldir)


@pytest.mark.quick
def test_a_full_pool_with_waiting_writers_can_be_stopped(bench):
    d = serve_of_fixed_size(bench, '64M')
    bench.ctl('create', d.vol('v'), '--size', '1G')
    writer = bench.popen('dd', 'if=/dev/zero', f'of={d.vol("v")}', 'bs=1M', 'count=200', 'conv=notrunc',
                         stderr=subprocess.DEVNULL)
    wait_for('the pool to be full', lambda: d.status()['mode'] == 'out_of_data_space')
    assert writer.poll() is None
    # Deleting ends the fullness only for others; the writer has its volume open.
    d.stop('SIGTERM')
    assert writer.wait(30) != 0
    bench.check_clean(d.pooldir)


@pytest.mark.quick
def test_a_full_pool_goes_on_after_a_delete(bench):
    d = serve_of_fixed_size(bench, '64M')
    for name in ('ballast', 'v'):
        bench.ctl('create', d.vol(name), '--size', '1G')
    run('dd', 'if=/dev/zero', f'of={d.vol("ballast")}', 'bs=1M', 'count=40', 'conv=notrunc,fsync')
    writer = bench.popen('dd', 'if=/dev/urandom', f'of={d.vol("v")}', 'bs=1M', 'count=40',
                         'conv=notrunc,fsync', stderr=subprocess.DEVNULL)
    wait_for('the pool to be full', lambda: d.status()['mode'] == 'out_of_data_space')
    bench.ctl('delete', d.vol('ballast'))
    assert writer.wait(60) == 0
    wait_for('the pool to be writable', lambda: d.status()['mode'] == 'rw')
    d.stop()
    bench.check_clean(d.pooldir)
