# SPDX-License-Identifier: GPL-2.0-or-later
"""What the programs say of themselves: help, version, completion."""
import os
import re
import shlex

import pytest

from conftest import ROOT, THINPOOLCTL, THINPOOLD, run

pytestmark = [pytest.mark.no_root, pytest.mark.quick]


def verbs():
    return re.findall(r'^  ([a-z][a-z-]*) ', run(THINPOOLCTL, '--help').stdout, re.M)


def options(*program):
    return set(re.findall(r'--[a-z][a-z-]*', run(*program, '--help').stdout)) - {'--help'}


def test_every_program_and_verb_has_help_and_version():
    version = run(THINPOOLCTL, '--version').stdout
    assert re.fullmatch(r'thinpoolctl \d+\.\d+\.\d+\n', version)
    assert run(THINPOOLD, '--version').stdout == version.replace('thinpoolctl', 'thinpoold')
    assert 'Usage: thinpoold ' in run(THINPOOLD, '--help').stdout
    assert len(verbs()) >= 11
    for verb in verbs():
        out = run(THINPOOLCTL, verb, '--help').stdout
        assert out.startswith(f'Usage: thinpoolctl {verb} '), out
        assert run(THINPOOLCTL, verb, '--version').stdout == version
        assert run(THINPOOLCTL, verb, '--usage').stdout.startswith('Usage: ')


def complete(name, *words, program=None):
    """What bash offers for the last word."""
    program = program or THINPOOLCTL
    line = [str(program), *words]
    script = f'''
        source {shlex.quote(str(ROOT / 'completions' / name))}
        compopt() {{ :; }}  # only while bash completes by itself
        COMP_WORDS=({' '.join(map(shlex.quote, line))})
        COMP_CWORD={len(line) - 1}
        _{name}
        printf '%s\\n' "${{COMPREPLY[@]}}"'''
    return set(run('bash', '-c', script).stdout.split('\n')) - {''}


def test_bash_completes_verbs_and_options():
    assert complete('thinpoolctl', '') == {*verbs(), '--help', '--version'}
    assert complete('thinpoolctl', 'sn') == {'snapshot'}
    for verb in verbs():
        offered = {o.rstrip('=') for o in complete('thinpoolctl', verb, '--')}
        assert offered == options(THINPOOLCTL, verb) | {'--help'}
    assert '--block-size=' in complete('thinpoolctl', 'format', '--b')
    assert complete('thinpoolctl', 'format', '--size', '') == set()
    assert complete('thinpoolctl', 'metadata-snap', '') == {'reserve', 'release'}


def test_bash_completes_paths(tmp_path):
    for name in 'vol one', 'vol-two', 'other':
        (tmp_path / name).touch()
    assert complete('thinpoolctl', 'snapshot', f'{tmp_path}/vol') == {
        f'{tmp_path}/vol one', f'{tmp_path}/vol-two'}
    assert complete('thinpoold', f'{tmp_path}/vol', program=THINPOOLD) == set()
    (tmp_path / 'volumes').mkdir()
    assert complete('thinpoold', f'{tmp_path}/vol', program=THINPOOLD) == {f'{tmp_path}/volumes'}
    assert complete('thinpoold', '-c', f'{tmp_path}/oth', program=THINPOOLD) == {f'{tmp_path}/other'}
    assert complete('thinpoold', '--', program=THINPOOLD) == options(THINPOOLD) | {'--help'}
