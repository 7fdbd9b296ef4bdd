# SPDX-License-Identifier: GPL-2.0-or-later
"""A metadata or data device that fails on demand, below the real daemon.

The file that has the bytes is served by nbdkit, whose error filter refuses reads or writes while a
trigger file exists; nbdfuse shows that as a file again, and POOLDIR/metadata leads there:

    thinpoold -> POOLDIR/metadata -> FUSE file -> nbdfuse -> nbdkit, error filter -> backing file

A test asks for one by bench.failing_metadata(pooldir), before it serves the pool:

    device = bench.failing_metadata(pooldir)
    d = bench.serve(pooldir)
    device.fail('write')            # every write from now on; also 'read', or both at once
    device.heal()
    device.corrupt(7)               # block 7 reads as something else, without an error
    device.remove()                 # the pool is stopped: its metadata is a plain file again

bench.failing_data(pooldir) does the same to POOLDIR/data; the other device is not touched.  Flushes
do not fail here (the filter has no such thing), but vanish() fails all there is, for good.
"""
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

from conftest import run, wait_for

METADATA_BLOCK = 4096
KINDS = {'read': 'pread', 'write': 'pwrite'}
END_SECONDS = 20


class FailingDevice:
    """`path`, a file with the content of `backing`, whose I/O fails when it is told to."""

    def __init__(self, backing, errno_name='EIO'):
        self.backing = pathlib.Path(backing)
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix='failing-', dir=self.backing.parent))
        self.mnt = self.dir / 'mnt'
        self.mnt.mkdir()
        self.path = self.mnt / 'device'
        self.socket = self.dir / 'socket'
        self.log_path = self.dir / 'log'
        self.connection = None
        self.procs = []
        self.link = None
        with open(self.log_path, 'ab') as log:
            self.log = log
            try:
                self._start(errno_name)
            except BaseException:
                self.close()
                raise

    def _start(self, errno_name):
        triggers = [f'error-{op}-rate=100%' for op in KINDS.values()]
        triggers += [f'error-{op}-file={self._trigger(kind)}' for kind, op in KINDS.items()]
        self._popen('nbdkit', '--foreground', '--unix', self.socket, '--filter=error', 'file',
                    self.backing, f'error={errno_name}', *triggers)
        wait_for('nbdkit', self.socket.exists)
        self._popen('nbdfuse', self.path, f'nbd+unix:///?socket={self.socket}')
        wait_for('nbdfuse', lambda: self.procs[1].poll() is not None or os.path.ismount(self.mnt))
        assert os.path.ismount(self.mnt), self.log_path.read_text()
        self.connection = os.minor(os.stat(self.mnt).st_dev)

    def _popen(self, *args):
        # A session of their own: what a terminal sends to the test does not reach them.
        self.procs.append(subprocess.Popen([str(a) for a in args], stdin=subprocess.DEVNULL,
                                           stdout=self.log, stderr=self.log,
                                           start_new_session=True))

    def _trigger(self, kind):
        return self.dir / f'fail-{kind}'

    # ---- what a test does with it ----

    def fail(self, *kinds):
        """Reads, writes or both fail from the next one on, until heal()."""
        for kind in kinds:
            assert kind in KINDS
            self._trigger(kind).touch()

    def heal(self):
        for kind in KINDS:
            self._trigger(kind).unlink(missing_ok=True)

    def failures(self, kind):
        """How many requests of a kind were refused so far."""
        text = self.log_path.read_text(errors='replace')
        return text.count(f'injecting EIO error into {KINDS[kind]}')

    def corrupt(self, block):
        """Turn the bits behind a block's header; its former content, for restore()."""
        with open(self.backing, 'r+b') as f:
            f.seek(block * METADATA_BLOCK)
            before = f.read(METADATA_BLOCK)
            f.seek(block * METADATA_BLOCK)
            f.write(before[:16] + bytes(b ^ 0xff for b in before[16:]))
        return before

    def restore(self, block, content):
        with open(self.backing, 'r+b') as f:
            f.seek(block * METADATA_BLOCK)
            f.write(content)

    # ---- as the metadata of a pool ----

    def attach(self, pooldir, name='metadata'):
        """Let the pool find its metadata (or data) here."""
        self.link = pathlib.Path(pooldir) / name
        self.link.symlink_to(self.path)

    def remove(self):
        """The pool is stopped; what was written becomes its metadata (or data) file."""
        assert self.link
        self.close()
        self.link.unlink()
        self.backing.rename(self.link)
        self.link = None

    def vanish(self):
        """Nothing answers any more."""
        for p in reversed(self.procs):
            p.kill()
            p.wait()

    # ---- the end ----

    def abort(self):
        """Free whoever waits for it, whatever state it is in."""
        for p in self.procs:
            if p.poll() is None:
                p.kill()
        try:
            with open(f'/sys/fs/fuse/connections/{self.connection}/abort', 'w') as f:
                f.write('1')
        except OSError:
            pass  # never mounted, or gone

    def close(self):
        """Everything that was written is in the backing file; also after a half-done start."""
        self.heal()
        if os.path.ismount(self.mnt):
            run('umount', self.mnt, check=False)
        end = time.monotonic() + END_SECONDS
        for p in reversed(self.procs):  # nbdfuse ends by itself, nbdkit must be told
            if p is self.procs[0]:
                p.terminate()
            try:
                p.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        # Not os.path.ismount(), which knows nothing of a mount whose server is gone.
        if self.connection is not None and str(self.mnt) in pathlib.Path('/proc/self/mounts').read_text():
            self.abort()
            run('umount', '-l', self.mnt, check=False)
        shutil.rmtree(self.dir, ignore_errors=True)
