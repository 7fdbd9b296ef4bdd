# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel is the judge: its dm-thin opens, serves and changes what thinpoold wrote.

One boot of the VM does all pools: emulated, it is the boots and the hashing that take the time.
"""
import random

import pytest

from conftest import KIB, MIB, disk, manifests, run, sound, sum_of, unpack

KERNEL_SNAP, KERNEL_NEW = 700, 701
NEW_SIZE = 4 * MIB
BLOCK_SIZES = [64 * KIB, 192 * KIB, MIB]

# What the kernel does with the pool "$1" on disks $2 and $3 with blocks of $4 sectors: tells
# what it finds, works on volume $5 of $6 sectors, deletes volume $7, tells again.
GUEST = '''
. /vm/guest.sh
sums() {
	for t in /dev/mapper/t[0-9]*; do
		sum=$(sha256sum <$t)
		echo "$1 $2 ${t##*/t} ${sum%% *} $(dmsetup status ${t##*/})"
	done
}
judge() {
	local name=$1 id sectors
	meta=$2 data=$3
	rm -f /tmp/thins
	pool $4 || return
	while read -r id sectors; do thin $id $sectors || return; done </vm/$name
	sums before $name
	[ "$5" ] || { close_all; return; }
	fill t$5 1000 700 written-by-the-kernel &&
		snap SNAP $5 $6 &&
		fill t$5 64 300 after-the-snapshot &&
		fill tSNAP 40 100 in-the-snapshot &&
		discard t$5 4096 2048 &&
		new NEW NEW_SECTORS &&
		fill tNEW 500 1300 a-new-volume &&
		dmsetup remove t$7 && msg delete $7 || return
	sums after $name
	close_all
}
'''.replace('NEW_SECTORS', str(NEW_SIZE // 512)).replace('SNAP', str(KERNEL_SNAP)).replace(
    'NEW', str(KERNEL_NEW))


class Image:
    """One pool that the kernel is to judge."""

    def __init__(self, bench, name, pooldir):
        self.name, self.pooldir = name, pooldir
        self.volumes = {}  # id: (size in bytes rounded up to sectors, SHA-256)
        self.names = {}
        self.block_size = 0
        self.change = ''

    def note(self, d, listed):
        """What thinpoold serves now."""
        self.block_size = d.status()['block_size']
        for v in listed:
            size = -(-v['size'] // 512) * 512
            self.volumes[v['id']] = (size, sum_of(d.vol(v['name']), size))
            self.names[v['name']] = v['id']

    def table(self):
        return ''.join(f'{i} {size // 512}\n' for i, (size, _) in self.volumes.items())


def write_at(f, model, offset, data):
    f.seek(offset)
    f.write(data)
    model[offset:offset + len(data)] = data


def written_by_us(bench, block, rng):
    """A pool with a catalog, snapshots, a snapshot of one, discards, deletes and odd sizes."""
    name = f'ours{block >> 10}k'
    pooldir = bench.format(name, '96M', '--block-size', str(block), '--metadata-size', '8M')
    d = bench.serve(pooldir)
    size = 12 * MIB + 5000
    v = d.vol('root')
    bench.ctl('create', v, '--size', str(size))
    bench.ctl('create', d.vol('empty'), '--size', '3M')
    bench.ctl('create', d.vol('gone'), '--size', '8M')
    model = bytearray(size)
    with open(v, 'r+b', buffering=0) as f, open(d.vol('gone'), 'r+b') as gone:
        gone.write(rng.randbytes(2 * MIB))
        for round_ in range(3):
            for _ in range(12):
                offset = rng.randrange(size - 300 * KIB)
                write_at(f, model, offset, rng.randbytes(rng.choice([1, 700, 4096, 70000, 300000])))
            offset = rng.randrange(size // 4096 - 500) * 4096
            run('fallocate', '-p', '-o', offset, '-l', 400 * 4096, v)
            model[offset:offset + 400 * 4096] = bytes(400 * 4096)
            bench.ctl('snapshot', v, d.vol(f'snap{round_}'), *(['--read-only'] if round_ else []))
        bench.ctl('snapshot', d.vol('snap0'), d.vol('snap0-again'))
        with open(d.vol('snap0-again'), 'r+b') as g:
            g.write(rng.randbytes(MIB))
    bench.ctl('delete', d.vol('gone'))
    bench.ctl('delete', d.vol('snap1'))
    assert v.read_bytes() == model
    image = Image(bench, name, pooldir)
    image.note(d, d.list())
    d.stop()
    sound(bench, pooldir)
    assert image.block_size == block
    root = image.names['root']
    image.change = f'{root} {image.volumes[root][0] // 512} {image.names["snap0-again"]}'
    return image


def written_by_both(bench, name):
    """A pool of the kernel's that thinpoold has worked on."""
    manifest = next(m for m in manifests() if m['name'] == name)
    pooldir = unpack(bench, manifest, name)
    d = bench.serve(pooldir)
    first = manifest['volumes'][0]
    v = d.vol(f'thin-{first["id"]}')
    with open(v, 'r+b') as f:
        f.seek(100000)
        f.write(b'thinpoold ' * 40000)
    run('fallocate', '-p', '-o', MIB, '-l', MIB, v)
    bench.ctl('snapshot', v, d.vol('thin-9999'))
    with open(v, 'r+b') as f:
        f.seek(300000)
        f.write(b'again ' * 20000)
    image = Image(bench, name, pooldir)
    image.note(d, d.list())
    d.stop()
    sound(bench, pooldir)
    return image


def reports(output):
    """{(when, pool, id): sum}"""
    lines = [x.split() for x in output.splitlines() if x.startswith(('before ', 'after '))]
    return {(x[0], x[1], int(x[2])): x[3] for x in lines}


def check_after(bench, image, found):
    """thinpoold serves what the kernel made of its pool, and works on it."""
    sound(bench, image.pooldir)
    d = bench.serve(image.pooldir)
    listed = {v['id']: v['name'] for v in d.list()}
    expected = {i: s for (when, name, i), s in found.items() if (when, name) == ('after', image.name)}
    assert set(listed) == set(expected), 'volumes'
    for name, i in image.names.items():
        assert listed.get(i, name) == name, 'the catalog has kept the names'
    sizes = {i: size for i, (size, _) in image.volumes.items()}
    sizes[KERNEL_SNAP], sizes[KERNEL_NEW] = sizes[image.names['root']], NEW_SIZE
    for i, name in listed.items():
        assert sum_of(d.vol(name), sizes[i]) == expected[i], (image.name, name)
    # The volumes that the kernel added are ours now.
    adopted = d.vol(listed[KERNEL_SNAP])
    with open(adopted, 'r+b') as f:
        f.write(b'thinpoold' * 1000)
    bench.ctl('rename', adopted, d.vol('adopted'))
    bench.ctl('delete', d.vol(listed[KERNEL_NEW]))
    assert sum_of(d.vol('root'), sizes[image.names['root']]) == expected[image.names['root']]
    d.stop()
    sound(bench, image.pooldir)
    d = bench.serve(image.pooldir)
    assert d.vol('adopted').read_bytes()[:9000] == b'thinpoold' * 1000
    d.stop()


@pytest.mark.timeout(900)
def test_the_kernel_agrees(bench, vm, seed):
    rng = random.Random(seed)
    ours = [written_by_us(bench, block, rng) for block in BLOCK_SIZES]
    both = [written_by_both(bench, name) for name in ('metasnap', 'discard192k')]
    script, disks, files = GUEST, [], {}
    for n, image in enumerate(ours + both):
        table = bench.tmp / f'{image.name}.table'
        table.write_text(image.table())
        files[f'/vm/{image.name}'] = table
        disks += [image.pooldir / 'metadata', image.pooldir / 'data']
        script += (f'judge {image.name} {disk(2 * n)} {disk(2 * n + 1)} {image.block_size // 512} '
                   f'{image.change} || {{ dmesg | tail -20; exit 1; }}\n')
    script += "dmesg | grep -E 'device-mapper: (thin|space|block|btree|trans)|BUG|WARNING'"
    output = vm.run(script + ' && exit 1; exit 0\n', disks, files)
    print(output)
    found = reports(output)
    for image in ours + both:
        for i, (_, expected) in image.volumes.items():
            assert found[('before', image.name, i)] == expected, (image.name, i)
    for image in ours:
        check_after(bench, image, found)
    for image in both:
        sound(bench, image.pooldir)
