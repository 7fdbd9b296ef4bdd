# SPDX-License-Identifier: GPL-2.0-or-later
"""The manuals tell everything that the programs have: verbs, options, keys, exit codes, signals,
files; and they are well formed."""
import re
import subprocess

import pytest

from conftest import ROOT, THINPOOLCTL, THINPOOLD, run

pytestmark = [pytest.mark.no_root, pytest.mark.quick]
MANUALS = sorted(p for p in (ROOT / 'man').iterdir() if p.suffix in ('.5', '.7', '.8'))


def text(name):
    return (ROOT / 'man' / name).read_text()


def section(name, title):
    return re.search(rf'^\.Sh {title}\n(.*?)(?=^\.Sh |\Z)', text(name), re.M | re.S)[1]


def long_options(*program):
    return set(re.findall(r'--([a-z][a-z-]*)', run(*program, '--help').stdout))


def documented_options(source):
    return set(re.findall(r'Fl -([a-z][a-z-]*)', source))


def verbs():
    return re.findall(r'^  ([a-z][a-z-]*) ', run(THINPOOLCTL, '--help').stdout, re.M)


@pytest.mark.parametrize('path', MANUALS, ids=lambda p: p.name)
def test_a_manual_is_well_formed(path):
    p = subprocess.run(['mandoc', '-Tlint', '-Wwarning', path], text=True, capture_output=True)
    # A list of the manuals installed here is no matter of ours.
    complaints = [line for line in p.stdout.splitlines() if 'outdated mandoc.db' not in line]
    assert not complaints, '\n'.join(complaints)


@pytest.mark.parametrize('path', MANUALS, ids=lambda p: p.name)
def test_a_manual_has_examples_and_refers_to_manuals_that_exist(path):
    assert 'EXAMPLES\n' in path.read_text()
    ours = {p.name for p in MANUALS}
    for name, number in re.findall(r'^\.(?:Pq see )?Xr (thinpool\S*) (\d)', path.read_text(), re.M):
        assert f'{name}.{number}' in ours


def test_thinpoolctl_tells_every_verb_with_its_options():
    synopsis = section('thinpoolctl.8', 'SYNOPSIS')
    description = section('thinpoolctl.8', 'DESCRIPTION')
    forms = {}
    for form in synopsis.split('.Nm thinpoolctl\n')[1:]:
        verb = re.match(r'\.Cm (\S+)', form)[1]
        forms.setdefault(verb, set()).update(documented_options(form))
    assert set(forms) == set(verbs())
    for verb in verbs():
        assert re.search(rf'^\.It Cm {verb}\b', description, re.M), f'{verb} is not described'
        assert forms[verb] == long_options(THINPOOLCTL, verb) - {'help', 'usage', 'version'}, verb
        assert f'thinpoolctl {verb} ' in run(THINPOOLCTL, verb, '--help').stdout
    assert {'help', 'usage', 'version'} <= documented_options(description)


def test_thinpoold_tells_every_option():
    description = section('thinpoold.8', 'DESCRIPTION')
    assert documented_options(description) == long_options(THINPOOLD)
    for short in re.findall(r'^  -([a-zA-Z]),', run(THINPOOLD, '--help').stdout, re.M):
        assert f'Fl {short}' in description


def test_every_key_and_its_default_is_told():
    source = text('thinpoold.conf.5')
    shown = run(THINPOOLD, '--check-config', '-c', '/dev/null').stdout
    keys = re.findall(r'^(\w+) = (.*)$', shown, re.M)
    for key, default in keys:
        entry = re.search(rf'^\.It Cm {key}\n(.*?)(?=^\.It |^\.El)', source, re.M | re.S)
        assert entry, f'{key} is not described'
        assert f'Default: {default}' in entry[1], f'{key}: the default is {default}'
    told = re.findall(r'^\.It Cm (\w+)$', source, re.M)
    assert sorted(told) == sorted(k for k, _ in keys)


def test_every_exit_code_is_told():
    header = (ROOT / 'include/thinpoold/control.h').read_text()
    codes = set(re.findall(r'CTL_\w+ = (\d+)', header))
    assert set(re.findall(r'^\.It (\d+)$', section('thinpoolctl.8', 'EXIT STATUS'), re.M)) == codes
    assert set(re.findall(r'^\.It (\d+)$', section('thinpoold.8', 'EXIT STATUS'), re.M)) == \
        {'0', '1', '2'}


def test_every_signal_file_and_attribute_is_told():
    manual = text('thinpoold.8')
    handled = set(re.findall(r'sigaddset\(&set, (SIG\w+)\)',
                             (ROOT / 'src/daemon/daemon.c').read_text()))
    assert handled and handled == set(re.findall(r'\bSIG[A-Z0-9]+\b',
                                                 ' '.join(re.findall(r'^\.It Dv (.*)$', manual,
                                                                     re.M))))
    virtual = re.findall(r'\{ "([\w.]+)", render_', (ROOT / 'src/daemon/daemon.c').read_text())
    assert len(virtual) >= 5
    for name in virtual:
        assert f'.It Pa {name}\n' in manual, f'.thinpool/{name}'
    names = re.search(r'names\[\] = \{(.*?)\}', (ROOT / 'src/fuse/fuse-xattr.c').read_text(), re.S)
    for name in re.findall(r'"(\w+)"', names[1]):
        assert f'user.thinpool.{name}' in manual, name
    for path in '/etc/thinpoold/thinpoold.conf', '/run/thinpoold', '/tmp/thinpoold-':
        assert path in manual, path
