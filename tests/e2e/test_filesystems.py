# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job: a file system on a loop device on a thin volume, with snapshots, trim and a remount."""
import hashlib
import os
import random

import pytest

from conftest import GIB, KIB, MIB, run, wait_for


def make_tree(root, seed, files=120):
    """Files of many sizes; returns {relative path: sha256}."""
    rng = random.Random(seed)
    sums = {}
    for i in range(files):
        path = root / f'd{i % 7}' / f'f{i}'
        path.parent.mkdir(exist_ok=True)
        data = rng.randbytes(rng.choice([0, 1, 100, 4096, 70_000, 300_000, 1 << 20]))
        path.write_bytes(data)
        sums[str(path.relative_to(root))] = hashlib.sha256(data).hexdigest()
    return sums


def tree_sums(root):
    sums = {}
    for where, _, names in os.walk(root):
        for name in names:
            path = os.path.join(where, name)
            with open(path, 'rb') as f:
                sums[os.path.relpath(path, root)] = hashlib.sha256(f.read()).hexdigest()
    return sums


def sync_fs(path):
    run('sync', '-f', path)


MKFS = {'ext4': ('mkfs.ext4', '-q', '-E', 'nodiscard'), 'xfs': ('mkfs.xfs', '-q', '-K')}
# An xfs snapshot carries its origin's UUID.
SNAP_MOUNT = {'ext4': (), 'xfs': ('-o', 'nouuid')}
FSCK = {'ext4': ('e2fsck', '-fn'), 'xfs': ('xfs_repair', '-n')}


@pytest.mark.timeout(600)
@pytest.mark.parametrize('fstype,block_size,direct', [
    pytest.param('ext4', '64K', True, marks=pytest.mark.quick),
    ('ext4', '64K', False), ('ext4', '192K', True), ('ext4', '1M', True),
    ('xfs', '64K', True), ('xfs', '192K', False), ('xfs', '1M', True)])
def test_file_system_lives_on_a_volume(bench, seed, fstype, block_size, direct):
    pooldir = bench.format('pool', '2G', '--block-size', block_size)
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('root'), '--size', '10G')
    assert os.stat(d.vol('root')).st_size == 10 * GIB

    lo = bench.loop(d.vol('root'), direct=direct)
    run(*MKFS[fstype], lo.dev)
    root = bench.mount(lo.dev, 'root')
    (root / 'tree').mkdir()
    old = make_tree(root / 'tree', seed)
    sync_fs(root)
    # A crash-consistent cut: the file system's own log makes it whole when it is mounted.
    run('fsfreeze', '-f', root)
    try:
        bench.ctl('snapshot', d.vol('root'), d.vol('snap'))
    finally:
        run('fsfreeze', '-u', root)

    # Both sides change, and neither sees the other.
    lo2 = bench.loop(d.vol('snap'), direct=direct)
    snap = bench.mount(lo2.dev, 'snap', *SNAP_MOUNT[fstype])
    assert tree_sums(snap / 'tree') == old
    (root / 'tree/d0/f0').write_bytes(b'origin only')
    (root / 'more').mkdir()
    more = make_tree(root / 'more', seed + 1, 60)
    (snap / 'tree/d1/f1').write_bytes(b'snapshot only')
    sync_fs(root)
    sync_fs(snap)
    want_root = dict(old, **{'d0/f0': hashlib.sha256(b'origin only').hexdigest()})
    want_snap = dict(old, **{'d1/f1': hashlib.sha256(b'snapshot only').hexdigest()})
    with open('/proc/sys/vm/drop_caches', 'w') as f:
        f.write('3\n')
    assert tree_sums(root / 'tree') == want_root
    assert tree_sums(snap / 'tree') == want_snap

    # What is deleted and trimmed comes back, to the pool and to the host.
    ballast = root / 'ballast'
    ballast.write_bytes(random.Random(seed).randbytes(64 * MIB))
    sync_fs(root)
    used = d.status()['data_used']
    held = os.stat(pooldir / 'data').st_blocks
    ballast.unlink()
    sync_fs(root)

    def trimmed():
        # Again each time: xfs frees the blocks of a deleted file in the background.
        run('fstrim', root)
        return d.status()['data_used'] <= used - 56 * MIB

    wait_for('the pool to get the space back', trimmed)
    wait_for('the host to get the space back',
             lambda: os.stat(pooldir / 'data').st_blocks * 512 <= held * 512 - 56 * MIB)

    bench.umount(snap)
    lo2.detach()
    bench.ctl('snapshot', d.vol('snap'), d.vol('kept'))
    with open(d.vol('snap'), 'r+b') as f:
        f.seek(5 * GIB)
        f.write(random.Random(seed + 2).randbytes(8 * MIB))
        os.fsync(f.fileno())
    used = d.status()['data_used']
    bench.ctl('delete', d.vol('snap'))
    wait_for('the deleted volume to free its blocks',
             lambda: d.status()['data_used'] <= used - 7 * MIB)

    bench.umount(root)
    lo.detach()
    d.stop()
    bench.check_clean(pooldir)

    d = bench.serve(pooldir)
    for name, want, opts in (('root', want_root, ()), ('kept', want_snap, SNAP_MOUNT[fstype])):
        lo = bench.loop(d.vol(name), direct=direct)
        run(*FSCK[fstype], lo.dev)
        where = bench.mount(lo.dev, name, *opts)
        assert tree_sums(where / 'tree') == want
        if name == 'root':
            assert tree_sums(where / 'more') == more
        bench.umount(where)
        lo.detach()
    d.stop('SIGTERM')
    bench.check_clean(pooldir)
