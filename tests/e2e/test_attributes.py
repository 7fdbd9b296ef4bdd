# SPDX-License-Identifier: GPL-2.0-or-later
"""Extended attributes of volumes: what they tell, what can be set, what they cost."""
import errno
import json
import os
import time

import pytest

from conftest import KIB, MIB, run

PREFIX = 'user.thinpool.'


def attributes(path):
    return {n[len(PREFIX):]: os.getxattr(path, n).decode() for n in os.listxattr(path)}


def refused(code, what, *args):
    with pytest.raises(OSError) as e:
        what(*args)
    assert e.value.errno == code, e.value


@pytest.mark.quick
def test_attributes_tell_what_list_tells(bench):
    d = bench.serve(bench.format('pool', '1G', '--block-size', '128K'))
    bench.ctl('create', d.vol('v'), '--size', '100M')
    with open(d.vol('v'), 'r+b') as f:
        f.write(b'x' * MIB)
    bench.ctl('snapshot', d.vol('v'), d.vol('s'), '--read-only')
    listed = {v['name']: v for v in d.list()}
    for name in 'v', 's':
        a, v = attributes(d.vol(name)), listed[name]
        assert int(a['id']) == v['id']
        assert int(a['used']) == v['used'] == MIB
        assert int(a['mapped']) == v['used'] // (128 * KIB)
        assert a['read_only'] == str(int(v['read_only']))
        assert abs(int(a['created']) - time.time()) < 600
    assert 'origin' not in attributes(d.vol('v'))
    assert attributes(d.vol('s'))['origin'] == attributes(d.vol('v'))['id']
    # getfattr(1) without a pattern shows what begins with "user."
    assert f'{PREFIX}used="{MIB}"' in run('getfattr', '-d', '--absolute-names', d.vol('v')).stdout
    d.stop()


@pytest.mark.quick
def test_read_only_can_be_set(bench):
    d = bench.serve(bench.format('pool', '1G'))
    bench.ctl('create', d.vol('v'), '--size', '10M')
    fd = os.open(d.vol('v'), os.O_RDWR)
    os.pwrite(fd, b'before', 0)
    run('setfattr', '-n', PREFIX + 'read_only', '-v', '1', d.vol('v'))
    assert attributes(d.vol('v'))['read_only'] == '1'
    refused(errno.EROFS, os.pwrite, fd, b'after', 0)
    refused(errno.EROFS, os.open, d.vol('v'), os.O_RDWR)
    refused(errno.EROFS, os.truncate, d.vol('v'), 5)
    os.close(fd)
    # It is kept with the volume.
    d.stop()
    d = bench.serve(d.pooldir)
    assert json.loads(bench.ctl('list', d.mnt, '--json').stdout)[0]['read_only'] is True
    refused(errno.EROFS, os.open, d.vol('v'), os.O_RDWR)
    run('setfattr', '-n', PREFIX + 'read_only', '-v', '0', d.vol('v'))
    with open(d.vol('v'), 'r+b') as f:
        assert f.read(6) == b'before'
        f.write(b'after!')
    for value in b'2', b'', b'yes':
        refused(errno.EINVAL, os.setxattr, d.vol('v'), PREFIX + 'read_only', value)
    refused(errno.EPERM, os.setxattr, d.vol('v'), PREFIX + 'id', b'7')
    refused(errno.EPERM, os.removexattr, d.vol('v'), PREFIX + 'read_only')
    refused(errno.EOPNOTSUPP, os.setxattr, d.vol('v'), 'user.mine', b'1')
    d.stop()
    bench.check_clean(d.pooldir)


def test_a_read_only_mount_sets_nothing(bench):
    d = bench.serve(bench.format('pool', '1G'))
    bench.ctl('create', d.vol('v'), '--size', '10M')
    d.stop()
    d = bench.serve(d.pooldir, '--read-only')
    refused(errno.EROFS, os.setxattr, d.vol('v'), PREFIX + 'read_only', b'1')
    d.stop()


def test_a_pool_without_names_keeps_no_attribute(bench):
    """Made by the kernel's own tools: nothing is stored in it that they do not know."""
    pooldir = bench.format('pool', '1G')
    xml = bench.tmp / 'empty.xml'
    xml.write_text('<superblock uuid="" time="0" transaction="0" version="2" data_block_size="128" '
                   'nr_data_blocks="16384"><device dev_id="5" mapped_blocks="1" transaction="0" '
                   'creation_time="0" snap_time="0"><single_mapping origin_block="0" '
                   'data_block="3" time="0"/></device></superblock>')
    run('thin_restore', '-i', xml, '-o', pooldir / 'metadata')
    d = bench.serve(pooldir)
    assert attributes(d.vol('thin-5')) == {'id': '5', 'used': '65536', 'mapped': '1',
                                           'read_only': '0'}
    refused(errno.EOPNOTSUPP, os.setxattr, d.vol('thin-5'), PREFIX + 'read_only', b'1')
    d.stop()
