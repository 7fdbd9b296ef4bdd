# SPDX-License-Identifier: GPL-2.0-or-later
"""Metadata that fails under the real daemon: what becomes of the pool and of who writes to it."""
import errno
import os

import pytest

from conftest import KIB, wait_for

BLOCK = 64 * KIB
ALIGNMENT = 4 * KIB


def expect_errno(number, what, *args):
    with pytest.raises(OSError) as e:
        what(*args)
    assert e.value.errno == number, e.value


def mode(d):
    return d.status()['mode']


def block_of(byte):
    return bytes([byte]) * BLOCK


@pytest.mark.quick
def test_a_commit_that_cannot_be_written_leaves_what_was_synced(bench):
    pooldir = bench.format('pool', '64M')
    device = bench.failing_metadata(pooldir)
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '8M')
    fd = os.open(d.vol('v'), os.O_RDWR)
    os.pwrite(fd, block_of(1), 0)
    os.fsync(fd)
    device.fail('write')
    os.pwrite(fd, block_of(2), BLOCK)
    expect_errno(errno.EIO, os.fsync, fd)
    assert device.failures('write') > 0
    assert mode(d) == 'ro'
    os.close(fd)
    device.heal()
    d.stop()
    device.remove()
    d = bench.serve(pooldir)
    assert d.vol('v').read_bytes()[:2 * BLOCK] == block_of(1) + bytes(BLOCK)
    d.stop()
