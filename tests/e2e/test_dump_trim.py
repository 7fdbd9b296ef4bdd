# SPDX-License-Identifier: GPL-2.0-or-later
"""thinpoolctl dump, trim, and check on a terminal."""
import json
import os
import pty
import re
import socket
import subprocess
import threading

import pytest

from conftest import KIB, MIB, ROOT, THINPOOLCTL, run, wait_for

FIXTURES = ROOT / 'tests/fixtures'


def unpack(bench, name):
    """A pool directory with a fixture's images in it."""
    where = bench.tmp / name
    where.mkdir()
    run('tar', '--zstd', '-xf', FIXTURES / f'{name}.tar.zst', '-C', where)
    os.rename(where / 'meta.img', where / 'metadata')
    os.rename(where / 'data.img', where / 'data')
    return where


def thin_dump(pooldir):
    return run('thin_dump', pooldir / 'metadata').stdout


@pytest.mark.parametrize('name', sorted(p.name[:-len('.tar.zst')]
                                        for p in FIXTURES.glob('*.tar.zst')))
def test_a_dump_is_that_of_thin_dump(bench, name):
    pooldir = unpack(bench, name)
    assert bench.ctl('dump', pooldir).stdout == thin_dump(pooldir)


@pytest.mark.quick
def test_a_mounted_pool_is_dumped_by_its_daemon(bench):
    d = bench.serve(bench.format('pool', '1G'))
    bench.ctl('create', d.vol('v'), '--size', '100M')
    with open(d.vol('v'), 'r+b') as f:
        for i in range(0, 300, 3):
            os.pwrite(f.fileno(), b'x', i * 64 * KIB)
    bench.ctl('snapshot', d.vol('v'), d.vol('s'))
    # Not committed by anybody yet.
    with open(d.vol('v'), 'r+b') as f:
        os.pwrite(f.fileno(), b'y', 7 * 64 * KIB)
        online = bench.ctl('dump', d.mnt).stdout
    assert online.count('<device ') == 3  # and the catalog
    assert bench.ctl('dump', d.pooldir, check=False).returncode == 5, 'in use'
    d.stop()
    assert online == thin_dump(d.pooldir) == bench.ctl('dump', d.pooldir).stdout
    # thin_restore reads it.
    xml = bench.tmp / 'dump.xml'
    xml.write_text(online)
    copy = bench.tmp / 'copy'
    with open(copy, 'wb') as f:
        f.truncate(16 * MIB)
    run('thin_restore', '-i', xml, '-o', copy)
    assert run('thin_dump', copy).stdout == online


def test_dumps_of_a_busy_pool_are_each_of_one_moment(bench):
    """Writers go on; thin_check finds every dump consistent."""
    d = bench.serve(bench.format('pool', '1G'))
    stop = threading.Event()

    def write(name):
        fd = os.open(d.vol(name), os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 200 * MIB)
        i = 0
        while not stop.is_set():
            os.pwrite(fd, b'z', i * 7919 % 3200 * 64 * KIB)
            i += 1
        os.close(fd)

    threads = [threading.Thread(target=write, args=(f'v{i}',)) for i in range(3)]
    for t in threads:
        t.start()
    try:
        wait_for('the writers', lambda: len(d.list()) == 3)
        for i in range(10):
            text = bench.ctl('dump', d.mnt).stdout
            xml, copy = bench.tmp / 'dump.xml', bench.tmp / 'copy'
            xml.write_text(text)
            with open(copy, 'wb') as f:
                f.truncate(16 * MIB)
            run('thin_restore', '-i', xml, '-o', copy)
            run('thin_check', copy)
            # What each device says it has is what is listed of it.
            for device in re.findall(r'<device .*?</device>', text, re.S):
                said = int(re.search(r'mapped_blocks="(\d+)"', device)[1])
                found = len(re.findall('<single_mapping', device)) + sum(
                    map(int, re.findall(r'length="(\d+)"', device)))
                assert said == found
    finally:
        stop.set()
        for t in threads:
            t.join()
    d.stop()
    bench.check_clean(d.pooldir)


def write_until(stop, path):
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 200 * MIB)
    i = 0
    while not stop.is_set():
        os.pwrite(fd, b'z', i * 7919 % 3200 * 64 * KIB)
        if i % 100 == 99:
            run('fallocate', '-p', '-o', 0, '-l', 200 * MIB, path)
        i += 1
    os.close(fd)


def test_a_mounted_pool_is_checked_while_it_is_written_to(bench):
    """Metadata so small that blocks are used again and again meanwhile."""
    d = bench.serve(bench.format('pool', '1G', '--metadata-size', '2M'))
    stop = threading.Event()
    writer = threading.Thread(target=write_until, args=(stop, d.vol('v')))
    writer.start()
    try:
        for _ in range(20):
            out = bench.ctl('check', d.mnt).stdout
            assert f'{d.mnt}: clean, ' in out and 'damage' not in out
            assert bench.ctl('dump', d.mnt).stdout.endswith('</superblock>\n')
    finally:
        stop.set()
        writer.join()
    p = bench.ctl('check', '--clear-needs-check', d.mnt, check=False)
    assert p.returncode == 5 and 'is mounted' in p.stdout
    d.stop()
    bench.check_clean(d.pooldir)


def call(s, method):
    s.sendall(json.dumps({'method': f'org.thinpoold.{method}'}).encode() + b'\0')
    text = b''
    while not text.endswith(b'\0'):
        some = s.recv(65536)
        assert some, 'the daemon hung up'
        text += some
    return json.loads(text[:-1])


def connect(d):
    s = socket.socket(socket.AF_UNIX)
    s.connect(os.getxattr(d.mnt, 'user.thinpool.socket').decode())
    return s


@pytest.mark.quick
def test_a_pin_is_given_back_by_who_goes_away_and_lost_when_space_is_short(bench):
    pooldir = bench.format('pool', '4G', '--metadata-size', '2M')
    (pooldir / 'pool.conf').write_text('[pool]\nautoextend_threshold = 100%\n')
    d = bench.serve(pooldir)
    run('truncate', '-s', '3G', d.vol('v'))

    def free():
        run('sync', d.vol('v'))
        s = d.status()
        return s['metadata_total'] - s['metadata_used']

    def change():
        run('fallocate', '-l', '1G', d.vol('v'))
        run('sync', d.vol('v'))
        run('fallocate', '-p', '-o', 0, '-l', '1G', d.vol('v'))

    change()
    idle = free()
    with connect(d) as s:
        assert call(s, 'Unpin')['error'] == 'org.thinpoold.Failed'
        run('fallocate', '-l', '1G', d.vol('v'))
        run('sync', d.vol('v'))
        assert len(call(s, 'Pin')['parameters']['superblock']) == 8192
        assert call(s, 'Pin')['error'] == 'org.thinpoold.Failed'
        run('fallocate', '-p', '-o', 0, '-l', '1G', d.vol('v'))
        assert free() < idle - 50 * 4096, 'what was pinned is not free'
    wait_for('the pin to go', lambda: free() > idle - 50 * 4096)

    with connect(d) as s:
        run('fallocate', '-l', '1G', d.vol('v'))
        call(s, 'Pin')
        run('fallocate', '-p', '-o', 0, '-l', '1G', d.vol('v'))
        run('fallocate', '-l', '3G', d.vol('v'))
        for i in range(200):
            os.link(d.vol('v'), d.vol(f's{i}'))
            with open(d.vol('v'), 'r+b') as f:
                for at in range(0, 3 << 30, 16 * MIB):
                    os.pwrite(f.fileno(), b'x', at)
            if 'begin anew' in d.log_text():
                break
            assert d.status()['mode'] == 'rw', 'out of space in spite of what was pinned'
        else:
            pytest.fail('the pin was never in the way')
        assert call(s, 'Unpin')['error'] == 'org.thinpoold.Busy'
    d.stop()
    bench.check_clean(d.pooldir)


def allocated(path):
    return os.stat(path).st_blocks * 512


@pytest.mark.quick
def test_trim_gives_free_space_back_to_the_host(bench):
    pooldir = bench.format('pool', '256M')
    (pooldir / 'pool.conf').write_text('[pool]\ndiscard = no_passdown\n')
    d = bench.serve(pooldir)
    for name in 'keep', 'drop':
        bench.ctl('create', d.vol(name), '--size', '64M')
        with open(d.vol(name), 'r+b') as f:
            f.write(os.urandom(32 * MIB))
            f.flush()
            os.fsync(f.fileno())
    kept = (d.vol('keep')).read_bytes()
    bench.ctl('delete', d.vol('drop'))
    wait_for('the space of the deleted volume', lambda: d.status()['data_used'] < 40 * MIB)
    assert allocated(pooldir / 'data') > 64 * MIB, 'no_passdown: the host has not got it back'
    out = bench.ctl('trim', d.mnt).stdout
    free = d.status()['data_total'] - d.status()['data_used']
    assert f'({free} bytes) trimmed' in out
    assert allocated(pooldir / 'data') < 36 * MIB
    assert d.vol('keep').read_bytes() == kept
    assert bench.ctl('trim', d.mnt, '--json').stdout.split() == ['{', '"bytes":', str(free), '}']
    # All of it can be had again.
    with open(d.vol('keep'), 'r+b') as f:
        f.truncate(200 * MIB)
        f.write(b'x' * (200 * MIB))
        f.flush()
        os.fsync(f.fileno())
    d.stop()
    bench.check_clean(pooldir)


def test_trims_under_writers_take_nothing_that_is_used(bench):
    d = bench.serve(bench.format('pool', '1G'))
    stop = threading.Event()
    failures = []

    def write(name, byte):
        fd = os.open(d.vol(name), os.O_RDWR | os.O_CREAT)
        block = bytes([byte]) * 64 * KIB
        while not stop.is_set():
            os.ftruncate(fd, 0)
            for i in range(200):
                os.pwrite(fd, block, i * 64 * KIB)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for i in range(200):
                if os.pread(fd, 64 * KIB, i * 64 * KIB) != block:
                    failures.append((name, i))
                    return
        os.close(fd)

    threads = [threading.Thread(target=write, args=(f'v{i}', 65 + i)) for i in range(3)]
    for t in threads:
        t.start()
    try:
        for _ in range(20):
            bench.ctl('trim', d.mnt)
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert not failures
    d.stop()
    bench.check_clean(d.pooldir)


def test_a_pool_that_is_not_written_to_is_not_trimmed(bench):
    d = bench.serve(bench.format('pool', '256M'), '--read-only')
    p = bench.ctl('trim', d.mnt, check=False)
    assert p.returncode == 1 and 'read-only' in p.stdout
    assert bench.ctl('dump', d.mnt).stdout.count('<device ') == 1
    d.stop()


def on_terminal(*args):
    """(exit code, everything that it wrote)"""
    leader, follower = pty.openpty()
    p = subprocess.Popen([str(a) for a in args], stdout=follower, stderr=follower, stdin=follower)
    os.close(follower)
    out = b''
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break  # the other end is closed
        if not piece:
            break
        out += piece
    os.close(leader)
    return p.wait(), out.decode()


def test_check_shows_progress_on_a_terminal_only(bench):
    pooldir = unpack(bench, 'metafull')
    code, out = on_terminal(THINPOOLCTL, 'check', pooldir)
    assert 'checking: ' in out and '%' in out
    assert code == bench.ctl('check', pooldir, check=False).returncode
    assert 'checking' not in bench.ctl('check', pooldir, check=False).stdout
