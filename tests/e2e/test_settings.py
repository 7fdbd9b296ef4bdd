# SPDX-License-Identifier: GPL-2.0-or-later
"""What the keys of the configuration do, and what SIGHUP changes."""
import errno
import json
import os
import signal

import pytest

from conftest import KIB, MIB, THINPOOLD, run, wait_for

BLOCK = 64 * KIB
EXTENTS = 16 * KIB  # what the host may need more to describe a file with holes
PUNCH = 'fallocate', '-p', '-o', '0', '-l', str(4 * MIB)


def pool_with(bench, settings, size='256M'):
    pooldir = bench.format('pool', size)
    (pooldir / 'pool.conf').write_text(settings)
    return pooldir


def allocated(pooldir):
    return os.stat(pooldir / 'data').st_blocks * 512


def filled_volume(bench, d, megabytes=8):
    bench.ctl('create', d.vol('v'), '--size', f'{megabytes}M')
    with open(d.vol('v'), 'r+b') as f:
        f.write(os.urandom(megabytes * MIB))
        f.flush()
        os.fsync(f.fileno())


@pytest.mark.quick
@pytest.mark.parametrize('mode', ['passdown', 'no_passdown', 'ignore'])
def test_discard(bench, mode):
    pooldir = pool_with(bench, f'[pool]\ndiscard = {mode}\n')
    d = bench.serve(pooldir)
    filled_volume(bench, d)
    used, host = d.status()['data_used'], allocated(pooldir)
    p = run(*PUNCH, d.vol('v'), check=False)
    assert (p.returncode == 0) == (mode != 'ignore'), p.stdout
    if mode == 'ignore':
        assert 'supported' in p.stdout
        assert d.status()['data_used'] == used
    else:
        with open(d.vol('v'), 'rb') as f:
            assert f.read(4 * MIB) == bytes(4 * MIB)
        wait_for('the blocks', lambda: d.status()['data_used'] == used - 4 * MIB)
    if mode == 'passdown':
        wait_for('the host', lambda: allocated(pooldir) <= host - 4 * MIB + EXTENTS)
    # A delete gives space back to the host in the same way, but always to the pool.
    bench.ctl('delete', d.vol('v'))
    wait_for('the delete', lambda: d.status()['data_used'] < MIB)
    if mode == 'passdown':
        wait_for('the host', lambda: allocated(pooldir) < MIB)
    d.stop()
    if mode != 'passdown':
        assert allocated(pooldir) >= host - MIB
    bench.check_clean(pooldir)


@pytest.mark.quick
@pytest.mark.parametrize('discard', ['passdown', 'no_passdown'])
def test_new_blocks_are_zeroed(bench, discard):
    """What a deleted volume held is nowhere to be seen, whether it was punched or not."""
    pooldir = pool_with(bench, f'[pool]\ndiscard = {discard}\n', '16M')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('secret'), '--size', '12M')
    with open(d.vol('secret'), 'r+b') as f:
        f.write(b'S' * 12 * MIB)
        f.flush()
        os.fsync(f.fileno())
    bench.ctl('delete', d.vol('secret'))
    wait_for('the delete', lambda: d.status()['data_used'] < MIB)
    bench.ctl('create', d.vol('v'), '--size', '12M')
    with open(d.vol('v'), 'r+b') as f:
        for i in range(12 * 16):
            os.pwrite(f.fileno(), b'x', i * BLOCK + 1000)
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        data = f.read()
    assert data.count(b'x') == 12 * 16 and data.count(0) == len(data) - 12 * 16
    d.stop()


def test_without_zeroing_a_new_block_is_as_it_was(bench):
    """That is what the key is for: nobody pays for zeros that nobody reads."""
    pooldir = pool_with(bench, '[pool]\nzero_new_blocks = no\n', '16M')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '12M')
    with open(pooldir / 'data', 'r+b') as f:  # what some former owner left
        f.seek(MIB)
        f.write(b'O' * 15 * MIB)
    with open(d.vol('v'), 'r+b') as f:
        for i in range(8 * 16):
            os.pwrite(f.fileno(), b'x', i * BLOCK + 1000)
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        data = f.read()
    assert data.count(b'O') > MIB
    assert data[12 * MIB - BLOCK:] == bytes(BLOCK), 'a hole is zeros in any case'
    status = d.status()
    assert status['settings']['zero_new_blocks'] is False
    d.stop()


def reload(d, text):
    before = d.log_text().count('configuration')
    (d.pooldir / 'pool.conf').write_text(text)
    d.proc.send_signal(signal.SIGHUP)
    wait_for('the daemon to say so', lambda: d.log_text().count('configuration') > before)


def shown(d):
    return (d.mnt / '.thinpool/config').read_text()


@pytest.mark.quick
def test_sighup_changes_what_can_be_changed(bench):
    d = bench.serve(pool_with(bench, ''))
    filled_volume(bench, d)
    reload(d, '[pool]\ndiscard = ignore\ncommit_interval = 5\ncache_size = 8M\n'
              'no_space = error\n[fuse]\nworkers = 4\n[daemon]\nlog_level = debug\n')
    log = d.log_text()
    for text in 'discard = ignore', 'commit_interval = 5', 'cache_size = 8M', 'no_space = error', \
            'log_level = debug':
        assert text in log and text + '\n' in shown(d)
    assert 'only when the daemon is started again: workers' in log
    assert 'workers = 2\n' in shown(d)

    def taken():
        s = d.status()
        return s['settings'] == {'commit_interval': 5.0, 'discard': 'ignore', 'no_space': 'error',
                                 'no_space_timeout': 60.0, 'zero_new_blocks': True} \
            and s['cache']['limit'] == 8 * MIB

    wait_for('the pool', taken)
    assert run(*PUNCH, d.vol('v'), check=False).returncode != 0
    # The text for people has it too.
    assert 'discards ignore' in (d.mnt / '.thinpool/status').read_text()
    reload(d, '')
    assert 'discard = passdown\n' in shown(d)
    wait_for('the pool', lambda: d.status()['settings']['discard'] == 'passdown')
    run(*PUNCH, d.vol('v'))
    d.stop()
    bench.check_clean(d.pooldir)


@pytest.mark.quick
def test_a_mistake_changes_nothing(bench):
    d = bench.serve(pool_with(bench, '[pool]\ndiscard = ignore\n'))
    before = shown(d)
    reload(d, '[pool]\ndiscard = passdown\nnonsense = 1\n')
    assert 'the configuration stays as it was' in d.log_text()
    assert 'pool.conf:3: unknown key "nonsense"' in d.log_text()
    assert shown(d) == before
    reload(d, '[pool]\ndiscard = ignore\n')
    assert 'nothing to change' in d.log_text()
    d.stop()


def test_writers_that_wait_fail_when_told_not_to_wait(bench):
    d = bench.serve(pool_with(bench, '[pool]\nautoextend_threshold = 100%\nno_space_timeout = 0\n', '2M'))
    bench.ctl('create', d.vol('v'), '--size', '10M')
    writer = bench.popen('dd', 'if=/dev/zero', f'of={d.vol("v")}', 'bs=64K', 'conv=notrunc,fsync')
    wait_for('a full pool', lambda: d.status()['mode'] == 'out_of_data_space')
    assert writer.poll() is None
    reload(d, '[pool]\nautoextend_threshold = 100%\nno_space = error\n')
    assert writer.wait(60) != 0
    with open(d.vol('v'), 'r+b', buffering=0) as f:
        with pytest.raises(OSError) as e:
            os.pwrite(f.fileno(), b'x', 9 * MIB)
        assert e.value.errno == errno.ENOSPC
    d.stop()


def test_sighup_in_the_background_finds_a_relative_configuration(bench):
    """A daemon has left the directory that -c was relative to."""
    pooldir = bench.format('pool', '256M')
    mnt = bench.tmp / 'mnt'
    mnt.mkdir()
    conf = bench.tmp / 'my.conf'
    conf.write_text('[pool]\ncommit_interval = 3\n')
    run(THINPOOLD, '-c', 'my.conf', 'pool', 'mnt', cwd=bench.tmp)
    try:
        text = (mnt / '.thinpool/config').read_text()
        assert 'commit_interval = 3\n' in text
        conf.write_text('[pool]\ncommit_interval = 4\n')
        pid = json.loads(bench.ctl('status', mnt, '--json').stdout)['pid']
        os.kill(pid, signal.SIGHUP)
        wait_for('the new value', lambda: 'commit_interval = 4\n' in
                 (mnt / '.thinpool/config').read_text())
    finally:
        run('umount', mnt)
    wait_for('the pool to be free', lambda: bench.ctl('check', pooldir, check=False).returncode == 0)
