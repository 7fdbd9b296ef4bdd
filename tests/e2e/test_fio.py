# SPDX-License-Identifier: GPL-2.0-or-later
"""fio's own verification, on four volumes and their snapshots at once, two behind loop devices."""
import pytest

from conftest import MIB, run


def job(name, filename, seed, **options):
    lines = [f'[{name}]', f'filename={filename}', f'randseed={seed}']
    return lines + [f'{k}={v}' for k, v in options.items()]


COMMON = dict(ioengine='libaio', direct=1, rw='randrw', rwmixread=40, iodepth=16, verify='crc32c',
              verify_fatal=1, do_verify=1, verify_backlog=512, serialize_overlap=1)


def write_jobs(path, sections, **extra):
    lines = ['[global]']
    for k, v in {**COMMON, **extra}.items():
        lines.append(f'{k}={v}')
    for s in sections:
        lines += s
    path.write_text('\n'.join(lines) + '\n')


@pytest.mark.timeout(600)
def test_fio_verifies_volumes_and_snapshots_at_once(bench, seed):
    size = 96 * MIB
    d = bench.serve(bench.format('pool', '3G'))
    for i in range(4):
        bench.ctl('create', d.vol(f'v{i}'), '--size', '1G')
        # A base content, so that snapshots share something.
        run('dd', 'if=/dev/urandom', f'of={d.vol(f"v{i}")}', 'bs=1M', f'count={size // MIB}',
            'conv=notrunc,fsync', 'status=none')
        bench.ctl('snapshot', d.vol(f'v{i}'), d.vol(f's{i}'))

    targets = {}
    for i in range(4):
        for kind in 'vs':
            name = f'{kind}{i}'
            targets[name] = d.vol(name)
            if i < 2 and kind == 'v':
                targets[name] = bench.loop(d.vol(name)).dev

    sections = []
    for n, (name, target) in enumerate(sorted(targets.items())):
        mixes = [dict(bsrange='4k-256k'), dict(bsrange='512-64k', blockalign=512),
                 dict(bs='4k'), dict(bsrange='4k-256k', blockalign=512)]
        sections.append(job(name, target, seed + n, size=size, io_size=size // 2, **mixes[n % 4]))
    jobs = bench.tmp / 'jobs.fio'
    write_jobs(jobs, sections)
    run('fio', jobs, timeout=500, cwd=bench.tmp)

    # Discards between writes: what is written after a trim must verify as well.
    sections = [job(f'trim{i}', targets[f'v{i}'], seed + 100 + i, size=size, io_size=size // 4,
                    rw='randtrimwrite', bs='64k', verify=0, do_verify=0, verify_backlog=0)
                for i in range(2)]
    write_jobs(jobs, sections)
    run('fio', jobs, timeout=500, cwd=bench.tmp)
    sections = [job(f'again{i}', targets[f'v{i}'], seed + 200 + i, size=size, io_size=size // 4,
                    bsrange='4k-64k') for i in range(2)]
    write_jobs(jobs, sections)
    run('fio', jobs, timeout=500, cwd=bench.tmp)

    for lo in bench.loops:
        lo.detach()
    pooldir = d.pooldir
    d.stop()
    bench.check_clean(pooldir)
