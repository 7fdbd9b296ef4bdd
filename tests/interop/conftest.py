# SPDX-License-Identifier: GPL-2.0-or-later
"""The workbench of the end-to-end tests, the real kernel in a VM, and the pools it once wrote.

Environment: VM_CACHE, where the VM's kernel and root are kept (default: .cache/ in the source
tree, which git ignores); it is made of Debian packages on first use.
"""
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import sys

import pytest

_e2e = pathlib.Path(__file__).resolve().parent.parent / 'e2e/conftest.py'
_spec = importlib.util.spec_from_file_location('workbench', _e2e)
_workbench = importlib.util.module_from_spec(_spec)
sys.modules['workbench'] = _workbench
_spec.loader.exec_module(_workbench)
from workbench import *  # noqa: E402,F401,F403 (its fixtures and hooks)
from workbench import ROOT, run  # noqa: E402

VM = ROOT / 'tests/tools/kernel-vm'
FIXTURES = ROOT / 'tests/fixtures'
sys.path.insert(0, str(ROOT / 'tests/tools'))


class VirtualMachine:
    """Debian's kernel with dm-thin, for the time of one script."""

    def __init__(self):
        self.env = dict(os.environ)
        self.env.setdefault('VM_CACHE', str(ROOT / '.cache/kernel-vm'))
        run(VM / 'vm', 'build', env=self.env, timeout=580)

    def run(self, script, disks, files, timeout=500):
        """Its output.  disks: paths, which become /dev/vda ...; files: {path in the guest: path}"""
        args = [x for d in disks for x in ('--disk', d)]
        args += ['--add', f'{VM}/guest.sh:/vm/guest.sh']
        args += [x for guest, host in files.items() for x in ('--add', f'{host}:{guest}')]
        return run(VM / 'vm', 'run', *args, '--timeout', timeout, '--', script, env=self.env,
                   timeout=timeout + 20).stdout


@pytest.fixture(scope='session')
def vm():
    if not shutil.which('qemu-system-x86_64'):
        pytest.skip('needs qemu-system-x86_64')
    return VirtualMachine()


def disk(nr):
    """The guest's name of a disk."""
    return f'/dev/vd{chr(ord("a") + nr)}'


def manifests():
    return [json.loads(p.read_text()) for p in sorted(FIXTURES.glob('*.json'))]


def unpack(bench, manifest, name='pool'):
    """A pool directory with the fixture's images."""
    pooldir = bench.tmp / name
    pooldir.mkdir()
    run('tar', '--zstd', '-xf', FIXTURES / (manifest['name'] + '.tar.zst'), '-C', pooldir)
    (pooldir / 'meta.img').rename(pooldir / 'metadata')
    (pooldir / 'data.img').rename(pooldir / 'data')
    # A full pool is to fail at once here.
    (pooldir / 'pool.conf').write_text('[pool]\nno_space = error\n')
    return pooldir


def sum_of(path, size=None):
    """SHA-256 of a file as if it had this size: what lies behind its end is zeros."""
    h, done = hashlib.sha256(), 0
    with open(path, 'rb', buffering=0) as f:
        while chunk := f.read(1 << 20 if size is None else min(1 << 20, size - done)):
            h.update(chunk)
            done += len(chunk)
    while size is not None and done < size:
        h.update(bytes(min(1 << 20, size - done)))
        done += min(1 << 20, size - done)
    return h.hexdigest()


def mapped_sum_of(path):
    """SHA-256 of what is mapped, in order."""
    h, at = hashlib.sha256(), 0
    with open(path, 'rb', buffering=0) as f:
        while True:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                return h.hexdigest()
            end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            os.lseek(f.fileno(), at, os.SEEK_SET)
            while at < end:
                chunk = f.read(min(1 << 20, end - at))
                h.update(chunk)
                at += len(chunk)


def sound(bench, pooldir):
    """All judges find it clean, and ours not even a leak."""
    bench.check_clean(pooldir)
    assert 'leak' not in bench.ctl('check', pooldir).stdout
