# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools that the real kernel wrote (tests/fixtures) are served as the kernel served them."""
import os
import subprocess

import pytest

from conftest import FIXTURES, MIB, manifests, mapped_sum_of, run, sound, sum_of, unpack

ALL = manifests()
WRITABLE = [m for m in ALL if not m['superblock']['flags']]


def by_name(ms):
    return {'argvalues': ms, 'ids': [m['name'] for m in ms]}


def assert_sums(d, manifest, but=()):
    for v in manifest['volumes']:
        path, size = d.vol(f'thin-{v["id"]}'), v['sectors'] * 512
        if path.name in but:
            continue
        if 'sha256' in v:
            assert sum_of(path, size) == v['sha256'], path.name
        if 'mapped_sha256' in v:
            assert mapped_sum_of(path) == v['mapped_sha256'], path.name


def assert_untouched(pooldir, manifest):
    for name, image in (('metadata', 'meta.img'), ('data', 'data.img')):
        assert os.path.getsize(pooldir / name) == manifest['images'][image]['bytes']
        assert sum_of(pooldir / name) == manifest['images'][image]['sha256'], name


@pytest.mark.parametrize('manifest', **by_name(ALL))
def test_served_read_only_to_the_byte(bench, manifest):
    pooldir = unpack(bench, manifest)
    d = bench.serve(pooldir, '--read-only')
    assert {v['name'] for v in d.list()} == {f'thin-{v["id"]}' for v in manifest['volumes']}
    assert d.status()['mode'] == 'ro'
    assert d.status()['transaction_id'] == manifest['superblock']['transaction']
    assert_sums(d, manifest)
    for v in manifest['volumes'][:3]:
        with pytest.raises(OSError):
            open(d.vol(f'thin-{v["id"]}'), 'r+b')
    d.stop()
    assert_untouched(pooldir, manifest)


def first_data(path):
    with open(path, 'rb') as f:
        return os.lseek(f.fileno(), 0, os.SEEK_DATA)


@pytest.mark.parametrize('manifest', **by_name(WRITABLE))
def test_a_copy_is_worked_on(bench, manifest):
    pooldir = unpack(bench, manifest)
    d = bench.serve(pooldir)
    block = d.status()['block_size']
    big = max((v for v in manifest['volumes'] if os.path.getsize(d.vol(f'thin-{v["id"]}'))),
              key=lambda v: v['sectors'])
    v, snap = d.vol(f'thin-{big["id"]}'), d.vol('thin-9999')
    size = big['sectors'] * 512
    at = first_data(v)

    bench.ctl('snapshot', v, snap)
    assert sum_of(snap, size) == big['sha256']
    content = bytearray(snap.read_bytes())
    with open(v, 'r+b', buffering=0) as f:
        # Room first: one of these pools is full.  What the snapshot shares is not freed by it.
        run('fallocate', '-p', '-o', at, '-l', block, snap)
        bench.ctl('delete', snap)
        run('fallocate', '-p', '-o', at, '-l', block, v)
        content[at:at + block] = bytes(len(content[at:at + block]))
        # What was freed cannot be had before a commit, which is no reason to say ENOSPC.
        text = os.urandom(3000)
        f.seek(at + 500)
        f.write(text)
        content[at + 500:at + 3500] = text
        os.fsync(f.fileno())
        bench.ctl('snapshot', v, snap)
    if manifest['name'] != 'nospace':
        last = len(content) - 5000
        with open(v, 'r+b', buffering=0) as f:
            f.seek(last)
            f.write(b'x' * 5000)
    assert snap.read_bytes() == content
    assert_sums(d, manifest, but=(v.name,))
    d.stop()
    sound(bench, pooldir)

    d = bench.serve(pooldir)
    assert snap.read_bytes() == content
    bench.ctl('delete', snap)
    assert_sums(d, manifest, but=(v.name,))
    d.stop()
    sound(bench, pooldir)


def test_a_metadata_snapshot_of_the_kernel_is_kept_and_released(bench):
    manifest = next(m for m in ALL if m['name'] == 'metasnap')
    pooldir = unpack(bench, manifest)
    held = run('thin_dump', '-m', pooldir / 'metadata').stdout
    d = bench.serve(pooldir)
    assert d.status()['held_root'] > 0
    v = d.vol('thin-1')
    with open(v, 'r+b') as f:
        f.write(os.urandom(MIB))
        os.fsync(f.fileno())
    bench.ctl('delete', d.vol('thin-3'))
    assert run('thin_dump', '-m', pooldir / 'metadata').stdout == held
    d.stop()
    sound(bench, pooldir)
    d = bench.serve(pooldir)
    bench.ctl('metadata-snap', 'release', d.mnt)
    d.stop()
    sound(bench, pooldir)


@pytest.mark.parametrize('name', ['needscheck', 'metafull'])
def test_needs_check_is_served_read_only_and_says_so(bench, name):
    manifest = next(m for m in ALL if m['name'] == name)
    pooldir = unpack(bench, manifest)
    d = bench.serve(pooldir)
    s = d.status()
    assert s['mode'] == 'ro' and s['needs_check'] is True and 'check' in s['reason']
    assert 'NEEDS_CHECK' in d.log_text() and 'read-only' in d.log_text()
    assert 'needs check' in bench.ctl('status', d.mnt).stdout
    assert_sums(d, manifest)
    path = d.vol(f'thin-{manifest["volumes"][0]["id"]}')
    p = subprocess.run(['dd', 'if=/dev/zero', f'of={path}', 'bs=4k', 'count=1', 'conv=notrunc,fsync'],
                       capture_output=True)
    assert p.returncode != 0
    assert bench.ctl('snapshot', path, d.vol('thin-77'), check=False).returncode == 1
    assert bench.ctl('metadata-snap', 'reserve', d.mnt, check=False).returncode == 1
    d.stop()
    assert_untouched(pooldir, manifest)


def test_a_pool_that_was_checked_is_writable_again(bench):
    manifest = next(m for m in ALL if m['name'] == 'needscheck')
    pooldir = unpack(bench, manifest)
    run('thin_check', '--clear-needs-check-flag', pooldir / 'metadata')
    d = bench.serve(pooldir)
    assert d.status()['mode'] == 'rw' and 'NEEDS_CHECK' not in d.log_text()
    assert_sums(d, manifest)
    bench.ctl('snapshot', d.vol('thin-1'), d.vol('thin-2'))
    d.stop()
    sound(bench, pooldir)


def test_the_fixtures_are_all_there():
    assert len(list(FIXTURES.glob('*.tar.zst'))) == len(ALL) >= 10
