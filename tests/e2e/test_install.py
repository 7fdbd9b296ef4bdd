# SPDX-License-Identifier: GPL-2.0-or-later
"""What `meson install` puts where, that it works from there, and the service unit."""
import os
import re
import shutil
import subprocess

import pytest

import conftest
from conftest import BUILD, MIB, ROOT, run

# 4.5 on the scale of 0 to 10: see systemd-analyze(1).  The rest would need a mount namespace of the
# service's own, where nobody sees its mount.
EXPOSURE_MAX = 45
MOUNT_NAMESPACE_OPTIONS = {
    'ProtectSystem', 'ProtectHome', 'PrivateTmp', 'PrivateDevices', 'PrivateMounts', 'PrivateIPC',
    'PrivateUsers', 'ProtectKernelTunables', 'ProtectKernelModules', 'ProtectKernelLogs',
    'ProtectControlGroups', 'ProtectProc', 'ProcSubset', 'ReadOnlyPaths', 'ReadWritePaths',
    'InaccessiblePaths', 'BindPaths', 'BindReadOnlyPaths', 'TemporaryFileSystem', 'RootDirectory',
    'RootImage', 'MountFlags', 'MountAPIVFS', 'ExecPaths', 'NoExecPaths', 'DynamicUser',
    'RuntimeDirectory'}


def install(where):
    run('meson', 'install', '-C', BUILD, '--no-rebuild', '--destdir', where, '--quiet')
    return sorted(str(p.relative_to(where)) for p in where.rglob('*') if p.is_file())


def one(where, pattern):
    found = list(where.rglob(pattern))
    assert len(found) == 1, (pattern, found)
    return found[0]


@pytest.mark.quick
def test_an_installed_pool_works(bench, monkeypatch):
    where = bench.tmp / 'root'
    files = install(where)
    for name in 'sbin/thinpoold', 'bin/thinpoolctl', 'thinpoold/thinpoold.conf', \
            'man8/thinpoold.8', 'man8/thinpoolctl.8', 'man5/thinpoold.conf.5', \
            'systemd/system/thinpoold@.service', 'bash-completion/completions/thinpoolctl', \
            'bash-completion/completions/thinpoold':
        assert [f for f in files if f.endswith(name)], f'{name} is not among {files}'
    monkeypatch.setattr(conftest, 'THINPOOLD', one(where, 'sbin/thinpoold'))
    monkeypatch.setattr(conftest, 'THINPOOLCTL', one(where, 'bin/thinpoolctl'))
    conf = one(where, 'thinpoold/thinpoold.conf')
    # Nothing of the build directory is needed: not a library, not a file.
    assert str(BUILD) not in run('ldd', conftest.THINPOOLD).stdout
    assert run(conftest.THINPOOLD, '--check-config', '-c', conf).stdout == \
        run(conftest.THINPOOLD, '--check-config', '-c', '/dev/null').stdout, \
        'the template holds the defaults'
    d = bench.serve(bench.format('pool', '256M'), '-c', conf)
    bench.ctl('create', d.vol('v'), '--size', '10M')
    with open(d.vol('v'), 'r+b') as f:
        f.write(b'x' * MIB)
    assert d.list()[0]['used'] == MIB
    d.stop()
    bench.check_clean(d.pooldir)


@pytest.fixture
def unit(bench):
    """The unit as it is installed, its program where it was installed to."""
    where = bench.tmp / 'root'
    install(where)
    text = one(where, 'thinpoold@.service').read_text()
    program = one(where, 'sbin/thinpoold')
    path = bench.tmp / 'thinpoold@.service'
    path.write_text(re.sub(r'^ExecStart=\S+', f'ExecStart={program}', text, flags=re.M))
    return path


@pytest.mark.quick
def test_the_unit_is_valid(unit):
    instance = unit.with_name('thinpoold@test.service')
    shutil.copy(unit, instance)
    p = run('systemd-analyze', 'verify', '--man=no', instance, check=False)
    complaints = [line for line in p.stdout.splitlines() if 'thinpoold' in line]
    assert p.returncode == 0 and not complaints, p.stdout
    text = unit.read_text()
    assert 'ExecReload=' in text and 'Type=notify' in text
    used = set(re.findall(r'^(\w+)=', text, re.M))
    assert not used & MOUNT_NAMESPACE_OPTIONS


@pytest.mark.quick
def test_the_unit_is_not_exposed(unit):
    p = run('systemd-analyze', 'security', '--offline=yes', f'--threshold={EXPOSURE_MAX}',
            '--no-pager', unit, check=False)
    assert p.returncode == 0, p.stdout[-400:]


def allowed_calls(unit):
    """The unit's SystemCallFilter, with its groups written out."""
    groups, current = {}, None
    for line in run('systemd-analyze', 'syscall-filter', '--no-pager').stdout.splitlines():
        line = re.sub('\x1b\\[[0-9;]*m', '', line)
        if line.startswith('@'):
            current = groups.setdefault(line.strip(), set())
        elif line.startswith('    ') and current is not None and not line.strip().startswith('#'):
            current.add(line.strip())
    calls = set()

    def add(name):
        if name.startswith('@'):
            for n in groups[name]:
                add(n)
        else:
            calls.add(name)

    for word in re.search(r'^SystemCallFilter=(.*)$', unit.read_text(), re.M)[1].split():
        add(word)
    return calls


@pytest.mark.skipif('san' in run('ldd', conftest.THINPOOLD).stdout,
                    reason='a sanitizer makes calls of its own')
def test_the_unit_lets_through_what_the_daemon_calls(bench, unit):
    if not shutil.which('strace'):
        pytest.fail('strace is not installed: scripts/install-deps --tests')
    pooldir = bench.format('pool', '64M')
    trace, mnt = bench.tmp / 'trace', bench.tmp / 'mnt'
    mnt.mkdir()
    p = bench.popen('strace', '-f', '-qq', '-o', trace, conftest.THINPOOLD, '-f', pooldir, mnt,
                    stderr=subprocess.DEVNULL)
    conftest.wait_for('the mount', lambda: os.path.ismount(mnt))
    bench.ctl('create', mnt / 'v', '--size', '10M')
    with open(mnt / 'v', 'r+b') as f:
        f.write(b'x' * MIB)
        os.fsync(f.fileno())
    bench.ctl('trim', mnt)
    bench.ctl('dump', mnt)
    run('umount', mnt)
    p.wait(60)
    called = set(re.findall(r'^\d+ +(\w+)\(', trace.read_text(), re.M))
    assert 'io_uring_setup' in called and 'mount' in called
    assert called - allowed_calls(unit) == set()
