#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What works on a file system or a volume while its pool fails, in a process of its own.

    pressure_worker.py sync DIRECTORY LOG SEED PREFIX
        Write files, make each durable, and only then note its name and sum in LOG.  Ends at the first error.
    pressure_worker.py read VOLUME LOG SEED
        Read blocks of the volume past the kernel's cache.  Each must be what fixed_block() says.
    pressure_worker.py files DIRECTORY LOG SEED SUMS
        Read files of the file system, which must be as SUMS (a log of "sync") says.  They are opened before
        anything fails: a directory gets new blocks meanwhile, and a path that leads through one that is lost
        with the open transaction is rightly an error until the file system has replayed its log.
    pressure_worker.py hog FILE
        Read a large file through the kernel's cache, again and again.
    pressure_worker.py enter GROUP COMMAND...
        Become another program, in this control group.

"read" and "files" note in LOG how often they were right, as a number, or why they ended.
"""
import hashlib
import mmap
import os
import pathlib
import random
import sys

BLOCK = 64 << 10
FILES = 500  # how many a process has open


def fixed_block(number):
    return random.Random(number).randbytes(BLOCK)


def note(fd, text):
    os.pwrite(fd, text.ljust(200).encode(), 0)


def sync(directory, log, seed, prefix):
    rng = random.Random(int(seed))
    where = os.open(directory, os.O_RDONLY)
    out = open(log, 'a')
    number = 0
    while True:
        name, data = f'{prefix}-{number}', rng.randbytes(rng.randrange(1, 100_000))
        number += 1
        try:
            fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(fd, data)
            os.fsync(fd)
            os.close(fd)
            os.fsync(where)
        except OSError:
            return  # not noted, so nobody will look for it
        out.write(f'{name} {hashlib.sha256(data).hexdigest()}\n')
        out.flush()


def repeat(log, look):
    fd = os.open(log, os.O_WRONLY | os.O_CREAT)
    count = 0
    while True:
        try:
            wrong = look()
        except OSError as e:
            wrong = str(e)
        if wrong:
            note(fd, f'wrong: {wrong}')
            return
        count += 1
        note(fd, str(count))


def read(volume, log, seed):
    rng = random.Random(int(seed))
    fd = os.open(volume, os.O_RDONLY | os.O_DIRECT)
    blocks = os.fstat(fd).st_size // BLOCK
    sums = [hashlib.sha256(fixed_block(i)).digest() for i in range(blocks)]
    page = mmap.mmap(-1, BLOCK)

    def look():
        i = rng.randrange(blocks)
        os.preadv(fd, [page], i * BLOCK)
        return None if hashlib.sha256(page).digest() == sums[i] else f'block {i}'

    repeat(log, look)


def files(directory, log, seed, sums):
    rng = random.Random(int(seed))
    lines = pathlib.Path(sums).read_text().splitlines()
    known = [line.split() for line in rng.sample(lines, min(len(lines), FILES))]
    opened = [(os.open(os.path.join(directory, name), os.O_RDONLY), name, want) for name, want in known]

    def look():
        fd, name, want = rng.choice(opened)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        return None if hashlib.sha256(data).hexdigest() == want else name

    repeat(log, look)


def hog(path):
    with open(path, 'rb', buffering=0) as f:
        while f.read(1 << 20) or not f.seek(0):
            pass


def enter(group, *command):
    pathlib.Path(group, 'cgroup.procs').write_text(str(os.getpid()))
    os.execvp(command[0], command)


if __name__ == '__main__':
    {'sync': sync, 'read': read, 'files': files, 'hog': hog, 'enter': enter}[sys.argv[1]](*sys.argv[2:])
