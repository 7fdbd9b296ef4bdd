# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of .thinpool: metrics, config, version."""
import os
import re

import pytest

from conftest import KIB, MIB, THINPOOLD, run, wait_for

NAME = r'[a-zA-Z_:][a-zA-Z0-9_:]*'
SAMPLE = re.compile(rf'({NAME})(?:\{{(.*)\}})? (\S+)$')
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|$)')


def parse_labels(text):
    labels, at = {}, 0
    while at < len(text):
        m = LABEL.match(text, at)
        assert m and m[1] not in labels, text
        labels[m[1]] = m[2].replace('\\n', '\n').replace('\\"', '"').replace('\\\\', '\\')
        at = m.end()
    return labels


def family_of(name, types):
    for end in '_bucket', '_sum', '_count':
        if name.endswith(end) and types.get(name[:-len(end)]) == 'histogram':
            return name[:-len(end)]
    return name


def parse_metrics(text):
    """The rules of the text format 0.0.4, as its page lists them; {(name, labels): value}."""
    types, helps, samples, current, closed = {}, set(), {}, None, set()
    assert text.endswith('\n')
    for line in text.splitlines():
        assert line == line.strip() and line, repr(line)
        if line.startswith('# HELP '):
            name = line.split()[2]
            assert name not in helps and len(line.split()) > 3, f'help: {line}'
            helps.add(name)
            continue
        if line.startswith('# TYPE '):
            _, _, name, kind = line.split()
            assert name not in types and kind in ('counter', 'gauge', 'histogram'), line
            assert name in helps, f'no help before {line}'
            assert (kind == 'counter') == name.endswith('_total'), f'naming: {line}'
            types[name] = kind
            continue
        m = SAMPLE.match(line)
        assert m, f'no sample: {line}'
        family = family_of(m[1], types)
        assert family in types, f'no type for {line}'
        assert family.startswith('thinpoold_')
        if family != current:
            assert family not in closed, f'the samples of {family} do not stand together'
            closed.add(current)
            current = family
        key = m[1], tuple(sorted(parse_labels(m[2] or '').items()))
        assert key not in samples, f'twice: {line}'
        samples[key] = float(m[3])
    assert types.keys() <= {family_of(n, types) for n, _ in samples} | \
        {'thinpoold_volume_size_bytes', 'thinpoold_volume_used_bytes'}, 'a type without samples'
    check_histograms(types, samples)
    return samples


def check_histograms(types, samples):
    for family in (n for n, kind in types.items() if kind == 'histogram'):
        series = {}
        for (name, labels), value in samples.items():
            if name == family + '_bucket':
                labels = dict(labels)
                le = float(labels.pop('le'))
                series.setdefault(tuple(sorted(labels.items())), []).append((le, value))
        assert series
        for labels, buckets in series.items():
            assert buckets == sorted(buckets) and buckets[-1][0] == float('inf'), labels
            counts = [n for _, n in buckets]
            assert counts == sorted(counts), f'{labels} is not cumulative'
            assert counts[-1] == samples[family + '_count', labels]
            assert (family + '_sum', labels) in samples


def metrics_of(d):
    return parse_metrics((d.mnt / '.thinpool/metrics').read_text())


def value(samples, name, **labels):
    return samples['thinpoold_' + name, tuple(sorted(labels.items()))]


@pytest.mark.quick
def test_metrics_count_what_is_done(bench):
    d = bench.serve(bench.format('pool', '1G'))
    before = metrics_of(d)
    assert value(before, 'info', version=run(THINPOOLD, '--version').stdout.split()[1]) == 1
    name = 'odd "name" with \\ and é'
    bench.ctl('create', d.vol(name), '--size', '10M')
    with open(d.vol(name), 'r+b', buffering=0) as f:
        for i in range(100):
            os.pwrite(f.fileno(), b'x' * 64 * KIB, i * 64 * KIB)
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(f.fileno(), 64 * KIB, 0)
        run('fallocate', '-p', '-o', '0', '-l', MIB, d.vol(name))
    after = metrics_of(d)
    status = d.status()

    def grown(name, **labels):
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown('requests_total', op='write') == 100
    assert grown('request_bytes_total', op='write') == 100 * 64 * KIB
    assert grown('request_duration_seconds_count', op='write') == 100
    assert grown('request_duration_seconds_count', op='flush') >= 1
    assert grown('request_duration_seconds_count', op='discard') == 1
    assert 0 < grown('request_duration_seconds_sum', op='write') < 600
    assert grown('requests_total', op='read') >= 1
    assert grown('blocks_provisioned_total') == 100
    assert grown('commits_total') >= 1
    assert grown('fuse_requests_total') >= 100
    assert value(after, 'aborts_total') == 0
    assert value(after, 'mode', mode='rw') == 1 and value(after, 'mode', mode='ro') == 0
    assert value(after, 'volumes') == 1
    assert value(after, 'volume_size_bytes', volume=name) == 10 * MIB
    assert value(after, 'volume_used_bytes', volume=name) == 84 * 64 * KIB
    assert value(after, 'data_size_bytes') == status['data_total']
    assert value(after, 'metadata_size_bytes') == status['metadata_total']
    for queue in 'worker_queue_length', 'space_queue_length', 'command_queue_length', \
            'requests_in_flight':
        assert value(after, queue) == 0, queue
    d.stop()


def test_metrics_show_writers_that_wait_for_space(bench):
    """A pool that is smaller than its volume."""
    pooldir = bench.format('pool', '1M')
    (pooldir / 'pool.conf').write_text('[pool]\nautoextend_threshold = 100%\n')
    d = bench.serve(pooldir)
    bench.ctl('create', d.vol('v'), '--size', '10M')
    writer = bench.popen('dd', 'if=/dev/zero', f'of={d.vol("v")}', 'bs=64K', 'conv=notrunc')
    wait_for('a writer to wait', lambda: value(metrics_of(d), 'space_queue_length'))
    samples = metrics_of(d)
    assert value(samples, 'requests_in_flight') >= 1
    assert value(samples, 'mode', mode='out_of_data_space') == 1
    # It need not have room to end: the writer gets an error.
    d.proc.terminate()
    writer.wait()
    d.proc.wait()


@pytest.mark.quick
def test_config_shows_what_is_in_force(bench):
    pooldir = bench.format('pool', '1G')
    (pooldir / 'pool.conf').write_text('[pool]\ncommit_interval = 2.5\n')
    conf = bench.tmp / 'conf'
    conf.write_text('[pool]\ncache_size = 8M\ncommit_interval = 3\n[fuse]\nworkers = 3\n')
    d = bench.serve(pooldir, '-c', conf)
    shown = (d.mnt / '.thinpool/config').read_text()
    assert 'cache_size = 8M\n' in shown and 'commit_interval = 2.5\n' in shown
    assert 'workers = 3\n' in shown
    assert shown == run(THINPOOLD, '--check-config', '-c', conf, pooldir).stdout
    # It is a configuration file itself.
    copy = bench.tmp / 'copy'
    copy.write_text(shown)
    assert run(THINPOOLD, '--check-config', '-c', copy).stdout == shown
    d.stop()


@pytest.mark.quick
def test_version_is_the_program_s(bench):
    d = bench.serve(bench.format('pool', '1G'))
    assert (d.mnt / '.thinpool/version').read_text() == run(THINPOOLD, '--version').stdout
    assert sorted(os.listdir(d.mnt / '.thinpool')) == ['config', 'metrics', 'status',
                                                       'status.json', 'version']
    for name in os.listdir(d.mnt / '.thinpool'):
        with pytest.raises(PermissionError):
            os.open(d.mnt / '.thinpool' / name, os.O_RDWR)
    d.stop()


@pytest.mark.quick
def test_attributes_cost_writes_nothing(bench):
    """The kernel may ask for security.capability before every write: it does not ask us."""
    d = bench.serve(bench.format('pool', '1G'))
    bench.ctl('create', d.vol('v'), '--size', '10M')
    with open(d.vol('v'), 'r+b', buffering=0) as f:
        f.write(b'x' * 4096)
        before = value(metrics_of(d), 'fuse_requests_total')
        for i in range(1000):
            os.pwrite(f.fileno(), b'y' * 4096, i * 4096)
        asked = value(metrics_of(d), 'fuse_requests_total') - before
    assert 1000 <= asked < 1050, f'{asked} requests for 1000 writes'
    d.stop()
