# SPDX-License-Identifier: GPL-2.0-or-later
"""An ordinary user: a pool of plain files, fusermount3, no loop device, no root."""
import json
import os
import shutil

import pytest

from conftest import THINPOOLCTL, THINPOOLD, run, wait_for

USER = 65534  # nobody


@pytest.fixture
def user(bench):
    """Runs commands as somebody else, with programs and directories that one may use."""
    os.chmod(bench.tmp, 0o755)
    home, programs = bench.tmp / 'home', bench.tmp / 'bin'
    home.mkdir()
    programs.mkdir()
    os.chown(home, USER, USER)
    for p in THINPOOLD, THINPOOLCTL:  # the build directory may be closed to others
        shutil.copy(p, programs)

    class User:
        path = home
        environment = {'PATH': '/usr/bin:/bin', 'HOME': str(home), 'LANG': 'C.UTF-8',
                       **{k: v for k, v in os.environ.items() if k.endswith('SAN_OPTIONS')}}

        def command(self, *args):
            words = [str(programs / a) if a in ('thinpoold', 'thinpoolctl') else str(a)
                     for a in args]
            return ['setpriv', f'--reuid={USER}', f'--regid={USER}', '--clear-groups',
                    '--inh-caps=-all', '--',
                    *words]

        def run(self, *args, **kw):
            return run(*self.command(*args), cwd=home, env=self.environment, **kw)

    # udev's rules make it so; a container may have a bare node.
    mode = os.stat('/dev/fuse').st_mode & 0o777
    os.chmod('/dev/fuse', 0o666)
    yield User()
    os.chmod('/dev/fuse', mode)
    if os.path.ismount(home / 'mnt'):
        run('umount', '-l', home / 'mnt', check=False)
    shutil.rmtree(f'/tmp/thinpoold-{USER}', ignore_errors=True)


@pytest.mark.quick
@pytest.mark.parametrize('runtime_dir', [False, True])
def test_a_whole_life_without_root(bench, user, runtime_dir):
    if runtime_dir:
        (user.path / 'run').mkdir(mode=0o700)
        os.chown(user.path / 'run', USER, USER)
        user.environment = {**user.environment, 'XDG_RUNTIME_DIR': str(user.path / 'run')}
    user.run('thinpoolctl', 'format', 'pool', '--size', '256M')
    user.run('mkdir', 'mnt')
    user.run('thinpoold', 'pool', 'mnt')
    mnt = user.path / 'mnt'
    status = json.loads(user.run('thinpoolctl', 'status', 'mnt', '--json').stdout)
    assert status['mode'] == 'rw'
    socket = user.run('getfattr', '-n', 'user.thinpool.socket', '--only-values', 'mnt').stdout
    assert socket.startswith(str(user.path / 'run/thinpoold/') if runtime_dir
                             else f'/tmp/thinpoold-{USER}/')
    assert os.stat(socket).st_mode & 0o777 == 0o600

    user.run('thinpoolctl', 'create', 'mnt/v', '--size', '64M')
    user.run('dd', 'if=/dev/urandom', 'of=mnt/v', 'bs=1M', 'count=8', 'conv=notrunc,fsync')
    want = user.run('sha256sum', 'mnt/v').stdout.split()[0]
    user.run('ln', 'mnt/v', 'mnt/snap')
    user.run('dd', 'if=/dev/zero', 'of=mnt/v', 'bs=1M', 'count=4', 'conv=notrunc,fsync')
    assert user.run('sha256sum', 'mnt/snap').stdout.split()[0] == want
    user.run('setfattr', '-n', 'user.thinpool.read_only', '-v', '1', 'mnt/snap')
    user.run('fallocate', '-p', '-o', '0', '-l', '4M', 'mnt/v')
    user.run('thinpoolctl', 'delete', 'mnt/v')
    assert 'thinpoold_info' in user.run('cat', 'mnt/.thinpool/metrics').stdout
    assert [v['name'] for v in json.loads(user.run('thinpoolctl', 'list', 'mnt', '--json').stdout)
            ] == ['snap']
    # Nobody else may look in, not even root, unless allow_other says so.
    with pytest.raises(PermissionError):
        os.listdir(mnt)

    user.run('fusermount3', '-u', 'mnt')
    wait_for('the pool to be free', lambda: user.run(
        'thinpoolctl', 'check', 'pool', check=False).returncode == 0)
    assert not os.path.exists(socket)
    user.run('thinpoold', '--read-only', 'pool', 'mnt')
    assert user.run('sha256sum', 'mnt/snap').stdout.split()[0] == want
    user.run('fusermount3', '-u', 'mnt')
    wait_for('the pool to be free', lambda: user.run(
        'thinpoolctl', 'check', 'pool', check=False).returncode == 0)
    bench.check_clean(user.path / 'pool')


@pytest.mark.quick
def test_what_an_ordinary_user_may_not(bench, user):
    pooldir = bench.format('pool', '256M')
    os.chmod(pooldir / 'metadata', 0o600)
    user.run('mkdir', 'mnt')
    p = user.run('thinpoold', '-f', pooldir, 'mnt', check=False)
    assert p.returncode == 1 and 'metadata' in p.stdout and 'permission denied' in p.stdout.lower()
    p = user.run('thinpoolctl', 'format', pooldir / 'new', '--size', '64M', check=False)
    assert p.returncode == 1 and 'ermission denied' in p.stdout
    # The socket of root's daemon is root's.
    d = bench.serve(pooldir)
    p = user.run('thinpoolctl', 'status', d.mnt, check=False)
    assert p.returncode == 1 and 'ermission denied' in p.stdout
    d.stop()
