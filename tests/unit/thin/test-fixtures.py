#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools that the real kernel wrote are read exactly, and can be worked on.

For each tests/fixtures/*.tar.zst: what thin-dumper prints is the dump that is in the archive; the
manifest's superblock fields and volumes agree; the volumes' content, put together from the
mappings printed, has the sums that the kernel's own thin devices gave.  Then snapshots are made,
written to, discarded from and deleted again: the tools find nothing wrong, all but the clock is
as before, and a held metadata snapshot has not changed at all.

Usage: test-fixtures.py DUMPER FIXTURES THINMETA
"""
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile

DUMPER, FIXTURES, THINMETA = sys.argv[1:4]
LARGEST_VOLUME = 1 << 29  # bytes hashed at most


def run(*command, status=0):
    p = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if p.returncode != status:
        raise AssertionError(f'{" ".join(map(str, command))}: status {p.returncode}, expected '
                             f'{status}\n{p.stdout}{p.stderr}')
    return p.stdout


def attributes(line):
    return dict(re.findall(r'(\w+)="([^"]*)"', line))


def parse(xml):
    """-> superblock attributes, {id: (attributes, [(vblock, dblock, length, time)])}"""
    superblock, devices, mappings = None, {}, None
    for line in xml.splitlines():
        a = attributes(line)
        if '<superblock' in line:
            superblock = a
        elif '<device' in line:
            mappings = []
            devices[int(a['dev_id'])] = (a, mappings)
        elif '<single_mapping' in line:
            mappings.append((int(a['origin_block']), int(a['data_block']), 1, int(a['time'])))
        elif '<range_mapping' in line:
            mappings.append((int(a['origin_begin']), int(a['data_begin']), int(a['length']),
                             int(a['time'])))
    return superblock, devices


def volume_sums(data, mappings, block_bytes, size):
    """SHA-256 of the whole volume (None if too large), and of its mapped blocks in order."""
    whole, mapped, at = hashlib.sha256(), hashlib.sha256(), 0
    too_large = size > LARGEST_VOLUME
    zeros = bytes(1 << 20)

    def hole(length):
        while length > 0 and not too_large:
            whole.update(zeros[:min(length, len(zeros))])
            length -= len(zeros)

    for vblock, dblock, length, _ in mappings:
        hole(vblock * block_bytes - at)
        for i in range(length):
            begin = (vblock + i) * block_bytes
            data.seek((dblock + i) * block_bytes)
            block = data.read(block_bytes)
            mapped.update(block)
            if not too_large:
                whole.update(block[:max(0, size - begin)])
        at = (vblock + length) * block_bytes
    hole(size - at)
    return None if too_large else whole.hexdigest(), mapped.hexdigest()


def check_manifest(manifest, superblock, devices, data):
    for key, value in manifest['superblock'].items():
        assert superblock[key] == str(value), f'superblock {key}: {superblock[key]}, not {value}'
    block_bytes = int(superblock['data_block_size']) * 512
    compared = 0
    for volume in manifest['volumes']:
        assert volume['id'] in devices, f'volume {volume["id"]} is missing'
        size = volume['sectors'] * 512
        whole, mapped = volume_sums(data, devices[volume['id']][1], block_bytes, size)
        if 'sha256' in volume and whole:
            assert whole == volume['sha256'], f'content of volume {volume["id"]}'
            compared += 1
        if 'mapped_sha256' in volume:
            assert mapped == volume['mapped_sha256'], f'mapped blocks of volume {volume["id"]}'
            compared += 1
    assert compared, 'no volume was compared'


def without_clock(xml):
    """Less what snapshots change for good."""
    xml = re.sub(r' snap_time="\d+"', '', xml)
    return re.sub(r'(<superblock[^>]*?) time="\d+"', r'\1', xml)


def check_exercise(meta, xml, has_snap, needs_check):
    if needs_check:
        before = hashlib.sha256(meta.read_bytes()).digest()
        run(DUMPER, '--exercise', meta, status=3)
        assert hashlib.sha256(meta.read_bytes()).digest() == before, 'a byte was written'
        return
    snap = run('thin_dump', '-m', meta) if has_snap else None
    run(DUMPER, '--exercise', meta)
    assert without_clock(run(DUMPER, meta)) == without_clock(xml), 'not as before'
    run('thin_check', meta)
    run('python3', THINMETA, 'check', '--strict', meta)
    if has_snap:
        assert run('thin_dump', '-m', meta) == snap, 'the metadata snapshot has changed'


def check_fixture(archive, directory):
    name = archive.name.split('.')[0]
    run('tar', '--zstd', '-xf', archive, '-C', directory)
    meta = directory / 'meta.img'
    xml = run(DUMPER, meta)
    expected = (directory / 'dump.xml').read_text()
    assert xml == expected, 'dump differs'
    superblock, devices = parse(xml)
    manifest = json.loads((archive.parent / (name + '.json')).read_text())
    with open(directory / 'data.img', 'rb') as data:
        check_manifest(manifest, superblock, devices, data)
    check_exercise(meta, xml, (directory / 'metadata-snap.xml').exists(),
                   superblock['flags'] != '0')


def main():
    archives = sorted(pathlib.Path(FIXTURES).glob('*.tar.zst'))
    print(f'1..{len(archives)}')
    failed = 0
    for nr, archive in enumerate(archives, 1):
        with tempfile.TemporaryDirectory(prefix='thin-fixture-') as directory:
            try:
                check_fixture(archive, pathlib.Path(directory))
                print(f'ok {nr} - {archive.name}', flush=True)
            except (AssertionError, KeyError) as e:
                failed += 1
                print(f'not ok {nr} - {archive.name}')
                print('\n'.join('# ' + line for line in repr(e).split('\\n')[:20]), flush=True)
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main())
