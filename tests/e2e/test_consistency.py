# SPDX-License-Identifier: GPL-2.0-or-later
"""Content seen through the mount against models: snapshots under writers, and any byte range."""
import ctypes
import os
import random
import struct
import threading
import time

import pytest

from conftest import KIB, MIB, run

FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, offset, length):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


WRITERS, CELLS = 4, 64
CELL_BYTES = 80 * KIB  # not a multiple of the data block, so cells straddle blocks


def writer(fd, number, stop, errors, acknowledged):
    """
    Round after round, write the round's number into every cell in order.  A consistent cut
    therefore shows some round r in the first cells and r - 1 in the rest, nothing else.
    """
    base = number * CELLS * CELL_BYTES
    number_of_round = 0
    try:
        while not stop.is_set():
            number_of_round += 1
            for cell in range(CELLS):
                os.pwrite(fd, struct.pack('<QQ', number_of_round, cell) * 256,
                          base + cell * CELL_BYTES)
                acknowledged[number] = (number_of_round, cell)
    except OSError as e:
        errors.append(e)


def cut_of(fd, number):
    base = number * CELLS * CELL_BYTES
    rounds = []
    for cell in range(CELLS):
        raw = os.pread(fd, 4096, base + cell * CELL_BYTES)
        values = set(struct.iter_unpack('<QQ', raw))
        assert len(values) == 1, f'writer {number}, cell {cell}: torn within one write: {values}'
        value, where = values.pop()
        assert value == 0 or where == cell, f'writer {number}: cell {cell} shows cell {where}'
        rounds.append(value)
    return rounds


@pytest.mark.timeout(300)
@pytest.mark.quick
def test_a_snapshot_under_writers_is_a_consistent_cut(bench):
    d = bench.serve(bench.format('pool', '2G'))
    bench.ctl('create', d.vol('v'), '--size', '64M')
    fd = os.open(d.vol('v'), os.O_RDWR)
    stop, errors, acknowledged = threading.Event(), [], {}
    threads = [threading.Thread(target=writer, args=(fd, n, stop, errors, acknowledged))
               for n in range(WRITERS)]
    for t in threads:
        t.start()
    before, after = [], []
    try:
        for i in range(60):
            next_at = time.monotonic() + 0.05
            before.append(dict(acknowledged))
            os.link(d.vol('v'), d.vol(f's{i}'))
            after.append(dict(acknowledged))
            while time.monotonic() < next_at:
                time.sleep(0.005)
    finally:
        stop.set()
        for t in threads:
            t.join()
        os.close(fd)
    assert not errors

    def check():
        distinct = set()
        for i in range(60):
            sfd = os.open(d.vol(f's{i}'), os.O_RDONLY)
            for n in range(WRITERS):
                rounds = cut_of(sfd, n)
                distinct.add(tuple(rounds))
                turn = next((c for c in range(CELLS) if rounds[c] != rounds[0]), CELLS)
                assert set(rounds[:turn]) == {rounds[0]}
                assert all(r == rounds[0] - 1 for r in rounds[turn:]), (i, n, rounds)
                # What was acknowledged before the snapshot began is in it.
                done_round, done_cell = before[i].get(n, (0, -1))
                if done_cell >= 0:
                    assert rounds[done_cell] >= done_round, (i, n, rounds, before[i])
            os.close(sfd)
        return len(distinct)

    assert check() > 20, 'the writers hardly ran: the test shows nothing'
    pooldir = d.pooldir
    d.stop()
    bench.check_clean(pooldir)
    d = bench.serve(pooldir)
    check()
    d.stop()


class Model:
    """A volume and a bytearray that must stay equal."""

    def __init__(self, path, size):
        self.path, self.data = path, bytearray(size)
        self.fd = os.open(path, os.O_RDWR)

    def span(self, rng):
        size = len(self.data)
        offset = rng.randrange(size)
        if rng.random() < 0.3:
            offset -= offset % 4096
        length = rng.choice([1, 7, 511, 512, 1000, 4096, 20_000, 65_536, 200_000, 1 << 20])
        return offset, min(rng.randrange(1, length + 1), size - offset)

    def write(self, rng):
        offset, length = self.span(rng)
        data = rng.randbytes(length)
        assert os.pwrite(self.fd, data, offset) == length
        self.data[offset:offset + length] = data

    def clear(self, mode, rng):
        offset, length = self.span(rng)
        if rng.random() < 0.5:
            length = min(length * 8, len(self.data) - offset)
        fallocate(self.fd, mode, offset, length)
        self.data[offset:offset + length] = bytes(length)

    def allocate(self, rng):
        offset, length = self.span(rng)
        fallocate(self.fd, FALLOC_KEEP_SIZE, offset, length)

    def truncate(self, rng):
        size = rng.randrange(1, 12 * MIB)
        os.ftruncate(self.fd, size)
        if size < len(self.data):
            del self.data[size:]
        else:
            self.data.extend(bytes(size - len(self.data)))

    def check_some(self, rng):
        offset, length = self.span(rng)
        got = os.pread(self.fd, length, offset)
        assert got == self.data[offset:offset + length], (self.path, offset, length)

    def check_all(self):
        assert os.fstat(self.fd).st_size == len(self.data)
        got = os.pread(self.fd, len(self.data) + 1, 0) if len(self.data) < MIB else b''
        if not got:
            got = b''.join(os.pread(self.fd, MIB, o) for o in range(0, len(self.data), MIB))
        if got != bytes(self.data):
            where = next(i for i, (a, b) in enumerate(zip(got, self.data)) if a != b)
            pytest.fail(f'{self.path}: first difference at byte {where} of {len(self.data)}')

    def check_holes(self):
        """What lseek calls a hole reads as zeros."""
        end = len(self.data)
        offset = 0
        while offset < end:
            try:
                data = os.lseek(self.fd, offset, os.SEEK_DATA)
            except OSError:
                data = end
            assert data >= offset
            assert not any(self.data[offset:data]), (self.path, offset, data)
            if data >= end:
                break
            offset = os.lseek(self.fd, data, os.SEEK_HOLE)
            assert offset > data


@pytest.mark.timeout(400)
@pytest.mark.quick
@pytest.mark.parametrize('block_size', ['64K', '192K'])
def test_any_byte_range_against_a_model(bench, seed, block_size):
    rng = random.Random(seed)
    d = bench.serve(bench.format('pool', '1G', '--block-size', block_size))
    bench.ctl('create', d.vol('v0'), '--size', str(6 * MIB + 1234))
    models = [Model(d.vol('v0'), 6 * MIB + 1234)]
    for step in range(int(os.environ.get('TP_OPS', 1500))):
        m = rng.choice(models)
        kind = rng.random()
        if kind < 0.45:
            m.write(rng)
        elif kind < 0.60:
            m.check_some(rng)
        elif kind < 0.72:
            m.clear(FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, rng)
        elif kind < 0.82:
            m.clear(FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, rng)
        elif kind < 0.87:
            m.allocate(rng)
        elif kind < 0.91:
            m.truncate(rng)
        elif kind < 0.95:
            os.fsync(m.fd)
        elif kind < 0.98 and len(models) < 6:
            name = f'v{step + 1}'
            bench.ctl('snapshot', m.path, d.vol(name))
            copy = Model(d.vol(name), 0)
            copy.data = bytearray(m.data)
            models.append(copy)
        else:
            m.check_holes()
        if step % 250 == 249:
            for m in models:
                m.check_all()
    for m in models:
        m.check_all()
        m.check_holes()
        os.close(m.fd)
    pooldir = d.pooldir
    d.stop()
    bench.check_clean(pooldir)
    d = bench.serve(pooldir)
    for m in models:
        m.fd = os.open(m.path, os.O_RDWR)
        m.check_all()
        os.close(m.fd)
    d.stop()
