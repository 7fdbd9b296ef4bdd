#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A second daemon goes on with the mount of one that was killed, on kernels that send requests again
and, pretended, on those that do not.

Usage: test-fuse-adopt.py DAEMON [TEST...]      TAP on standard output; exit 77 without root or FUSE.
"""
import os
import signal
import socket
import subprocess

from fuse_harness import Mount, check, eventually, main, mount, mounted, same

SIZE = 1 << 20


class Successor(Mount):
    """A daemon on the mount of another, which was killed."""

    def __init__(self, before, fds, *more):
        super().__init__('none', 2, 'rw', f'make=v:{SIZE}', f'adopt={fds[0]},{fds[1]}', *more,
                         path=before.path, pass_fds=fds)
        self.connection = before.connection
        mounted.append(self)
        for fd in fds:
            os.close(fd)
        same(self.first, 'ready')


def first_daemon(*more):
    ours, theirs = socket.socketpair()
    m = mount('none', 2, 'rw', f'make=v:{SIZE}', f'keep={theirs.fileno()}', *more,
              pass_fds=[theirs.fileno()])
    _, fds, _, _ = socket.recv_fds(ours, 1, 2)
    for s in ours, theirs:
        s.close()
    return m, fds


def kill(m):
    m.p.send_signal(signal.SIGKILL)
    m.p.wait()


def reader_of(m):
    """A process that has the volume open and waits for a read."""
    m('defer 1')
    m('hold 1')
    p = subprocess.Popen(['dd', f"if={m.f('v')}", 'bs=4096', 'count=1', 'status=none'],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    eventually(lambda: m.counts()['open'] == 1 and waiting(m) >= 1, 'the read')
    return p


def waiting(m):
    with open(f'/sys/fs/fuse/connections/{m.connection}/waiting') as f:
        return int(f.read())


def test_a_request_in_flight_comes_again():
    m, fds = first_daemon()
    reader = reader_of(m)
    kill(m)
    with Successor(m, fds) as n:
        out, err = reader.communicate(timeout=60)
        same((out, err, reader.returncode), (bytes(4096), b'', 0))
        eventually(lambda: n.counts()['open'] == 0, 'the close')


def test_a_request_in_flight_fails_where_it_cannot_come_again():
    m, fds = first_daemon('noresend')
    reader = reader_of(m)
    kill(m)
    with Successor(m, fds, 'noresend') as n:
        out, err = reader.communicate(timeout=60)
        same((out, reader.returncode), (b'', 1))
        check(b'Input/output error' in err, err)
        eventually(lambda: n.counts()['open'] == 0, 'the close')
        with open(n.f('v'), 'rb') as f:
            same(f.read(), bytes(SIZE))
        eventually(lambda: waiting(n) == 0, 'nothing hangs')


def test_nothing_fails_that_was_answered():
    for more in [], ['noresend']:
        m, fds = first_daemon(*more)
        p = subprocess.Popen(['sh', '-c', 'exec 3<"$0"; read go; exec dd bs=4096 count=1 <&3',
                              m.f('v')], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        eventually(lambda: m.counts()['open'] == 1, 'the open')
        kill(m)
        with Successor(m, fds, *more) as n:
            same(n.counts()['open'], 1, 'what was open is open')
            same(p.communicate(b'go\n', timeout=60)[0], bytes(4096))
            eventually(lambda: n.counts()['open'] == 0, 'the close')


def test_a_volume_that_is_no_more_is_not_another():
    m, fds = first_daemon()
    m('create w 4096')
    p = subprocess.Popen(['sh', '-c', 'exec 3<"$0"; read go; exec dd bs=4096 count=1 <&3', m.f('w')],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    eventually(lambda: m.counts()['open'] == 1, 'the open')
    kill(m)
    with Successor(m, fds) as n:  # which has no w
        same(n.counts()['open'], 0)
        check(b'Stale' in p.communicate(b'go\n', timeout=60)[1])


if __name__ == '__main__':
    main(globals())
