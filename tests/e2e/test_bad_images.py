# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged pools: check tells the damage, the daemon refuses or serves the rest; nobody writes.

Every case makes one change to the metadata of a good pool.  What each program has to do with it:

  thinpoolctl check      exit 1, a line "damage: ..." that names the place, nothing changed
  thinpoold --read-only  one clear line and exit 1, or each block of each volume either as it was
                         or EIO; nothing changed
  thinpoold              the same; nothing changed if it refuses, and only if it serves may it
                         write; it survives writes to every volume
"""
import errno
import hashlib
import os
import random
import subprocess
import tempfile

import pytest

from conftest import MIB, THINPOOLCTL, THINPOOLD, Bench, Daemon, run, wait_for
from metadata_image import (BLOCK, NODE_BLOCKNR, NODE_FLAGS, NODE_KEYS, NODE_MAX, NODE_NR,
                            NODE_VALUE_SIZE, SB_BLOCKNR, SB_COMPAT_RO, SB_DATA_BLOCK_SIZE,
                            SB_FLAGS, SB_DATA_MAP, SB_DETAILS_ROOT, SB_HELD_ROOT, SB_INCOMPAT,
                            SB_MAGIC, SB_MAPPING_ROOT, SB_METADATA_BLOCK_SIZE,
                            SB_METADATA_MAP, SB_TIME, SB_VERSION, Image)

UNIT = 64 << 10
VOLUME_SIZE = 24 * MIB
NR_BLOCKS = 300  # more than one leaf holds
VOLUMES = ['origin', 's0', 's1', 's2', 's3', 'other']
FAR = 1 << 50  # a block number beyond everything
REMEDIES = ['thin_repair', 'thinpoolctl format', 'thin_restore', 'read-only', 'newer',
            'restore its size',
            'right file', 'plain copy', 'cut off']
MADE_BY_CRASH = ('AddressSanitizer', 'LeakSanitizer', 'runtime error:', 'invariant:', 'lock order:')


# ---- the good pool ----

@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """A pool whose metadata has every kind of block, and what its volumes hold."""
    bench = Bench(tempfile.mkdtemp(prefix='thinpoold-test-',
                                   dir=os.environ.get('TP_SCRATCH', '/var/tmp')))
    pooldir = bench.format('good', '40M', '--metadata-size', '2M')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('origin'), '--size', VOLUME_SIZE)
    bench.ctl('create', d.vol('other'), '--size', VOLUME_SIZE)

    def write(name, blocks):
        with open(d.vol(name), 'r+b') as f:
            for b in blocks:
                f.seek(b * UNIT)
                f.write(hashlib.sha256(f'{name} {b}'.encode()).digest() * (UNIT // 32))
            os.fsync(f.fileno())

    write('origin', range(NR_BLOCKS))
    write('other', range(0, 80, 2))
    # A write to each snapshot copies its leaf: counts of data blocks that do not fit two bits.
    for i in range(4):
        bench.ctl('snapshot', d.vol('origin'), d.vol(f's{i}'))
        write(f's{i}', [i, 200 + i])
    content = {name: d.vol(name).read_bytes() for name in VOLUMES}
    d.stop()
    bench.check_clean(pooldir)
    yield pooldir, content
    errors = bench.clean_up()
    assert not errors, '\n'.join(errors)


@pytest.fixture
def pool(bench, good):
    """A copy of the good pool to spoil."""
    pooldir = bench.tmp / 'pool'
    run('cp', '-r', '--sparse=always', good[0], pooldir)
    return pooldir


def sums(pooldir):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(pooldir.iterdir()) if p.is_file()}


# ---- what programs do with it ----

def look_sane(text):
    for mark in MADE_BY_CRASH:
        assert mark not in text, text


def check_tells(pooldir, word):
    before = sums(pooldir)
    p = run(THINPOOLCTL, 'check', pooldir, check=False, timeout=60)
    look_sane(p.stdout)
    assert p.returncode == 1, p.stdout
    damages = [line for line in p.stdout.splitlines() if line.startswith('damage: ')]
    assert damages and any(str(word) in line for line in damages), f'no "{word}" in:\n{p.stdout}'
    assert 'thinpoolctl: ' in p.stdout and 'damaged' in p.stdout
    assert sums(pooldir) == before


def read_volume(path, expected):
    """Every block is as it was, or EIO.  How many are EIO."""
    bad = 0
    with open(path, 'rb', buffering=0) as f:
        for at in range(0, len(expected), UNIT):
            try:
                data = os.pread(f.fileno(), UNIT, at)
            except OSError as e:
                assert e.errno == errno.EIO, e
                bad += 1
                continue
            assert data == expected[at:at + UNIT], f'{path} holds something else at {at}'
    return bad


class Served:
    """thinpoold on a damaged pool: refused (with .line), or serving at .d."""

    def __init__(self, bench, pooldir, *args):
        mnt = bench.tmp / 'mnt'
        mnt.mkdir(exist_ok=True)
        log = bench.tmp / 'log'
        log.unlink(missing_ok=True)
        self.mnt, self.log = mnt, log
        with open(log, 'wb') as f:
            self.proc = subprocess.Popen([THINPOOLD, '-f', *args, pooldir, mnt], stdout=f, stderr=f)
        bench.procs.append(self.proc)
        wait_for('an outcome', lambda: self.proc.poll() is not None or os.path.ismount(mnt))
        self.refused = self.proc.poll() is not None
        if self.refused:
            self.line = self.says_one_line()
        else:
            bench.mounts.append(mnt)
            self.bench = bench

    def says_one_line(self):
        text = self.log.read_text(errors='replace')
        look_sane(text)
        assert self.proc.returncode == 1, text
        answers = [line for line in text.splitlines() if not line.startswith('<')]
        assert len(answers) == 1 and answers[0].startswith('thinpoold: '), text
        return answers[0]

    def end(self):
        self.bench.umount(self.mnt)
        code = self.proc.wait(60)
        text = self.log.read_text(errors='replace')
        look_sane(text)
        assert code in (0, 1), text
        return code, text


def read_volumes(s, content, rightly=True):
    """How many blocks of each volume are EIO; 'gone': it is not in the directory."""
    bad = {}
    for name in VOLUMES:
        if not (s.mnt / name).exists():
            bad[name] = 'gone'
        elif rightly:
            bad[name] = read_volume(s.mnt / name, content[name])
        else:
            subprocess.run(['cat', s.mnt / name], stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, timeout=60)
    return bad


WRITTEN = [5 * UNIT, 210 * UNIT, 310 * UNIT]
NEW = b'new ' * 100


def write_volumes(s):
    """Write to every volume; EIO, EROFS or ENOSPC may come of it.  Name to 'ok' or the error."""
    results = {}
    for name in sorted(os.listdir(s.mnt)):
        if name.startswith('.'):
            continue
        try:
            with open(s.mnt / name, 'r+b', buffering=0) as f:
                for at in WRITTEN:
                    assert os.pwrite(f.fileno(), NEW, at) == len(NEW)
                os.fsync(f.fileno())
            results[name] = 'ok'
        except OSError as e:
            assert e.errno in (errno.EIO, errno.EROFS, errno.ENOSPC), e
            results[name] = errno.errorcode[e.errno]
    return results


def is_as_foretold(fate, mode, s, content):
    """Refused or served as the case says; volumes are readable as it says."""
    if isinstance(fate, tuple):
        fate = fate[1] if mode == 'ro' else fate[0]
    if fate in ('refused', mode + ' refused'):
        assert s.refused, f'{mode}: it serves this'
        assert any(word in s.line for word in REMEDIES), s.line
    else:
        assert not s.refused, s.line
        bad = read_volumes(s, content, isinstance(fate, list))
        if isinstance(fate, list):
            assert sorted(name for name in bad if bad[name]) == sorted(fate), bad


def serve_read_only(bench, pooldir, content, fate):
    before = sums(pooldir)
    s = Served(bench, pooldir, '--read-only')
    is_as_foretold(fate, 'ro', s, content)
    if not s.refused:
        code, text = s.end()
        assert code == 0, text
    assert sums(pooldir) == before, 'read-only and written'


def with_new(old):
    new = bytearray(old)
    for at in WRITTEN:
        new[at:at + len(NEW)] = NEW
    return bytes(new)


NEEDS_CHECK = 1


def wrote_at_most_the_flag(before, after):
    """Metadata is as it was, but that NEEDS_CHECK may be set (and the checksum fits)."""
    if before == after:
        return True
    flags = int.from_bytes(before[SB_FLAGS:SB_BLOCKNR], 'little') | NEEDS_CHECK
    return (after[SB_FLAGS:SB_BLOCKNR] == flags.to_bytes(4, 'little')
            and before[SB_BLOCKNR:] == after[SB_BLOCKNR:])


def serve_read_write(bench, pooldir, content, fate, write):
    """Read and write everything; what was acknowledged is there the next time, or EIO."""
    before, metadata = sums(pooldir), (pooldir / 'metadata').read_bytes()
    s = Served(bench, pooldir)
    is_as_foretold(fate, 'rw', s, content)
    if s.refused or not write:
        if not s.refused:
            s.end()
        after = sums(pooldir)
        if not s.refused:  # a read that met damage has aborted
            assert wrote_at_most_the_flag(metadata, (pooldir / 'metadata').read_bytes())
            before['metadata'] = after['metadata']
        assert after == before, 'nothing was asked of it, and it wrote'
        return
    results = write_volumes(s)
    assert run(THINPOOLCTL, 'status', s.mnt, '--json', timeout=60).returncode == 0
    s.end()
    s = Served(bench, pooldir, '--read-only')
    if s.refused:
        return
    for name, result in results.items():
        if name in content and result == 'ok' and isinstance(fate, list):
            read_volume(s.mnt / name, with_new(content[name]))
    s.end()


# ---- cases: name, change(image), a word of the line that check prints ----

CASES = {}
NODES = ['top_leaf', 'details_leaf', 'mapping_node', 'mapping_leaf', 'data_index_leaf',
         'data_counts_leaf', 'metadata_counts_leaf']
BLOCKS = NODES + ['data_bitmap', 'metadata_bitmap', 'metadata_index']


class Case:
    """change(image) makes the damage.  word: in a line that check prints about it, or a
    function of the image that knows it.

    fate: what the daemon does with it: 'refused'; 'ro refused', 'rw refused': in one mode only;
    or the names of volumes that have blocks nobody can read, or are not there, all others are
    whole; a pair: refused to be written to, and the names of those that cannot be read.  None: what
    is read is not judged (a mapping that is missing, or names another block, is nothing a reader
    could see).
    write: also write to it (wrong counts would be believed)."""

    def __init__(self, change, word, fate, write=True):
        self.change, self.word, self.fate, self.write = change, word, fate, write


FATES = {'superblock': 'refused', 'top_leaf': 'refused', 'details_leaf': 'refused',
         'metadata_index': 'refused', 'mapping_node': ['origin'], 'mapping_leaf': ['origin']}


def case(name, word, **kw):
    def add(change):
        assert name not in CASES
        kw.setdefault('fate', FATES.get(name.partition(':')[0], []))
        CASES[name] = Case(change, word, **kw)
        return change
    return add


def add32(name, where, offset, value, word, **kw):
    def change(i):
        i.set32(i.where[where], offset, value)
        i.seal(i.where[where])
    case(f'{where}: {name}', word, **kw)(change)


def add64(name, where, offset, value, word, **kw):
    """value and offset may be functions of the image."""
    def change(i):
        b = i.where[where]
        i.set64(b, offset(i) if callable(offset) else offset,
                value(i) if callable(value) else value)
        i.seal(b)
    case(f'{where}: {name}', word, **kw)(change)


def value_at(where, n):
    return lambda i: i.value_offset(i.where[where], n)


def add_block_cases():
    """What can be wrong with any block, for each kind of block."""
    def fill(where, content):
        def change(i):
            b = i.where[where]
            i.data[b * BLOCK:(b + 1) * BLOCK] = content
        return change

    def unsealed(where):
        def change(i):
            i.set32(i.where[where], 0, i.u32(i.where[where], 0) ^ 1)
        return change

    for where in BLOCKS:
        case(f'{where}: wrong checksum', 'checksum')(unsealed(where))
        case(f'{where}: random', 'checksum')(fill(where, random.Random(where).randbytes(BLOCK)))
        case(f'{where}: zeros', 'checksum')(fill(where, bytes(BLOCK)))
        add64('says it lives elsewhere', where, NODE_BLOCKNR, 7777, 'says it is block 7777')
    for where in NODES:
        add32('nr_entries 2^32-1', where, NODE_NR, 0xffffffff, '4294967295')
        add32('nr_entries 400', where, NODE_NR, 400, '400')
        add32('max_entries 2^29', where, NODE_MAX, 1 << 29, str(1 << 29))
        add32('max_entries 0', where, NODE_MAX, 0, ' 0')
        add32('value size 12', where, NODE_VALUE_SIZE, 12, '12')
        add32('value size 2^32-1', where, NODE_VALUE_SIZE, 0xffffffff, '4294967295')
        add32('neither leaf nor internal', where, NODE_FLAGS, 0, 'flags')
        add32('leaf and internal', where, NODE_FLAGS, 3, 'flags')


def add_superblock_cases():
    sb = 'superblock'
    case('superblock: wrong checksum', 'checksum')(lambda i: i.set32(0, 0, i.u32(0, 0) ^ 1))
    add64('says it lives elsewhere', sb, SB_BLOCKNR, 7777, 'says it is block 7777')
    add64('magic', sb, SB_MAGIC, 1234, 'magic')
    add32('version 1', sb, SB_VERSION, 1, 'version 1')
    add32('version 3', sb, SB_VERSION, 3, 'version 3')
    add32('incompatible features', sb, SB_INCOMPAT, 4, 'features')
    add32('features that can only be read', sb, SB_COMPAT_RO, 4, 'features', fate='rw refused')
    add32('data blocks of 0', sb, SB_DATA_BLOCK_SIZE, 0, 'data blocks')
    add32('data blocks of 100 sectors', sb, SB_DATA_BLOCK_SIZE, 100, 'data blocks')
    add32('data blocks of 2 GiB', sb, SB_DATA_BLOCK_SIZE, 1 << 22, 'data blocks')
    add32('metadata blocks of 16 sectors', sb, SB_METADATA_BLOCK_SIZE, 16, 'metadata blocks')
    add32('a clock beyond 24 bits', sb, SB_TIME, 1 << 24, 'clock')
    roots = {'mapping root': SB_MAPPING_ROOT, 'details root': SB_DETAILS_ROOT,
             'data index root': SB_DATA_MAP + 16, 'data counts root': SB_DATA_MAP + 24,
             'metadata index': SB_METADATA_MAP + 16, 'metadata counts root': SB_METADATA_MAP + 24,
             'metadata snapshot': SB_HELD_ROOT}
    NEEDED_AT_OPEN = (SB_MAPPING_ROOT, SB_DETAILS_ROOT, SB_METADATA_MAP + 16)
    for name, offset in roots.items():
        add64(f'{name} far out', sb, offset, FAR, str(FAR))
        add64(f'{name} just out', sb, offset, lambda i: i.u64(0, SB_METADATA_MAP), 'superblock')
        if offset != SB_HELD_ROOT:
            add64(f'{name} 0', sb, offset, 0, '0')
        # An intact block, but of another kind.
        add64(f'{name} is a bitmap', sb, offset, lambda i: i.where['data_bitmap'],
              lambda i: str(i.where['data_bitmap']),
              fate='refused' if offset in NEEDED_AT_OPEN else [])
    add64('too many data blocks for the device', sb, SB_DATA_MAP, 100000, '100000')
    add64('2^41 data blocks', sb, SB_DATA_MAP, 1 << 41, str(1 << 41))
    add64('no data blocks', sb, SB_DATA_MAP, 0, 'data', fate='rw refused')
    add64('too many metadata blocks', sb, SB_METADATA_MAP, 513, '513')
    add64('2^60 metadata blocks', sb, SB_METADATA_MAP, 1 << 60, str(1 << 60))
    add64('too few metadata blocks', sb, SB_METADATA_MAP, 4, 'the metadata ends at 4')


def add_pointer_cases():
    """Where blocks point: out of range, at the superblock, in a circle, at another kind."""
    # The second device is "other".
    for where, n, fate in (('top_leaf', 1, ['other']), ('mapping_node', 0, ['origin']),
                           ('data_index_leaf', 0, [])):
        at = value_at(where, n)
        add64('pointer far out', where, at, FAR, str(FAR), fate=fate)
        add64('pointer just out', where, at, lambda i: i.u64(0, SB_METADATA_MAP), 'block',
              fate=fate)
        add64('pointer to the superblock', where, at, 0, 'superblock', fate=fate)
        add64('pointer to details', where, at, lambda i: i.where['details_leaf'], 'details',
              fate=fate)
    # An intact leaf of the same form: nothing but a check can know.
    add64('pointer to itself', 'top_leaf', value_at('top_leaf', 1), lambda i: i.where['top_leaf'],
          'in use as top-level', fate=None, write=False)
    add64('pointer to itself', 'mapping_node', value_at('mapping_node', 0),
          lambda i: i.where['mapping_node'], 'cycle')
    add64('pointer to itself', 'data_index_leaf', value_at('data_index_leaf', 0),
          lambda i: i.where['data_index_leaf'], 'in use as data index')
    add64('circle', 'mapping_node', value_at('mapping_node', 1), lambda i: i.where['mapping_node'],
          'cycle')
    add64('two of one child', 'mapping_node', value_at('mapping_node', 1),
          lambda i: i.values(i.where['mapping_node'])[0], 'counted 1, but has 2')
    for name, value in (('far out', FAR), ('to the superblock', 0)):
        add64(f'bitmap {name}', 'metadata_index', 16, value, 'metadata index', fate=[])
    add64('bitmap is itself', 'metadata_index', 16, lambda i: i.where['metadata_index'],
          'metadata index', fate=[])
    add64('bitmap is the data bitmap', 'metadata_index', 16, lambda i: i.where['data_bitmap'],
          'bitmap',
          fate=[], write=False)
    add64('entry behind the last', 'metadata_index', 32, 5, 'metadata index', fate=[])


def add_content_cases():
    """Entries that make no sense, or not together with the rest."""
    leaf = 'mapping_leaf'
    add64('data block far out', leaf, value_at(leaf, 3), FAR >> 20 << 24, 'data block')
    add64('data block just out', leaf, value_at(leaf, 3), lambda i: i.u64(0, SB_DATA_MAP) << 24,
          'data block')
    add64('time ahead of the clock', leaf, value_at(leaf, 3),
          lambda i: i.values(i.where[leaf])[3] | 0xffffff,
          'clock', fate=[])
    add64('one data block twice', leaf, value_at(leaf, 3), lambda i: i.values(i.where[leaf])[4],
          'data', fate=None, write=False)
    add64('keys out of order', leaf, NODE_KEYS + 8 * 5, 3, 'key', fate=None, write=False)
    add64('key below its parent', leaf, NODE_KEYS, lambda i: 1 << 60, 'key', fate=None, write=False)
    add32('an entry less', leaf, NODE_NR, 125, 'mapped blocks', fate=None, write=False)
    add64('keys out of order', 'mapping_node', NODE_KEYS, 1 << 60, 'key', fate=None, write=False)
    add64('keys out of order', 'top_leaf', NODE_KEYS, 1 << 23, 'key', fate='refused', write=False)
    add64('device id over 24 bits', 'top_leaf',
          lambda i: NODE_KEYS + 8 * (len(i.keys(i.where['top_leaf'])) - 1), 1 << 24, 'device id',
          fate=('refused', None))
    add64('the first device is another', 'details_leaf', NODE_KEYS, 77, 'device 77', write=False)
    add64('the last volume is another', 'details_leaf', NODE_KEYS + 8 * 5, 77, 'device 77',
          write=False, fate=('refused', ['s3']))
    add64('mapped_blocks wrong', 'details_leaf', value_at('details_leaf', 1), 1, 'mapped blocks',
          fate=[], write=False)
    add64('mapped_blocks 2^63', 'details_leaf', value_at('details_leaf', 1), 1 << 63, str(1 << 63),
          fate=[], write=False)
    add64('a count below 3', 'data_counts_leaf', value_at('data_counts_leaf', 0), 0x200000001,
          'count', write=False)
    add64('a count for another block', 'data_counts_leaf', NODE_KEYS, 5000, 'count', write=False)
    add64('the number of another bitmap', 'data_index_leaf', NODE_KEYS, 7, 'data index',
          write=False)

    def count(name, bitmap, entry, value):
        def change(i):
            i.set_count(i.where[bitmap], entry(i), value)
            i.seal(i.where[bitmap])
        case(f'{bitmap}: {name}', 'count', write=False)(change)
    count('a used block is free', 'data_bitmap', lambda i: i.values(i.where[leaf])[0] >> 24, 0)
    count('a count too low', 'data_bitmap', lambda i: i.values(i.where[leaf])[9] >> 24, 1)
    count('a used block is free', 'metadata_bitmap', lambda i: i.where[leaf], 0)
    count('the superblock is free', 'metadata_bitmap', lambda i: 0, 0)


add_block_cases()
add_superblock_cases()
add_pointer_cases()
add_content_cases()


def quick_selection():
    """A case of each kind of block, and the damage is another one each time."""
    seen, selected = set(), set()
    for name in CASES:
        block, _, damage = name.partition(': ')
        if block not in seen and damage not in seen:
            seen |= {block, damage}
            selected.add(name)
    return selected | {'details_leaf: the last volume is another'}


QUICK = quick_selection()


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.quick] if name in QUICK else []) for name in CASES])
def test_damaged_metadata(bench, good, pool, name):
    case = CASES[name]
    image = Image(pool / 'metadata')
    case.change(image)
    image.save()
    check_tells(pool, case.word(image) if callable(case.word) else case.word)
    serve_read_only(bench, pool, good[1], case.fate)
    serve_read_write(bench, pool, good[1], case.fate, case.write)


def test_leaks_and_wrong_hints_are_no_damage(bench, good, pool):
    """Space that is counted but not used is lost, nothing else: check says so and exits 0."""
    image = Image(pool / 'metadata')
    image.set_count(image.where['metadata_bitmap'], image.where['mapping_leaf'], 2)
    image.set_count(image.where['metadata_bitmap'], 500, 1)
    image.seal(image.where['metadata_bitmap'])
    image.set64(0, SB_DATA_MAP + 8, 1)  # nr_allocated
    image.seal(0)
    image.save()
    before = sums(pool)
    p = run(THINPOOLCTL, 'check', pool)
    assert 'leak: ' in p.stdout and 'hint: ' in p.stdout and 'damage: ' not in p.stdout
    assert sums(pool) == before
    serve_read_only(bench, pool, good[1], [])


# ---- files that are no pool, or not a whole one ----

def cut(name, size):
    return lambda pool: os.truncate(pool / name, size)


def replace(name, make):
    def change(pool):
        (pool / name).unlink()
        make(pool / name)
    return change


def rubbish(path):
    path.write_bytes(random.Random(7).randbytes(2 * MIB))


# What is done to the pool's files; words of the line of thinpoold, words of check.
FILES = {
    'metadata empty': (cut('metadata', 0), ['metadata', 'thinpoolctl format'], ['too small']),
    'metadata of 100 bytes': (cut('metadata', 100), ['metadata'], ['too small']),
    'metadata of 4096 bytes': (cut('metadata', 4096), ['metadata', 'cut off'], ['has 1']),
    'metadata cut in half': (cut('metadata', MIB), ['metadata', '256', '512', 'cut off'],
                             ['512', '256']),
    'metadata short of a byte': (cut('metadata', 2 * MIB - 1), ['metadata', '511', 'cut off'],
                                 ['511']),
    'metadata all zeros': (replace('metadata', lambda p: p.write_bytes(bytes(2 * MIB))),
                           ['metadata', 'not formatted', 'thinpoolctl format'],
                           ['never formatted']),
    'metadata random': (replace('metadata', rubbish), ['metadata', 'magic'], ['magic']),
    'metadata a text': (replace('metadata', lambda p: p.write_text('hello\n' * 9999)),
                        ['metadata', 'magic'], ['magic']),
    'metadata missing': (replace('metadata', lambda p: None),
                         ['metadata', 'not exist', 'thinpoolctl format'], None),
    'metadata a link to nothing': (replace('metadata', lambda p: p.symlink_to('none')),
                                   ['metadata', 'not exist'], None),
    'metadata a link to itself': (replace('metadata', lambda p: p.symlink_to('metadata')),
                                  ['metadata', 'links'], None),
    'metadata a directory': (replace('metadata', lambda p: p.mkdir()), ['metadata', 'neither'],
                             None),
    'metadata a fifo': (replace('metadata', os.mkfifo), ['metadata', 'neither'], None),
    'metadata is the data': (replace('metadata', lambda p: p.symlink_to('data')),
                             ['data', 'same file'], None),
    'data is the metadata': (replace('data', lambda p: p.symlink_to('metadata')),
                             ['data', 'same file'], None),
    'data empty': (cut('data', 0), ['data', '640', 'cut off'], ['data device']),
    'data short of a byte': (cut('data', 40 * MIB - 1), ['data', '640', 'cut off'],
                             ['data device', '639']),
    'data missing': (replace('data', lambda p: None), ['data', 'not exist'], None),
    'data a directory': (replace('data', lambda p: p.mkdir()), ['data', 'neither'], None),
    'data a character device': (replace('data', lambda p: p.symlink_to('/dev/null')),
                                ['data', 'neither'], None),
}


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.quick] if ' is the ' in name else [])
    for name in FILES])
def test_files_that_are_no_pool(bench, pool, name):
    change, words, check_words = FILES[name]
    change(pool)
    before = sums(pool)
    for args in ([], ['--read-only']):
        s = Served(bench, pool, *args)
        assert s.refused
        for word in words:
            assert word in s.line.replace(str(pool), ''), s.line
    if check_words is None:
        p = run(THINPOOLCTL, 'check', pool, check=False, timeout=60)
        assert p.returncode in (1, 3) and len(p.stdout.splitlines()) == 1, p.stdout
        assert str(pool) in p.stdout
    else:
        for word in check_words:
            check_tells(pool, word)
    assert sums(pool) == before
