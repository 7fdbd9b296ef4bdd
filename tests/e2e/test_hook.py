# SPDX-License-Identifier: GPL-2.0-or-later
"""on_low_space: a program is told that space is short, one at a time, and is in nobody's way."""
import os
import pathlib
import random
import signal
import time

import pytest

from conftest import MIB, THINPOOLCTL, THINPOOLD, run, wait_for
from test_space import BLOCK, Writer, configure, content, ends_clean, is_full, verify


def hook(bench, text):
    path = bench.tmp / 'hook'
    path.write_text('#!/bin/sh\n' + text)
    path.chmod(0o755)
    return path


def pool_with_hook(bench, text, **keys):
    pooldir = bench.format('pool', '16M')
    configure(pooldir, low_water_data='50%', on_low_space=hook(bench, text), **keys)
    return pooldir


def write_blocks(d, blocks, name='v'):
    if not d.vol(name).exists():
        bench_create(d, name)
    fd = os.open(d.vol(name), os.O_RDWR)
    for n in blocks:
        os.pwrite(fd, content(n), n * BLOCK)
    os.fsync(fd)
    os.close(fd)


def bench_create(d, name):
    run(THINPOOLCTL, 'create', d.vol(name), '--size', '1G')


def is_alive(pid):
    try:
        state = pathlib.Path(f'/proc/{pid}/status').read_text()
    except FileNotFoundError:
        return False
    return '\nState:\tZ' not in state


def pid_in(path):
    return wait_for('the hook', lambda: path.exists() and path.read_text().strip())


@pytest.mark.quick
def test_the_hook_is_told_what_is_short_and_gets_nothing_else(bench):
    out = bench.tmp / 'out'
    d = bench.serve(pool_with_hook(
        bench, f'exec 3>>{out}.new; (echo "$@"; env; pwd; echo fds $(ls /proc/$$/fd); grep -E "^Sig(Blk|Ign)" /proc/$$/status;'
               f' readlink /proc/$$/fd/0) >&3; mv {out}.new {out}\n'))
    write_blocks(d, range(140))
    wait_for('the hook', out.exists)
    lines = out.read_text().splitlines()
    status = d.status()
    assert lines[0] == 'data low'
    env = dict(line.split('=', 1) for line in lines if '=' in line)
    for shell_own in ('PWD', 'OLDPWD', 'SHLVL', '_'):
        env.pop(shell_own, None)
    assert 50 <= int(env.pop('THINPOOLD_PERCENT')) <= 100
    assert 8 * MIB <= int(env.pop('THINPOOLD_USED')) <= status['data_used']
    assert env == {'PATH': '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
                   'THINPOOLD_POOL': str(d.pooldir), 'THINPOOLD_MOUNT': str(d.mnt),
                   'THINPOOLD_SPACE': 'data', 'THINPOOLD_EVENT': 'low', 'THINPOOLD_SIZE': str(16 * MIB)}
    assert '/' in lines and '/dev/null' in lines
    fds = next(line for line in lines if line.startswith('fds')).split()[1:]
    assert set(fds) <= {'0', '1', '2', '3', '10'}, 'only those of the shell itself'  # 3: ours, 10: the script
    assert [line for line in lines if line.startswith('Sig')] == [f'Sig{k}:\t{0:016x}' for k in ('Blk', 'Ign')]
    wait_for('its end', lambda: not d.status()['hook']['running'])
    assert d.status()['hook'] == {'running': False, 'runs': 1, 'failures': 0}
    assert '\nthinpoold_hook_runs_total 1\n' in (d.mnt / '.thinpool/metrics').read_text()
    ends_clean(bench, d)


@pytest.mark.quick
def test_a_hook_that_hangs_is_in_nobodys_way_and_is_ended(bench, seed):
    pids = bench.tmp / 'pids'
    d = bench.serve(pool_with_hook(
        bench, f'trap "" TERM; sleep 1000 & echo $$ $! >>{pids}; wait; wait\n',
        on_low_space_timeout=3, no_space='error'))
    bench.ctl('create', d.vol('v'), '--size', '1G')
    w = Writer(d.vol('v'), range(400), random.Random(seed))
    began = time.monotonic()
    w.start()
    shell, child = map(int, pid_in(pids).split())
    assert w.finish() is not None and is_full(d)  # it became full meanwhile
    bench.ctl('create', d.vol('other'), '--size', '1M')
    assert d.status()['hook']['running'] and is_alive(shell) and is_alive(child)
    assert len(pids.read_text().splitlines()) == 1, 'one at a time'
    wait_for('its end', lambda: not is_alive(shell) and not is_alive(child))
    assert 2.5 < time.monotonic() - began
    # What happened meanwhile is told afterwards.
    wait_for('another run', lambda: len(pids.read_text().splitlines()) == 2)
    assert 'data low' in d.log_text() and 'data full' in d.log_text()
    assert 'signal 9, having taken too long' in d.log_text()
    assert d.status()['hook']['failures'] == 1
    d.stop()
    for pid in map(int, pids.read_text().split()):
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    bench.check_clean(d.pooldir)


@pytest.mark.quick
def test_a_hook_can_extend_the_pool_that_others_wait_for(bench, seed):
    d = bench.serve(pool_with_hook(
        bench, f'[ $1 = data ] && exec {THINPOOLCTL} extend "$THINPOOLD_MOUNT" --data $((THINPOOLD_SIZE * 2))\n',
        no_space='queue', no_space_timeout=0))
    bench.ctl('create', d.vol('v'), '--size', '1G')
    w = Writer(d.vol('v'), range(800), random.Random(seed))
    w.start()
    assert w.finish(120) is None
    assert d.status()['data_total'] >= 64 * MIB and d.status()['mode'] == 'rw'
    verify(d.vol('v'), range(800))
    ends_clean(bench, d)


def test_the_daemon_dies_while_the_hook_runs(bench):
    pids = bench.tmp / 'pids'
    pooldir = pool_with_hook(bench, f'echo $$ >>{pids}; exec sleep 1000\n')
    d = bench.serve(pooldir, '--keeper')
    write_blocks(d, range(140))
    pid = int(pid_in(pids))
    before, began = d.status()['pid'], time.monotonic()
    os.kill(before, signal.SIGKILL)
    # The hook keeps no descriptor of the dead daemon's: the keeper sees its death at once.
    wait_for('another daemon', lambda: d.status()['pid'] != before)
    assert time.monotonic() - began < 30
    wait_for('the end of the hook', lambda: not is_alive(pid))
    verify(d.vol('v'), range(140))
    # The pool is still low, and that is told by the next daemon.
    wait_for('its own run', lambda: len(pids.read_text().split()) == 2)
    ends_clean(bench, d)
    wait_for('the end of the other', lambda: not is_alive(int(pids.read_text().split()[1])))


def test_a_hand_over_leaves_the_hook_alone(bench):
    pids, go = bench.tmp / 'pids', bench.tmp / 'go'
    pooldir = pool_with_hook(bench, f'echo $$ >>{pids}; until [ -e {go} ]; do sleep 0.05; done; exit 3\n')
    d = bench.serve(pooldir)
    write_blocks(d, range(140))
    pid = int(pid_in(pids))
    bench.ctl('restart', d.mnt)
    assert is_alive(pid) and d.status()['hook']['running'] and d.status()['pid'] == d.proc.pid
    assert len(pids.read_text().split()) == 1, 'still one at a time'
    go.write_text('')
    wait_for('its end', lambda: not os.path.exists(f'/proc/{pid}'))  # and nobody's zombie
    wait_for('the log', lambda: 'ended with exit status 3' in d.log_text())
    ends_clean(bench, d)


@pytest.mark.quick
@pytest.mark.parametrize('value', ['hook', '/nowhere/hook', '/etc/passwd', '/tmp'])
def test_a_hook_that_cannot_be_is_refused_at_the_start(bench, value):
    pooldir = bench.format('pool', '16M')
    (pooldir / 'pool.conf').write_text(f'[pool]\non_low_space = {value}\n')
    mnt = bench.tmp / 'mnt'
    mnt.mkdir()
    p = run(THINPOOLD, '-f', pooldir, mnt, check=False)
    assert p.returncode == 1 and p.stdout.count('\n') == 1
    assert f'pool.conf:2: "{value}" is no value for on_low_space' in p.stdout and 'absolute path' in p.stdout
    assert not os.path.ismount(mnt)


@pytest.mark.quick
def test_a_hook_comes_and_goes_with_sighup(bench):
    out = bench.tmp / 'out'
    pooldir = bench.format('pool', '16M')
    configure(pooldir, low_water_data='50%')
    d = bench.serve(pooldir)
    write_blocks(d, range(140))
    assert d.status()['data_is_low'] and d.status()['hook']['runs'] == 0
    configure(pooldir, low_water_data='20%', on_low_space=hook(bench, f'echo "$@" >>{out}\n'))
    d.proc.send_signal(signal.SIGHUP)
    wait_for('the new settings', lambda: 'on_low_space = ' in d.log_text())
    write_blocks(d, range(140, 240))
    wait_for('the hook', lambda: out.exists() and out.read_text() == 'data low\n')
    ends_clean(bench, d)
