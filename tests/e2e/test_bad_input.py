# SPDX-License-Identifier: GPL-2.0-or-later
"""Bad input of every kind but damaged images (test_bad_images.py): each gets one clear line or the
proper errno, a non-zero exit, and changes nothing, to the byte."""
import contextlib
import ctypes
import errno
import json
import os
import random
import socket
import stat
import subprocess
import tempfile

import pytest

from conftest import (BUSY, EXISTS, FAILED, MIB, NO_DAEMON, NOT_FOUND, OK, THINPOOLCTL,
                      THINPOOLD, USAGE, Bench, refused, run, snapshot_of, wait_for)

NOBODY = 65534


# ---------------------------------------------------------------- configuration

CONFIGURATIONS = {
    'unknown key': (b'[pool]\nno_such = 1\n', 2, 'no_such', 'thinpoold.conf(5)'),
    'unknown section': (b'[pond]\ncache_size = 1M\n', 1, 'pond', 'thinpoold.conf(5)'),
    'unknown section without a key': (b'[pool]\n\n[pond]\n', 3, 'pond', 'thinpoold.conf(5)'),
    'missing section': (b'cache_size = 1M\n', 1, 'cache_size', '[section]'),
    'section not closed': (b'[pool\ncache_size = 1M\n', 1, 'lacks its "]"'),
    'no equals sign': (b'[pool]\ncache_size\n', 2, 'expected', 'key = value'),
    'nothing but a value': (b'[pool]\n= 1M\n', 2, ''),
    'no value': (b'[pool]\ncache_size =\n', 2, 'cache_size', '1M to 1T'),
    'no size': (b'[pool]\ncache_size = lots\n', 2, '"lots"', '1M to 1T'),
    'size with an unknown unit': (b'[pool]\ncache_size = 64X\n', 2, '"64X"', '1M to 1T'),
    'size 0': (b'[pool]\ncache_size = 0\n', 2, '"0"', '1M to 1T'),
    'size too small': (b'[pool]\ncache_size = 1K\n', 2, '"1K"', '1M to 1T'),
    'size too large': (b'[pool]\ncache_size = 2T\n', 2, '"2T"', '1M to 1T'),
    'size negative': (b'[pool]\ncache_size = -1M\n', 2, '"-1M"', '1M to 1T'),
    'size overflows 64 bits': (b'[pool]\ncache_size = 18446744073709551617\n', 2,
                               '18446744073709551617'),
    'size overflows with its unit': (b'[pool]\ncache_size = 99999999999999E\n', 2,
                                     '99999999999999E'),
    'count 0': (b'[fuse]\nworkers = 0\n', 2, '"0"', '1 to 64'),
    'count negative': (b'[fuse]\nworkers = -1\n', 2, '"-1"', '1 to 64'),
    'count too large': (b'[fuse]\nworkers = 65\n', 2, '"65"', '1 to 64'),
    'count overflows': (b'[fuse]\nworkers = 4294967297\n', 2, '4294967297', '1 to 64'),
    'count overflows 64 bits': (b'[fuse]\nworkers = 18446744073709551617\n', 2, '1 to 64'),
    'count with a rest': (b'[fuse]\nworkers = 2 3\n', 2, '"2 3"', '1 to 64'),
    'seconds not a number': (b'[pool]\ncommit_interval = nan\n', 2, '"nan"', '0.01 to 60'),
    'seconds with two points': (b'[pool]\ncommit_interval = 1.2.3\n', 2, '"1.2.3"'),
    'seconds negative': (b'[pool]\ncommit_interval = -1\n', 2, '"-1"'),
    'seconds 0': (b'[pool]\ncommit_interval = 0\n', 2, '"0"', '0.01 to 60'),
    'seconds too many': (b'[pool]\ncommit_interval = 1e9\n', 2, '"1e9"'),
    'neither yes nor no': (b'[fuse]\nallow_other = maybe\n', 2, '"maybe"', 'yes or no'),
    'no word of the list': (b'[pool]\ndiscard = sometimes\n', 2, '"sometimes"', 'passdown'),
    'word in capitals': (b'[pool]\ndiscard = PASSDOWN\n', 2, '"PASSDOWN"', 'passdown'),
    'duplicate': (b'[pool]\ncache_size = 1M\n[pool]\ncache_size = 2M\n', 4, 'cache_size', 'twice'),
    'key of another section': (b'[fuse]\ncache_size = 1M\n', 2, 'cache_size', '[fuse]'),
    'two mistakes': (b'[pool]\ncache_size\nno_such = 1\n', 2, 'key = value'),
    'indented line': (b'[pool]\ncache_size = 2M\n  commit_interval = 2\n', 3, 'indented'),
    'not UTF-8': (b'[pool]\n# caf\xe9\n', 2, 'UTF-8'),
    'UTF-8 cut off': (b'[pool]\n# \xe2\x82\n', 2, 'UTF-8'),
    'a NUL': (b'[pool]\ncache_size = 1M\0\n', 2, 'UTF-8'),
    'control characters': (b'[pool]\ncache_size = \x1b[31m1M\n', 2, 'no value for cache_size'),
    'a line too long': (b'[pool]\n# ' + b'x' * 300 + b'\n', 2, 'longer than 180 bytes'),
    'a line of 1 MiB': (b'#' * MIB, None, 'larger than 65536 bytes'),
    'a line of 1 MiB and more': (b'[pool]\ncache_size = ' + b'1' * MIB + b'\n', None,
                                 'larger than 65536 bytes'),
    'a binary': (bytes(range(256)) * 16, 1, 'UTF-8'),
}


@pytest.mark.no_root
@pytest.mark.quick
@pytest.mark.parametrize('name', CONFIGURATIONS)
def test_configuration(tmp_path, name):
    content, line, *words = CONFIGURATIONS[name]
    conf = tmp_path / 'bad.conf'
    conf.write_bytes(content)
    where = 'bad.conf: ' if line is None else f'bad.conf:{line}: '

    def refuse(*args, where):
        p = run(THINPOOLD, *args, check=False)
        p.stdout = p.stdout.replace(str(tmp_path), '')  # which may hold the words, too
        refused(p, FAILED, where, *words)
    refuse('-c', conf, '--check-config', where=where)
    # The same as the configuration of a pool, which is not touched.
    pooldir = tmp_path / 'pool'
    pooldir.mkdir()
    (pooldir / 'pool.conf').write_bytes(content)
    for file in ('metadata', 'data'):
        (pooldir / file).write_bytes(b'x' * 8192)
    before = snapshot_of(pooldir)
    (tmp_path / 'mnt').mkdir()
    refuse('-f', pooldir, tmp_path / 'mnt', where=where.replace('bad.conf', 'pool.conf'))
    assert snapshot_of(pooldir) == before


@pytest.mark.no_root
@pytest.mark.quick
def test_configuration_that_cannot_be_read(tmp_path):
    conf = tmp_path / 'conf'
    refused(run(THINPOOLD, '-c', conf, '--check-config', check=False), FAILED, str(conf),
            'no such file')
    conf.mkdir()
    refused(run(THINPOOLD, '-c', conf, '--check-config', check=False), FAILED, str(conf),
            'directory')
    loop = tmp_path / 'loop'
    loop.symlink_to('loop')
    refused(run(THINPOOLD, '-c', loop, '--check-config', check=False), FAILED, str(loop))
    # Nobody writes into it, and nobody waits for that.
    fifo = tmp_path / 'fifo'
    os.mkfifo(fifo)
    refused(run(THINPOOLD, '-c', fifo, '--check-config', check=False, timeout=20), FAILED,
            str(fifo), 'not a regular file')
    secret = tmp_path / 'secret'
    secret.write_text('[pool]\n')
    secret.chmod(0)
    if os.geteuid() == 0:
        for parent in list(tmp_path.parents)[:3] + [tmp_path]:
            if parent.stat().st_uid == 0 and 'pytest' in str(parent):
                parent.chmod(0o755)
        p = as_nobody(THINPOOLD, '-c', secret, '--check-config')
    else:
        p = run(THINPOOLD, '-c', secret, '--check-config', check=False)
    refused(p, FAILED, str(secret), 'ermission denied')


def as_nobody(*args):
    return run('setpriv', f'--reuid={NOBODY}', f'--regid={NOBODY}', '--clear-groups', *args,
               check=False, timeout=60)


# ----------------------------------------------------------------------- format

# Exit code, arguments after POOLDIR, words of the answer.
FORMATS = {
    'no size': (USAGE, [], '--size'),
    'size 0': (USAGE, ['--size', '0'], '--size'),
    'size negative': (USAGE, ['--size', '-5G'], '-5G'),
    'size with a rest': (USAGE, ['--size', '5G5'], '5G5'),
    'size empty': (USAGE, ['--size', ''], '--size'),
    'size over 64 bits': (USAGE, ['--size', '16E'], '16E', 'too large'),
    'size far over 64 bits': (USAGE, ['--size', '9' * 40], 'too large'),
    'size too small': (USAGE, ['--size', '255K'], '--size', 'too small'),
    'size too small for its blocks': (USAGE, ['--size', '3G', '--block-size', '1G'], 'too small'),
    'size needs larger blocks': (USAGE, ['--size', '7E'], 'too large', 'larger blocks'),
    'block size no multiple of 64K': (USAGE, ['--size', '1G', '--block-size', '96K'], '64K'),
    'block size over 1G': (USAGE, ['--size', '9G', '--block-size', '1088M'], '64K', '1G'),
    'block size 0': (USAGE, ['--size', '1G', '--block-size', '0'], '--block-size'),
    'block size of a sector': (USAGE, ['--size', '1G', '--block-size', '1s'], '64K'),
    'block size a word': (USAGE, ['--size', '1G', '--block-size', 'big'], 'big'),
    'metadata too small': (USAGE, ['--size', '1G', '--metadata-size', '4K'], '--metadata-size',
                           '2M'),
    'metadata 0': (USAGE, ['--size', '1G', '--metadata-size', '0'], '--metadata-size'),
    'data and metadata the same': (USAGE, ['--size', '1G', '--data', '@/x', '--metadata', '@/x'],
                                   'same'),
    'data and metadata the same by a link': (
        USAGE, ['--size', '1G', '--data', '@/file', '--metadata', '@/link'], 'same'),
    'data is a directory': (FAILED, ['--size', '1G', '--data', '@/dir'], '@/dir', 'neither'),
    'data in no directory': (NOT_FOUND, ['--size', '1G', '--data', '@/none/x'], '@/none/x',
                             'not exist'),
    'metadata is a fifo': (FAILED, ['--size', '1G', '--metadata', '@/fifo'], '@/fifo', 'neither'),
    'data is no empty file': (EXISTS, ['--size', '1G', '--data', '@/full'], '@/full', '--force'),
    'metadata is no empty file': (EXISTS, ['--size', '1G', '--metadata', '@/full'], '@/full',
                                  '--force'),
    'data is a short file': (EXISTS, ['--size', '1G', '--data', '@/short'], '@/short', '--force'),
    'an unknown option': (USAGE, ['--size', '1G', '--colour', 'blue'], '--colour'),
    'two directories': (USAGE, ['--size', '1G', 'another'], 'another'),
}


@pytest.mark.no_root
@pytest.mark.quick
@pytest.mark.parametrize('name', FORMATS)
def test_format(tmp_path, name):
    code, args, *words = FORMATS[name]
    (tmp_path / 'file').touch()
    (tmp_path / 'link').symlink_to('file')
    (tmp_path / 'dir').mkdir()
    (tmp_path / 'full').write_bytes(b'precious' * (MIB // 2))
    (tmp_path / 'short').write_bytes(b'precious')
    os.mkfifo(tmp_path / 'fifo')
    before, names = snapshot_of(tmp_path), sorted(os.listdir(tmp_path))
    pooldir = tmp_path / 'pool'
    args = [a.replace('@', str(tmp_path)) for a in args]
    refused(run(THINPOOLCTL, 'format', pooldir, *args, check=False, timeout=60), code,
            *(w.replace('@', str(tmp_path)) for w in words))
    assert sorted(os.listdir(tmp_path)) == names, 'it left something behind'
    assert snapshot_of(tmp_path) == before


@pytest.mark.no_root
@pytest.mark.quick
def test_format_where_it_cannot_or_must_not(tmp_path):
    def fmt(*args):
        return run(THINPOOLCTL, 'format', *args, '--size', '64M', check=False)
    pooldir = tmp_path / 'pool'
    assert fmt(pooldir).returncode == OK
    before = snapshot_of(pooldir)
    refused(fmt(pooldir), EXISTS, 'metadata', '--force')
    assert snapshot_of(pooldir) == before
    refused(fmt(tmp_path / 'none/pool'), NOT_FOUND, 'none/pool', 'o such file')
    (tmp_path / 'file').write_bytes(b'precious')
    refused(fmt(tmp_path / 'file'), FAILED, 'file', 'not a directory')
    refused(fmt(tmp_path / 'file/pool'), FAILED, 'file/pool')
    assert (tmp_path / 'file').read_bytes() == b'precious'
    refused(fmt(tmp_path / ('x' * 300)), FAILED, 'too long')
    refused(fmt('/proc/pool'), NOT_FOUND, '/proc/pool')


def test_permission_denied(bench):
    """An ordinary user at root's pool, and in root's directories."""
    os.chmod(bench.tmp, 0o755)
    pooldir = bench.format('pool', '64M')
    os.chmod(pooldir, 0o755)
    before = snapshot_of(pooldir)
    mnt = bench.tmp / 'theirs'
    mnt.mkdir()
    os.chown(mnt, NOBODY, NOBODY)
    refused(as_nobody(THINPOOLCTL, 'format', bench.tmp / 'new', '--size', '1G'), FAILED, 'new',
            'ermission denied')
    refused(as_nobody(THINPOOLCTL, 'format', pooldir, '--size', '1G'), FAILED, str(pooldir),
            'ermission denied')
    refused(as_nobody(THINPOOLCTL, 'check', pooldir), FAILED, 'metadata', 'ermission denied')
    refused(as_nobody(THINPOOLD, '-f', pooldir, mnt), FAILED, 'metadata', 'ermission denied')
    refused(as_nobody(THINPOOLD, '-f', '--read-only', pooldir, mnt), FAILED, 'metadata',
            'ermission denied')
    assert snapshot_of(pooldir) == before

    d = bench.serve(pooldir)
    before = snapshot_of(pooldir)
    refused(as_nobody(THINPOOLCTL, 'list', d.mnt), FAILED, str(d.mnt), 'ermission denied')
    refused(as_nobody(THINPOOLCTL, 'create', d.mnt / 'v', '--size', '1G'), FAILED, str(d.mnt),
            'ermission denied')
    s = os.getxattr(d.mnt, 'user.thinpool.socket').decode()
    p = as_nobody('/usr/bin/python3', '-c',
                  f'import socket; socket.socket(socket.AF_UNIX).connect({s!r})')
    assert 'PermissionError' in p.stdout
    assert d.list() == [] and snapshot_of(pooldir) == before


# ------------------------------------------------------------- pools in service

@pytest.fixture(scope='module')
def served():
    """A pool in service with a volume, and one that somebody unlinked while it was open."""
    bench = Bench(tempfile.mkdtemp(prefix='thinpoold-test-',
                                   dir=os.environ.get('TP_SCRATCH', '/var/tmp')))
    pooldir = bench.format('pool', '16M', '--metadata-size', '2M')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '10M')
    bench.ctl('create', d.vol('other'), '--size', '1M')
    with open(d.vol('v'), 'r+b') as f:
        f.write(b'content of v' * 1000)
        os.fsync(f.fileno())
    d.stop()
    d = bench.serve(pooldir)  # with nothing left to be done
    yield d
    d.stop()
    bench.check_clean(pooldir)
    errors = bench.clean_up()
    assert not errors, '\n'.join(errors)


INTERFACE = 'org.thinpoold.'


def control(d):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(os.getxattr(d.mnt, 'user.thinpool.socket').decode())
    return s


def answer(s):
    """One message without its NUL; b'': the daemon closed the connection."""
    text = b''
    while not text.endswith(b'\0'):
        try:
            more = s.recv(65536)
        except ConnectionResetError:
            more = b''
        if not more:
            assert not text, 'half an answer'
            return b''
        text += more
    return text[:-1]


def call(method, parameters=None):
    message = {'method': method}
    if parameters is not None:
        message['parameters'] = parameters
    return json.dumps(message, ensure_ascii=False).encode(errors='surrogatepass')


def volumes(d):
    with contextlib.closing(control(d)) as s:
        s.sendall(call(INTERFACE + 'List') + b'\0')
        return json.loads(answer(s))['parameters']['volumes']


@contextlib.contextmanager
def nothing_changes(d):
    """Neither the images, to the byte, nor the list of volumes, nor the daemon."""
    before, listed = snapshot_of(d.pooldir), volumes(d)
    yield
    assert d.proc.poll() is None, d.log_text()
    assert volumes(d) == listed
    assert snapshot_of(d.pooldir) == before


BAD_NAMES = {
    'dot': ('.', 'start with a dot'),
    'dot dot': ('..', 'start with a dot'),
    'hidden': ('.hidden', 'start with a dot'),
    'ours': ('.thinpool', 'start with a dot'),
    '256 bytes': ('x' * 256, '255 bytes'),
    '256 bytes in 128 characters': ('\u00e9' * 128, '255 bytes'),
    'newline': ('a\nb', 'control characters'),
    'tab': ('a\tb', 'control characters'),
    'escape': ('\x1b[1mbold', 'control characters'),
    'delete': ('a\x7f', 'control characters'),
    'C1 control character': ('a\x85', 'control characters'),
    'invalid UTF-8': (b'caf\xe9', 'UTF-8'),
    'UTF-8 cut off': (b'\xe2\x82', 'UTF-8'),
    'overlong UTF-8': (b'\xc0\xafx', 'UTF-8'),
    'surrogate': (b'\xed\xa0\x80', 'UTF-8'),
    'existing': ('other', 'other'),
}


@pytest.mark.quick
@pytest.mark.parametrize('case', BAD_NAMES)
def test_name(served, case):
    name, word = BAD_NAMES[case]
    name = os.fsencode(name)
    path, v = os.path.join(os.fsencode(served.mnt), name), served.vol('v')
    existing = case == 'existing'
    code = EXISTS if existing else FAILED
    with nothing_changes(served):
        # Paths that mean other things to the shell and the kernel.
        if case not in ('dot', 'dot dot'):
            refused(run_bytes('create', path, '--size', '1M'), code, word)
            refused(run_bytes('snapshot', v, path), code, word)
            refused(run_bytes('rename', v, path), code, word)
        for call in (lambda: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)),
                     lambda: os.mknod(path),
                     lambda: os.link(v, path)):
            with pytest.raises(OSError) as e:
                call()
            assert e.value.errno in (errno.EINVAL, errno.ENAMETOOLONG, errno.EEXIST, errno.EPERM,
                                     errno.EISDIR), e.value
        if not existing and case not in ('dot', 'dot dot'):
            with pytest.raises(OSError) as e:
                os.rename(v, path)
            assert e.value.errno in (errno.EINVAL, errno.ENAMETOOLONG, errno.EPERM,
                                     errno.EISDIR), e.value


def run_bytes(verb, *args):
    p = subprocess.run([os.fsencode(THINPOOLCTL), verb.encode(), *map(os.fsencode, args)],
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    p.stdout = p.stdout.decode()  # whatever came in, what goes out is UTF-8
    return p


# Verb, arguments ('@': the mount), exit code, words.
VERBS = {
    'volume without a name': ('create', ['@/', '--size', '1M'], NO_DAEMON, ['no pool']),
    'volume in a directory that is none': ('create', ['@/v/w', '--size', '1M'], NO_DAEMON,
                                           ['@/v', 'no pool']),
    'volume in .thinpool': ('create', ['@/.thinpool/w', '--size', '1M'], NO_DAEMON,
                            ['.thinpool', 'no pool']),
    'empty path': ('create', ['', '--size', '1M'], NO_DAEMON, ['no pool']),
    'a pool directory': ('list', ['/'], NO_DAEMON, ['/', 'no pool']),
    'no size': ('create', ['@/new'], USAGE, ['--size']),
    'size over 64 bits': ('create', ['@/new', '--size', '16E'], USAGE, ['16E', 'too large']),
    'size over the limit': ('create', ['@/new', '--size', '7E'], FAILED, ['bytes at most']),
    'size just over the limit': ('create', ['@/new', '--size', str((64 << 50) + 1)], FAILED,
                                 [str(64 << 50), 'bytes at most']),
    'size negative': ('create', ['@/new', '--size=-1'], USAGE, ['-1']),
    'size with a unit of nothing': ('create', ['@/new', '--size', 'G'], USAGE, ['"G"']),
    'resize to no size': ('resize', ['@/v', 'much'], USAGE, ['much']),
    'resize over the limit': ('resize', ['@/v', '7E'], FAILED, ['bytes at most']),
    'resize to less': ('resize', ['@/v', '1M'], FAILED, ['"v"', '--shrink']),
    'resize of nothing': ('resize', ['@/none', '1M'], NOT_FOUND, ['"none"']),
    'snapshot of nothing': ('snapshot', ['@/none', '@/s'], NOT_FOUND, ['"none"']),
    'snapshot into another pool': ('snapshot', ['@/v', '/tmp/s'], USAGE, ['/tmp', 'same pool']),
    'rename of nothing': ('rename', ['@/none', '@/s'], NOT_FOUND, ['"none"']),
    'delete of nothing': ('delete', ['@/none'], NOT_FOUND, ['"none"']),
    'delete of .thinpool': ('delete', ['@/.thinpool'], NOT_FOUND, ['.thinpool']),
    'format of a mounted pool': ('format', ['@POOL', '--size', '1G', '--force'], BUSY,
                                 ['data', 'stop']),
    'check of a mounted pool': ('check', ['@POOL'], BUSY, ['metadata', 'stop']),
    'check of nothing': ('check', ['@/none'], NOT_FOUND, ['@/none/metadata', 'not exist']),
    'too few arguments': ('rename', ['@/v'], USAGE, ['MNT/NEW']),
    'too many arguments': ('delete', ['@/v', '@/other'], USAGE, ['@/other']),
}


@pytest.mark.quick
@pytest.mark.parametrize('name', VERBS)
def test_verb(served, name):
    verb, args, code, words = VERBS[name]

    def fill(text):
        return text.replace('@POOL', str(served.pooldir)).replace('@', str(served.mnt))
    with nothing_changes(served):
        refused(run(THINPOOLCTL, verb, *map(fill, args), check=False, timeout=60), code,
                *map(fill, words))


def test_a_second_daemon(served, bench):
    mnt = bench.tmp / 'mnt'
    mnt.mkdir()
    with nothing_changes(served):
        for args in ([], ['--read-only']):
            refused(run(THINPOOLD, '-f', *args, served.pooldir, mnt, check=False), FAILED,
                    'metadata', 'in use', 'stop')


def test_sizes_in_calls(served):
    v = served.vol('v')
    with nothing_changes(served):
        for size in ((64 << 50) + 1, (1 << 63) - 1):
            with pytest.raises(OSError) as e:
                os.truncate(v, size)
            assert e.value.errno == errno.EFBIG
        with open(v, 'r+b', buffering=0) as f:
            for offset in (64 << 50, (1 << 63) - 2):
                with pytest.raises(OSError) as e:
                    os.pwrite(f.fileno(), b'x', offset)
                assert e.value.errno in (errno.EFBIG, errno.ENOSPC, errno.EINVAL), e.value
                with pytest.raises(OSError) as e:
                    os.posix_fallocate(f.fileno(), offset, 1)
                assert e.value.errno in (errno.EFBIG, errno.ENOSPC), e.value
            for args in ((0, 0), (-1, 10), (0, -1)):
                with pytest.raises(OSError) as e:
                    os.posix_fallocate(f.fileno(), *args)
                assert e.value.errno == errno.EINVAL
            with pytest.raises(OSError) as e:
                os.lseek(f.fileno(), 1 << 40, os.SEEK_DATA)
            assert e.value.errno == errno.ENXIO


# ------------------------------------------------------------------- .thinpool/

LIBC = ctypes.CDLL(None, use_errno=True)
AT_SYMLINK_FOLLOW = 0x400


def renameat2(old, new, flags):
    if LIBC.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), 'renameat2')


OURS = {
    'create in it': (lambda m: open(m / '.thinpool/new', 'x'), 'EPERM'),
    'make a directory in it': (lambda m: os.mkdir(m / '.thinpool/new'), 'EPERM'),
    'make a directory beside it': (lambda m: os.mkdir(m / 'new'), 'EPERM'),
    'make a link in it': (lambda m: os.symlink('x', m / '.thinpool/new'), 'EPERM'),
    'make a device': (lambda m: os.mknod(m / 'null', stat.S_IFCHR | 0o600, os.makedev(1, 3)),
                      'EPERM'),
    'make a fifo': (lambda m: os.mkfifo(m / 'fifo'), 'EPERM'),
    'remove it': (lambda m: os.rmdir(m / '.thinpool'), 'EPERM'),
    'unlink it': (lambda m: os.unlink(m / '.thinpool'), 'EISDIR'),
    'rename it': (lambda m: os.rename(m / '.thinpool', m / 'thinpool'), 'EPERM'),
    'rename over it': (lambda m: os.rename(m / 'v', m / '.thinpool'), 'EISDIR'),
    'exchange with it': (lambda m: renameat2(m / 'v', m / '.thinpool', 2), 'EPERM'),
    'move a volume into it': (lambda m: os.rename(m / 'v', m / '.thinpool/v'), 'EPERM'),
    'whiteout': (lambda m: renameat2(m / 'v', m / 'w', 4), 'EINVAL'),
    'unlink a file of it': (lambda m: os.unlink(m / '.thinpool/status'), 'EPERM'),
    'rename a file of it': (lambda m: os.rename(m / '.thinpool/status', m / 'status'), 'EPERM'),
    'snapshot a file of it': (lambda m: os.link(m / '.thinpool/status', m / 'status'), 'EPERM'),
    'snapshot into it': (lambda m: os.link(m / 'v', m / '.thinpool/v'), 'EPERM'),
    'write to a file of it': (lambda m: os.open(m / '.thinpool/status', os.O_WRONLY), 'EACCES'),
    'truncate a file of it': (lambda m: os.truncate(m / '.thinpool/status', 0), 'EACCES'),
    'change its mode': (lambda m: os.chmod(m / '.thinpool', 0o700), 'EPERM'),
    'change its owner': (lambda m: os.chown(m / '.thinpool', 1, 1), 'EPERM'),
    'change the mode of a volume': (lambda m: os.chmod(m / 'v', 0o4777), 'EPERM'),
    'open what it has not': (lambda m: open(m / '.thinpool/none'), 'ENOENT'),
    'open it as a file': (lambda m: os.open(m / '.thinpool', os.O_RDWR), 'EISDIR'),
    'an attribute of it': (lambda m: os.getxattr(m / '.thinpool', 'user.thinpool.id'), 'ENODATA'),
    'set an attribute of it': (lambda m: os.setxattr(m / '.thinpool', 'user.thinpool.id', b'7'),
                               'EPERM'),
    'set an unknown attribute': (lambda m: os.setxattr(m / 'v', 'user.mine', b'7'), 'ENOTSUP'),
    'remove an attribute': (lambda m: os.removexattr(m / 'v', 'user.thinpool.id'), 'EPERM'),
}


@pytest.mark.quick
@pytest.mark.parametrize('name', OURS)
def test_in_the_mount(served, name):
    call, expected = OURS[name]
    with nothing_changes(served):
        with pytest.raises(OSError) as e:
            call(served.mnt)
        assert errno.errorcode[e.value.errno] == expected


# --------------------------------------------------------------- control socket

def create(**parameters):
    return call(INTERFACE + 'Create', parameters)


NAME = {'name': 'new', 'size': 65536}
# Bytes of a message, error of the answer (the last word), words of its text.
MESSAGES = {
    'nothing': (b'', 'Failed', ''),
    'not JSON': (b'hello daemon', 'Failed', ''),
    'not UTF-8': (b'{"method": "\xff\xfe"}', 'Failed', ''),
    'JSON cut off': (b'{"method": "org.thinpoold.List"', 'Failed', ''),
    'rubbish after the call': (call(INTERFACE + 'List') + b' }', 'Failed', ''),
    'a key twice': (b'{"method": "org.thinpoold.List", "method": "x"}', 'Failed', 'method'),
    'an array': (b'[1, 2]', 'Failed', 'object'),
    'a string': (b'"org.thinpoold.List"', 'Failed', ''),
    'null': (b'null', 'Failed', ''),
    'empty object': (b'{}', 'Failed', 'method'),
    'deep': (b'[' * 30000 + b']' * 30000, 'Failed', 'depth'),
    'deep in the parameters': (b'{"method": "org.thinpoold.List", "parameters": ' +
                               b'{"a":' * 5000 + b'1' + b'}' * 5001, 'Failed', 'depth'),
    'method is a number': (b'{"method": 5}', 'Failed', 'method'),
    'method is null': (b'{"method": null}', 'Failed', 'method'),
    'method is unknown': (call(INTERFACE + 'Explode'), 'MethodNotFound', ''),
    'method of another interface': (call('com.example.List'), 'MethodNotFound', ''),
    'method is empty': (call(''), 'MethodNotFound', ''),
    'method with a NUL': (b'{"method": "org.thinpoold.List\\u0000x"}', 'Failed', ''),
    'method of 60000 bytes': (call('x' * 60000), 'MethodNotFound', ''),
    'parameters are a list': (call(INTERFACE + 'List', [1]), 'InvalidParameter', 'object'),
    'parameters are a number': (call(INTERFACE + 'List', 1), 'InvalidParameter', 'object'),
    'a parameter too many': (call(INTERFACE + 'List', {'all': True}), 'InvalidParameter', 'all'),
    'a parameter with a long name': (call(INTERFACE + 'List', {'\u00e9' * 20000: True}),
                                     'InvalidParameter', 'unknown'),
    'a parameter too few': (create(name='new'), 'InvalidParameter', 'size'),
    'no parameters': (call(INTERFACE + 'Create'), 'InvalidParameter', 'name'),
    'name is a number': (create(name=5, size=1), 'InvalidParameter', 'name'),
    'name is null': (create(name=None, size=1), 'InvalidParameter', 'name'),
    'name is empty': (create(name='', size=1), 'Failed', ''),
    'name with a slash': (create(name='a/b', size=1), 'Failed', '"/"'),
    'name leads out': (create(name='../v', size=1), 'Failed', '"/"'),
    'name with a NUL': (create(name='v\0', size=1), 'Failed', 'not allowed'),
    'name of 256 bytes': (create(name='x' * 256, size=1), 'InvalidParameter', '255'),
    'name is half a surrogate': (b'{"method": "org.thinpoold.Create", "parameters": '
                                 b'{"name": "\\ud800", "size": 1}}', 'Failed', ''),
    'name with control characters': (create(name='a\nb', size=1), 'Failed', 'control'),
    'size is a string': (create(name='new', size='10'), 'InvalidParameter', 'size'),
    'size is negative': (create(name='new', size=-1), 'InvalidParameter', 'size'),
    'size has a fraction': (create(name='new', size=1.5), 'InvalidParameter', 'size'),
    'size over 63 bits': (create(name='new', size=1 << 63), 'Failed', ''),
    'size over the limit': (create(name='new', size=(1 << 63) - 1), 'Failed', 'bytes at most'),
    'flag is a number': (call(INTERFACE + 'Resize', {'name': 'v', 'size': 1, 'shrink': 1}),
                         'InvalidParameter', 'shrink'),
    'delete of nothing': (call(INTERFACE + 'Delete', {'name': 'none'}), 'NotFound', '"none"'),
    'create of what exists': (create(name='v', size=1), 'Exists', '"v"'),
    'shrink without saying so': (call(INTERFACE + 'Resize', {'name': 'v', 'size': 1}), 'Failed',
                                 '--shrink'),
    'description of nothing': (call('org.varlink.service.GetInterfaceDescription',
                                    {'interface': 'x'}), 'InterfaceNotFound', ''),
    'huge': (b'"' + b'x' * 100000, 'Failed', '65536'),
    'huge without an end': (b' ' * 300000, 'Failed', '65536'),
}


@pytest.mark.quick
@pytest.mark.parametrize('name', MESSAGES)
def test_control_message(served, name):
    message, error, word = MESSAGES[name]
    with nothing_changes(served):
        s = control(served)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            s.sendall(message + b'\0')
        text = answer(s)
        reply = json.loads(text)
        assert reply['error'].rpartition('.')[2] == error, reply
        assert word in ' '.join(map(str, reply['parameters'].values())), reply
        assert b'\n' not in text
        if not name.startswith('huge'):  # the connection is as good as before
            s.sendall(call(INTERFACE + 'List') + b'\0')
            assert 'volumes' in json.loads(answer(s))['parameters']
        s.close()


def test_control_clients_that_misbehave(served):
    with nothing_changes(served):
        half = control(served)
        half.sendall(b'{"method": "org.thinpoold.List"')
        assert served.status()['mode'] == 'rw'
        half.shutdown(socket.SHUT_WR)
        assert answer(half) == b'', 'half a message is no message'
        half.close()

        gone = control(served)  # before the answer comes
        gone.sendall(call(INTERFACE + 'List') + b'\0' + call(INTERFACE + 'GetStatus') + b'\0')
        gone.close()

        deaf = control(served)  # asks and asks and never reads
        deaf.settimeout(2)
        with contextlib.suppress(OSError):
            for _ in range(10000):
                deaf.sendall((call(INTERFACE + 'GetStatus') + b'\0') * 100)
        assert served.status()['mode'] == 'rw'
        deaf.close()

        piecemeal = control(served)
        for byte in call(INTERFACE + 'List') + b'\0':
            piecemeal.sendall(bytes([byte]))
        assert b'volumes' in answer(piecemeal)
        piecemeal.close()


def test_a_thousand_connections(served):
    with nothing_changes(served):
        crowd, path = [], os.getxattr(served.mnt, 'user.thinpool.socket').decode()
        try:
            for i in range(1000):
                s = socket.socket(socket.AF_UNIX)  # without a timeout: waits for its turn
                s.connect(path)
                crowd.append(s)
                if i % 100 == 50:
                    assert served.status()['mode'] == 'rw'
            assert served.status()['mode'] == 'rw'
            fds = len(os.listdir(f'/proc/{served.proc.pid}/fd'))
            assert fds < 200, f'{fds} descriptors open'
        finally:
            for s in crowd:
                s.close()


def test_random_messages(served, seed):
    rng = random.Random(seed)
    # The changes lack a parameter, so that no mutation of them can be a good call.
    good = [call(INTERFACE + 'List'), create(name='v'), call(INTERFACE + 'Resize', {'name': 'v'})]
    with nothing_changes(served):
        for _ in range(300):
            message = bytearray(rng.choice(good))
            for _ in range(rng.randrange(1, 6)):
                at = rng.randrange(len(message))
                message[at:at + rng.randrange(3)] = rng.randbytes(rng.randrange(3)).replace(b'\0',
                    b'x')
            s = control(served)
            s.sendall(bytes(message) + b'\0')
            reply = json.loads(answer(s))
            assert 'error' in reply or 'volumes' in reply['parameters'], (message, reply)
            s.close()


# ------------------------------------------------------------------ mount points

def test_mount_points(bench):
    pooldir = bench.format('pool', '64M', '--metadata-size', '2M')
    before = snapshot_of(pooldir)

    def refuse(mnt, *words, foreground=('-f',)):
        refused(run(THINPOOLD, *foreground, pooldir, mnt, check=False, timeout=60), FAILED,
                str(mnt), *words)
        assert snapshot_of(pooldir) == before

    full = bench.tmp / 'full'
    full.mkdir()
    (full / 'precious').touch()
    file = bench.tmp / 'file'
    file.touch()
    for foreground in (('-f',), ()):
        refuse(full, 'not empty', 'precious', foreground=foreground)
        refuse(file, 'not a directory', foreground=foreground)
        refuse(file / 'x', 'ot a directory', foreground=foreground)
        refuse(bench.tmp / 'none', 'make this directory', foreground=foreground)
        refuse(pooldir, 'not empty', foreground=foreground)
    loop = bench.tmp / 'loop'
    loop.symlink_to('loop')
    refuse(loop, 'symbolic links')

    other = bench.format('other', '64M', '--metadata-size', '2M')
    d = bench.serve(other)
    refuse(d.mnt, 'mounted')
    assert d.status()['mode'] == 'rw'
    # A daemon that died leaves a mount behind that answers nobody.
    d.proc.kill()
    d.proc.wait()
    refuse(d.mnt, 'umount')
    run('umount', d.mnt)
    d.log.close()

    empty = bench.tmp / 'empty'
    empty.mkdir()
    tmpfs = bench.mount('none', 'tmpfs', '-t', 'tmpfs')
    refuse(tmpfs, 'mounted')
    bench.umount(tmpfs)
    bench.check_clean(pooldir)


# --------------------------------------------------- volumes taken away from users

def test_a_volume_deleted_while_open_looped_and_written(bench):
    pooldir = bench.format('pool', '256M')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '128M')
    lo = bench.loop(d.vol('v'))
    run('mkfs.ext4', '-q', '-E', 'nodiscard', lo.dev)
    mnt = bench.mount(lo.dev, 'ext4')
    payload = random.Random(1).randbytes(4 * MIB)
    (mnt / 'before').write_bytes(payload)
    os.sync()
    refused(bench.ctl('delete', d.vol('v'), check=False), BUSY, '"v"', 'in use')

    fd = os.open(d.vol('v'), os.O_RDWR)
    os.unlink(d.vol('v'))
    assert not d.vol('v').exists() and d.list() == []
    with pytest.raises(OSError) as e:
        os.open(d.vol('v'), os.O_RDWR)
    assert e.value.errno == errno.ENOENT
    # Its users notice nothing.
    (mnt / 'after').write_bytes(payload)
    fsync(mnt / 'after')
    assert (mnt / 'before').read_bytes() == payload and (mnt / 'after').read_bytes() == payload
    assert os.fstat(fd).st_size == 128 * MIB
    # Its name is free for another, and a snapshot of what has no name is refused.
    bench.ctl('create', d.vol('v'), '--size', '1M')
    assert os.stat(d.vol('v')).st_size == MIB
    assert LIBC.linkat(-100, f'/proc/self/fd/{fd}'.encode(), -100, os.fsencode(d.vol('snap')),
                       AT_SYMLINK_FOLLOW)
    assert ctypes.get_errno() == errno.ENOENT
    used = d.status()['data_used']
    assert used >= 8 * MIB
    bench.umount(mnt)
    lo.detach()
    os.pwrite(fd, b'still here', 0)
    os.fsync(fd)
    assert os.pread(fd, 10, 0) == b'still here'
    os.close(fd)
    wait_for('its space to come back', lambda: d.status()['data_used'] < MIB)
    assert [v['name'] for v in d.list()] == ['v']
    d.stop()
    bench.check_clean(pooldir)


def test_a_volume_deleted_while_open_is_gone_after_a_crash(bench):
    pooldir = bench.format('pool', '64M', '--metadata-size', '2M')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '10M')
    fd = os.open(d.vol('v'), os.O_RDWR)
    os.write(fd, bytes(range(256)) * 4096)
    os.fsync(fd)
    os.unlink(d.vol('v'))
    d.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    d = bench.serve(pooldir)
    assert d.list() == []
    wait_for('its space to come back', lambda: d.status()['data_used'] < MIB)
    d.stop()
    bench.check_clean(pooldir)


def fsync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
