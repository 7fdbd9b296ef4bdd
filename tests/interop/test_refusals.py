# SPDX-License-Identifier: GPL-2.0-or-later
"""What no pool of this format can say is refused in one line, and no byte is changed."""
import struct

import pytest
import thinmeta

from conftest import MIB, THINPOOLD, manifests, run, sum_of, unpack

SUPERBLOCK_XOR = 160774
OFFSETS = {'flags': (4, '<I'), 'version': (40, '<I'), 'data_block_size': (336, '<I'),
           'metadata_block_size': (340, '<I'), 'compat_ro_flags': (356, '<I'),
           'incompat_flags': (360, '<I')}


def set_field(path, field, value):
    """Change the superblock, with a right checksum: somebody has meant it."""
    with open(path, 'r+b') as f:
        block = bytearray(f.read(4096))
        offset, form = OFFSETS[field]
        struct.pack_into(form, block, offset, value)
        struct.pack_into('<I', block, 0, thinmeta.csum(bytes(block), SUPERBLOCK_XOR))
        f.seek(0)
        f.write(block)


def refused(pooldir, word, *options):
    mnt = pooldir.parent / 'mnt'
    mnt.mkdir(exist_ok=True)
    sums = [sum_of(pooldir / x) for x in ('metadata', 'data')]
    p = run(THINPOOLD, '-f', *options, pooldir, mnt, check=False, timeout=60)
    assert p.returncode == 1, p.stdout
    assert len(p.stdout.strip().splitlines()) == 1, p.stdout
    assert word in p.stdout and str(pooldir) in p.stdout, p.stdout
    assert [sum_of(pooldir / x) for x in ('metadata', 'data')] == sums


@pytest.fixture
def pooldir(bench):
    return unpack(bench, next(m for m in manifests() if m['name'] == 'nospace'))


@pytest.mark.parametrize('field,value,word', [
    ('data_block_size', 0, 'data blocks of 0 sectors'), ('data_block_size', 64, 'data blocks of 64 sectors'),
    ('data_block_size', 192, 'data blocks of 192 sectors'),
    ('data_block_size', 2097152 + 128, 'data blocks of'), ('metadata_block_size', 16, 'metadata blocks of 16'),
    ('version', 1, 'version 1'), ('version', 3, 'version 3'), ('incompat_flags', 1, 'features'),
    ('compat_ro_flags', 4, 'read-only')])
def test_a_superblock_that_says_so_is_refused(pooldir, field, value, word):
    set_field(pooldir / 'metadata', field, value)
    refused(pooldir, word)
    if field != 'compat_ro_flags':
        refused(pooldir, word, '--read-only')


def test_features_that_may_be_read_are_read(bench, pooldir):
    set_field(pooldir / 'metadata', 'compat_ro_flags', 4)
    d = bench.serve(pooldir, '--read-only')
    assert d.status()['mode'] == 'ro' and len(d.list()) == 2
    d.stop()


def test_a_block_size_that_is_not_the_pools_is_noticed(bench, pooldir):
    """Twice the size: the data device is too small for as many blocks."""
    set_field(pooldir / 'metadata', 'data_block_size', 256)
    refused(pooldir, 'cut off')


@pytest.mark.parametrize('image,size', [('data', 16 * MIB - 65536), ('data', 0), ('metadata', 4 * MIB - 4096)])
def test_an_image_that_was_cut_off_is_refused(pooldir, image, size):
    with open(pooldir / image, 'r+b') as f:
        f.truncate(size)
    refused(pooldir, 'cut off')
