# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user types: verbs, options, exit codes, JSON keys, and one clear line for each mistake."""
import json
import os
import re
import stat
import struct
import subprocess

import pytest

from conftest import (BUSY, EXISTS, FAILED, GIB, MIB, NO_DAEMON, NOT_FOUND, OK, ROOT, THINPOOLCTL,
                      THINPOOLD, USAGE, refused, run, snapshot_of, wait_for)


@pytest.mark.no_root
@pytest.mark.quick
@pytest.mark.parametrize('args', [['--help'], ['--version']])
def test_help_and_version(args):
    for program in (THINPOOLD, THINPOOLCTL):
        p = run(program, *args)
        assert 'thinpool' in p.stdout
    for verb in ('format', 'check', 'create', 'snapshot', 'delete', 'rename', 'resize', 'list', 'status',
                 'metadata-snap'):
        assert verb in run(THINPOOLCTL, '--help').stdout
        assert f'thinpoolctl {verb}' in run(THINPOOLCTL, verb, '--help').stdout


@pytest.mark.no_root
@pytest.mark.quick
def test_the_shipped_configuration_is_the_default(tmp_path):
    shipped = (ROOT / 'conf/thinpoold.conf').read_text()
    conf = tmp_path / 'on.conf'
    conf.write_text(re.sub(r'^#(\w+ =)', r'\1', shipped, flags=re.M))
    empty = tmp_path / 'empty.conf'
    empty.write_text('')
    effective = run(THINPOOLD, '-c', conf, '--check-config').stdout
    assert effective == run(THINPOOLD, '-c', empty, '--check-config').stdout
    keys = re.findall(r'^(\w+) =', effective, flags=re.M)
    assert keys == re.findall(r'^#(\w+) =', shipped, flags=re.M)
    manual = (ROOT / 'man/thinpoold.conf.5').read_text()
    for key in keys:
        assert f'.It Cm {key}\n' in manual, f'{key} is not in the manual'


@pytest.mark.no_root
@pytest.mark.quick
def test_a_bad_configuration_is_refused(tmp_path):
    conf = tmp_path / 'bad.conf'
    conf.write_text('[pool]\ncash_size = 1M\n')
    refused(run(THINPOOLD, '-c', conf, '--check-config', check=False), FAILED, 'bad.conf:2', 'cash_size')
    refused(run(THINPOOLD, '-c', tmp_path / 'none', '--check-config', check=False), FAILED, 'no such file')


@pytest.mark.quick
def test_verbs_and_their_exit_codes(bench):
    ctl = bench.ctl
    pooldir = bench.format('pool', '1G')
    d = bench.serve(pooldir)
    v, w = d.vol('v'), d.vol('w')

    ctl('create', v, '--size', '100M')
    assert os.stat(v).st_size == 100 * MIB
    refused(ctl('create', v, '--size', '1M', check=False), EXISTS, 'v')
    refused(ctl('create', d.vol('.hidden'), '--size', '1M', check=False), FAILED, '.hidden')
    refused(ctl('create', d.vol('x' * 256), '--size', '1M', check=False), FAILED)
    refused(ctl('create', d.vol('huge'), '--size', '1000000Z', check=False), USAGE, '1000000Z')
    refused(ctl('create', d.vol('nosize'), check=False), USAGE, '--size')

    ctl('snapshot', v, w, '--read-only')
    refused(ctl('snapshot', v, w, check=False), EXISTS)
    refused(ctl('snapshot', d.vol('none'), d.vol('s'), check=False), NOT_FOUND, 'none')
    with pytest.raises(OSError):
        open(w, 'r+b')
    listed = {x['name']: x for x in d.list()}
    assert set(listed) == {'v', 'w'}
    assert {'name', 'id', 'size', 'used', 'origin', 'read_only'} <= set(listed['w'])
    assert listed['w']['origin'] == 'v' and listed['w']['read_only'] is True
    assert listed['v']['origin'] is None and listed['v']['read_only'] is False
    assert listed['v']['size'] == 100 * MIB and listed['v']['used'] == 0

    ctl('rename', v, d.vol('v2'))
    refused(ctl('rename', v, d.vol('v3'), check=False), NOT_FOUND)
    refused(ctl('rename', d.vol('v2'), w, check=False), EXISTS)

    ctl('resize', d.vol('v2'), '200M')
    assert os.stat(d.vol('v2')).st_size == 200 * MIB
    refused(ctl('resize', d.vol('v2'), '50M', check=False), FAILED, '--shrink')
    ctl('resize', d.vol('v2'), '50M', '--shrink')
    assert os.stat(d.vol('v2')).st_size == 50 * MIB

    fd = os.open(d.vol('v2'), os.O_RDWR)
    refused(ctl('delete', d.vol('v2'), check=False), BUSY)
    os.close(fd)
    # The close reaches the daemon a moment later.
    wait_for('the delete', lambda: ctl('delete', d.vol('v2'), check=False).returncode == OK)
    refused(ctl('delete', d.vol('v2'), check=False), NOT_FOUND)

    s = d.status()
    assert {'mode', 'pid', 'data_used', 'data_total', 'metadata_used', 'metadata_total',
            'transaction_id', 'needs_check'} <= set(s)
    assert s['mode'] == 'rw' and s['pid'] == d.proc.pid and s['needs_check'] is False
    assert s['data_total'] == GIB
    assert json.loads((d.mnt / '.thinpool/status.json').read_text())['mode'] == 'rw'
    assert 'rw' in (d.mnt / '.thinpool/status').read_text()
    assert 'NAME' in ctl('list', d.mnt).stdout and 'w' in ctl('list', d.mnt).stdout
    assert 'rw' in ctl('status', d.mnt).stdout

    refused(ctl('list', bench.tmp, check=False), NO_DAEMON)
    refused(ctl('list', bench.tmp / 'nowhere', check=False), NOT_FOUND)
    refused(ctl('frobnicate', check=False), USAGE, 'frobnicate')
    refused(ctl('list', check=False), USAGE)
    refused(ctl('list', d.mnt, d.mnt, check=False), USAGE)

    socket = os.getxattr(d.mnt, 'user.thinpool.socket').decode()
    assert stat.S_IMODE(os.stat(socket).st_mode) == 0o600
    d.stop()
    assert not os.path.exists(socket)
    bench.check_clean(pooldir)


@pytest.mark.quick
def test_format_refuses_what_it_must(bench):
    ctl = bench.ctl
    pooldir = bench.format('pool', '1G')
    before = snapshot_of(pooldir)
    refused(ctl('format', pooldir, '--size', '1G', check=False), EXISTS, '--force')
    assert snapshot_of(pooldir) == before
    ctl('format', pooldir, '--size', '2G', '--force')
    bench.check_clean(pooldir)

    new = bench.tmp / 'new'
    for args, code, word in (
            ((), USAGE, '--size'), (('--size', '0'), USAGE, '--size'), (('--size', '1K'), USAGE, 'too small'),
            (('--size', '-1'), USAGE, '-1'), (('--size', 'lots'), USAGE, 'lots'),
            (('--size', '1G', '--block-size', '100K'), USAGE, '64K'),
            (('--size', '9G', '--block-size', '2G'), USAGE, '64K'),
            (('--size', '1G', '--block-size', '0'), USAGE, '--block-size'),
            (('--size', '1G', '--metadata-size', '4K'), USAGE, '--metadata-size'),
            (('--size', '1G', '--data', bench.tmp / 'x', '--metadata', bench.tmp / 'x'), USAGE, 'same')):
        refused(ctl('format', new, *args, check=False), code, word)
        assert not new.exists(), args
        assert not (bench.tmp / 'x').exists(), args


@pytest.mark.quick
def test_check_tells_damage(bench):
    pooldir = bench.format('pool', '1G')
    bench.ctl('check', pooldir)
    with open(pooldir / 'metadata', 'r+b') as f:
        f.seek(320)  # data_mapping_root
        root, = struct.unpack('<Q', f.read(8))
        f.seek(root * 4096 + 100)
        byte = f.read(1)
        f.seek(root * 4096 + 100)
        f.write(bytes([byte[0] ^ 0xff]))
    p = bench.ctl('check', pooldir, check=False)
    assert p.returncode == FAILED and 'damage: ' in p.stdout and str(root) in p.stdout


@pytest.mark.quick
def test_what_cannot_be_served_is_refused_in_one_line(bench):
    pooldir = bench.format('pool', '1G')
    mnt = bench.tmp / 'mnt'
    mnt.mkdir()

    def refuse(*args, word):
        refused(run(THINPOOLD, *args, check=False), FAILED, word)
        assert not os.path.ismount(mnt)

    for foreground in ((), ('-f',)):
        refuse(*foreground, bench.tmp / 'none', mnt, word='none')
        refuse(*foreground, pooldir, bench.tmp / 'none', word='none')
        refuse(*foreground, pooldir, pooldir / 'data', word='data')
        refuse(*foreground, pooldir, pooldir, word='empty')
    empty = bench.tmp / 'empty'
    empty.mkdir()
    refuse('-f', empty, mnt, word='metadata')
    for name in ('metadata', 'data'):
        with open(empty / name, 'wb') as f:
            f.truncate(64 * MIB)
    refuse('-f', empty, mnt, word='format')
    assert not any((empty / 'metadata').read_bytes())
    with open(empty / 'metadata', 'r+b') as f:
        f.write(os.urandom(8192))
    sums = snapshot_of(empty)
    refuse('-f', empty, mnt, word='metadata')
    assert snapshot_of(empty) == sums
    os.truncate(pooldir / 'data', 100 * MIB)
    sums = snapshot_of(pooldir)
    refuse('-f', pooldir, mnt, word='data')
    assert snapshot_of(pooldir) == sums
    assert run(THINPOOLD, '-f', pooldir, check=False).returncode == USAGE


@pytest.mark.quick
def test_it_goes_to_the_background_when_the_mount_is_ready(bench):
    pooldir = bench.format('pool', '1G')
    mnt = bench.tmp / 'mnt'
    mnt.mkdir()
    run(THINPOOLD, pooldir, mnt)
    assert os.path.ismount(mnt)
    pid = json.loads(run(THINPOOLCTL, 'status', mnt, '--json').stdout)['pid']
    try:
        bench.ctl('create', mnt / 'v', '--size', '1G')
        run('umount', mnt)
        wait_for('the daemon to end', lambda: bench.ctl('check', pooldir, check=False).returncode != BUSY)
    finally:
        if os.path.ismount(mnt):
            run('umount', '-l', mnt)
            os.kill(pid, 15)
    bench.check_clean(pooldir)


def test_the_service_manager_is_told(bench):
    import socket
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(str(bench.tmp / 'notify'))
    s.settimeout(60)
    pooldir = bench.format('pool', '1G')
    mnt = bench.tmp / 'mnt'
    mnt.mkdir()
    p = bench.popen(THINPOOLD, '-f', pooldir, mnt,
                    env=dict(os.environ, NOTIFY_SOCKET=str(bench.tmp / 'notify')),
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    def told():  # what is kept for another daemon is told of, too: see test_handover.py
        return next(m for m in iter(lambda: s.recv(4096), None) if not m.startswith(b'FDSTORE'))

    try:
        assert told().startswith(b'READY=1')
        assert os.path.ismount(mnt)
        p.terminate()
        assert told().startswith(b'STOPPING=1')
        assert p.wait(60) == 0
    finally:
        s.close()
        if os.path.ismount(mnt):
            run('umount', '-l', mnt)
