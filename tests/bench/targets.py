# SPDX-License-Identifier: GPL-2.0-or-later
"""What the benchmarks compare: thinpoold and its references, each as a file that fio can use.

A target knows how to come into three states, so that a job finds the same everywhere:

    mapped    every block written before
    holes     nothing written yet
    shared    every block written before, then a snapshot taken
"""
import json
import os
import pathlib
import shutil
import socket
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path(os.environ.get('TP_BUILD', HERE.parent.parent / 'build/release')).resolve()
THINPOOLD = BUILD / 'src/daemon/thinpoold'
THINPOOLCTL = BUILD / 'src/ctl/thinpoolctl'
BARE = BUILD / 'tests/bench/bare'

START_SECONDS = 30

OFFERS_IO_URING = pathlib.Path('/sys/module/fuse/parameters/enable_uring')
io_uring = False  # FUSE over io_uring, for all of our servers


def offer_io_uring():
    """From now on, to all mounts; returns what undoes it."""
    global io_uring
    before = OFFERS_IO_URING.read_text()
    OFFERS_IO_URING.write_text('Y')
    io_uring = True
    return lambda: OFFERS_IO_URING.write_text(before)


def run(*args, **kw):
    args = [str(a) for a in args]
    p = subprocess.run(args, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kw)
    if p.returncode:
        raise RuntimeError(f'{" ".join(args)}: exit {p.returncode}\n{p.stdout}')
    return p.stdout


def wait_for(what, condition, proc=None):
    end = time.monotonic() + START_SECONDS
    while not condition():
        if proc and proc.poll() is not None:
            raise RuntimeError(f'{what}: the server ended with {proc.returncode}')
        if time.monotonic() > end:
            raise RuntimeError(f'waited {START_SECONDS} s in vain: {what}')
        time.sleep(0.01)


def fill(path, size):
    """Write all of it once, past the page cache."""
    run('fio', '--name=fill', f'--filename={path}', f'--size={size}', '--direct=1', '--ioengine=libaio',
        '--rw=write', '--bs=1m', '--iodepth=4', '--end_fsync=1', '--refill_buffers')


def cpu_seconds(pid):
    """Of all threads of a process, user and system."""
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


class Server:
    """A process that serves a mount."""

    def __init__(self, mount, *args):
        self.mount = pathlib.Path(mount)
        self.proc = subprocess.Popen([str(a) for a in args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(f'{args[0]} on {mount}', lambda: os.path.ismount(self.mount), self.proc)

    def stop(self):
        if os.path.ismount(self.mount):
            subprocess.run(['umount', str(self.mount)], check=False, stderr=subprocess.DEVNULL)
        if os.path.ismount(self.mount):
            subprocess.run(['umount', '-l', str(self.mount)], check=False)
        try:
            self.proc.wait(5)
        except subprocess.TimeoutExpired:
            self.proc.terminate()
            self.proc.wait()


class Target:
    server = None

    def pid(self):
        return self.server.proc.pid if self.server else None

    def close(self):
        if self.server:
            self.server.stop()
            self.server = None


class Thinpoold(Target):
    """A thin volume.  @conf: lines for pool.conf."""

    def __init__(self, dir, size, conf='', capacity='64G'):
        self.dir, self.size, self.n = dir, size, 0
        dir.mkdir()
        (dir / 'mnt').mkdir()
        run(THINPOOLCTL, 'format', dir / 'pool', '--size', capacity)
        (dir / 'pool/pool.conf').write_text(f'[fuse]\nio_uring = {"yes" if io_uring else "no"}\n{conf}')
        self.start()

    def start(self):
        self.server = Server(self.dir / 'mnt', THINPOOLD, '-f', self.dir / 'pool', self.dir / 'mnt')

    def status(self):
        return json.loads((self.dir / 'mnt/.thinpool/status.json').read_text())

    def new_volume(self, size=None):
        """An empty one, the only one; what the old ones had has gone back to the host."""
        for v in (self.dir / 'mnt').iterdir():
            if v.is_file():
                v.unlink()
        run('sync', '-f', self.dir / 'mnt')
        wait_for('the removal of volumes', lambda: self.status()['data_used'] <= 2 << 20)
        self.n += 1
        path = self.dir / 'mnt' / f'v{self.n}'
        run(THINPOOLCTL, 'create', path, '--size', size or self.size)
        return path

    def mapped(self):
        path = self.new_volume()
        fill(path, self.size)
        self.path = path
        return path

    def holes(self):
        return self.new_volume()

    def shared(self):
        for v in (self.dir / 'mnt').glob('snapshot*'):
            v.unlink()
        self.n += 1
        os.link(self.path, self.dir / 'mnt' / f'snapshot{self.n}')
        return self.path


class File(Target):
    """A file of the host, preallocated when mapped."""

    def __init__(self, dir, size):
        self.dir, self.size, self.path = dir, size, dir / 'file'
        dir.mkdir()

    def mapped(self):
        self.holes()
        run('fallocate', '-l', self.size, self.path)
        fill(self.path, self.size)
        return self.path

    def holes(self):
        self.path.unlink(missing_ok=True)
        run('truncate', '-s', self.size, self.path)
        return self.path


class Bare(Target):
    """The same file through the bare server; @null: no file, answers from memory."""

    def __init__(self, dir, size, null=False):
        self.dir, self.null = dir, null
        self.file = File(dir, size)
        (dir / 'mnt').touch()

    def serve(self, make):
        self.close()
        path = make()
        what = ['--null', str(os.stat(path).st_size)] if self.null else [path]
        if io_uring:
            what = ['--io-uring', '320', *what]
        self.server = Server(self.dir / 'mnt', BARE, *what, self.dir / 'mnt')
        return self.dir / 'mnt'

    def mapped(self):
        return self.serve(self.file.mapped if not self.null else self.file.holes)

    def holes(self):
        return self.serve(self.file.holes)


class Qcow2(Target):
    """qemu-storage-daemon's FUSE export of a qcow2 image with 64k clusters."""

    def __init__(self, dir, size, extended_l2=False):
        self.dir, self.size, self.image = dir, size, dir / 'image.qcow2'
        self.options = 'cluster_size=64k' + (',extended_l2=on' if extended_l2 else '')
        dir.mkdir()
        (dir / 'mnt').touch()

    def create(self, size=None, more_options=''):
        self.close()
        self.image.unlink(missing_ok=True)
        run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', self.options + more_options, self.image,
            size or self.size)
        return self.start()

    def start(self):
        qmp = self.dir / 'qmp'
        qmp.unlink(missing_ok=True)
        self.server = Server(
            self.dir / 'mnt', 'qemu-storage-daemon',
            '--blockdev', f'file,node-name=file,filename={self.image},cache.direct=on,aio=io_uring,discard=unmap',
            '--blockdev', 'qcow2,node-name=disk,file=file,l2-cache-size=67108864,cache.direct=on,discard=unmap',
            '--chardev', f'socket,id=qmp,path={qmp},server=on,wait=off', '--monitor', 'chardev=qmp',
            '--export', f'fuse,id=export,node-name=disk,mountpoint={self.dir / "mnt"},writable=on')
        return self.dir / 'mnt'

    def close(self):
        if self.server:  # a umount alone does not end it
            self.server.proc.terminate()
            self.server.proc.wait()
        super().close()

    def mapped(self):
        path = self.create()
        fill(path, self.size)
        return path

    def holes(self):
        return self.create()

    def snapshot(self, name):
        """An internal snapshot, taken by the running server.  Returns seconds."""
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(self.dir / 'qmp'))
            f = s.makefile('rw')
            f.readline()
            for command in ({'execute': 'qmp_capabilities'},
                            {'execute': 'blockdev-snapshot-internal-sync',
                             'arguments': {'device': 'disk', 'name': name}}):
                begin = time.monotonic()
                f.write(json.dumps(command) + '\n')
                f.flush()
                while 'return' not in (answer := json.loads(f.readline())):
                    if 'error' in answer:
                        raise RuntimeError(answer['error']['desc'])
            return time.monotonic() - begin

    def snapshot_by_tool(self, name):
        """The same while nobody serves the image."""
        self.close()
        begin = time.monotonic()
        run('qemu-img', 'snapshot', '-c', name, self.image)
        taken = time.monotonic() - begin
        self.start()
        return taken

    def shared(self):
        self.close()
        for line in run('qemu-img', 'snapshot', '-l', self.image).splitlines()[2:]:
            run('qemu-img', 'snapshot', '-d', line.split()[1], self.image)
        run('qemu-img', 'snapshot', '-c', 'shared', self.image)
        return self.start()


class Reflink(Target):
    """A file on XFS (on a loop device over a file of the host), snapshotted by cp --reflink."""

    def __init__(self, dir, size):
        self.dir, self.size, self.loop = dir, size, None
        (dir / 'mnt').mkdir(parents=True)
        run('truncate', '-s', '64G', dir / 'xfs')
        run('mkfs.xfs', '-q', '-m', 'reflink=1', dir / 'xfs')
        self.loop = run('losetup', '--find', '--show', '--direct-io=on', dir / 'xfs').split()[-1]
        run('mount', self.loop, dir / 'mnt')
        self.path = dir / 'mnt/file'

    def mapped(self):
        self.path.unlink(missing_ok=True)
        run('truncate', '-s', self.size, self.path)
        fill(self.path, self.size)
        return self.path

    def shared(self):
        snapshot = self.dir / 'mnt/snapshot'
        snapshot.unlink(missing_ok=True)
        run('cp', '--reflink=always', self.path, snapshot)
        run('sync', '-f', snapshot)
        return self.path

    def close(self):
        if self.loop:
            subprocess.run(['umount', str(self.dir / 'mnt')], check=False)
            run('losetup', '-d', self.loop)
            self.loop = None


class Loop:
    """ext4 on a loop device over a file of a target."""

    def __init__(self, path, where):
        self.where = pathlib.Path(where)
        self.where.mkdir(exist_ok=True)
        self.dev = run('losetup', '--find', '--show', '--direct-io=on', path).split()[-1]
        run('mkfs.ext4', '-q', '-F', '-E', 'lazy_itable_init=0,lazy_journal_init=0,nodiscard', self.dev)
        run('mount', self.dev, self.where)

    def close(self):
        subprocess.run(['umount', str(self.where)], check=False)
        run('losetup', '-d', self.dev)
        backing = pathlib.Path('/sys/block') / os.path.basename(self.dev) / 'loop/backing_file'
        wait_for(f'{self.dev} to let go', lambda: not backing.exists())


def remove(dir):
    shutil.rmtree(dir, ignore_errors=True)
