#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Check that every function says which locks it may take.

clang compares what a function holds with what the functions it calls exclude, and looks no
further: a public function that takes a lock somewhere below and does not say so is a hole in
the proof.  So, of all functions in src/:

1. The lists TP_FROM_<class> in util/lock-class.h follow the table LOCK_CLASSES.
2. A function that a header declares, or that takes locks and is called where locks are held,
   has TP_TAKES(class), class being the outermost one that it takes, waits for, or may take by
   whatever it calls; or one further out.
3. What a function requires to be held, or holds without a lock (tp_lock_hold_begin()), comes
   before all that it takes.
4. Every function() that src/LOCKING.md names is there.

A function takes a class by lock_<class>() or tp_lock_may_wait(LC_<class>), by saying so (what it
calls through pointers is not seen here), and by calling a function that does.  Try-locks cannot
wait and do not count.

Usage: locks.py ROOT      Exit 0, or 1 with one line per violation.
"""
import pathlib
import re
import sys

TABLE = 'util/lock-class.h'
STORY = 'LOCKING.md'
# Their locks are the caller's, by name.
WRAPPERS = re.compile(r'(try)?(un)?lock_(\w+?)(_shared)?$')


def strip(text):
    """Without comments, strings and preprocessor lines, all at the same places."""
    def blank(m):
        return re.sub(r'[^\n]', ' ', m.group())
    text = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.S)
    return re.sub(r'^[ \t]*#(?:[^\n]*\\\n)*[^\n]*', blank, text, flags=re.M)


class Function:
    def __init__(self, path, line, name):
        self.path, self.line, self.name = path, line, name
        self.static = self.public = False
        self.takes_said = set()     # TP_TAKES, TP_EXCLUDES_ALL: one class each
        self.requires = set()
        self.direct, self.calls, self.holds = set(), set(), set()
        self.locks = False
        self.drops = False          # what it requires, to take it again

    def where(self):
        return f'{self.path}:{self.line}: {self.name}()'


def paren_end(text, at):
    depth = 0
    for i in range(at, len(text)):
        depth += {'(': 1, ')': -1}.get(text[i], 0)
        if not depth:
            return i + 1
    return len(text)


def annotations(head):
    """The TP_ macros of a declaration, and what is left of it."""
    found = []
    while (m := re.search(r'\bTP_[A-Z_]+\b', head)):
        end, args = m.end(), ''
        if head[end:end + 1] == '(':
            end = paren_end(head, m.end())
            args = head[m.end() + 1:end - 1]
        found.append((m.group(), args))
        head = head[:m.start()] + ' ' * (end - m.start()) + head[end:]
    return found, head


def function_of(path, text, begin, end, body):
    """The function that text[begin:end] declares, or None."""
    found, head = annotations(text[begin:end])
    m = re.search(r'(\w+)\s*\(', head)
    if not m or re.match(r'\s*(typedef|struct|union|enum)\s[^()]*$', head[:m.start(1)] + ' ') and '=' in head:
        return None
    if '=' in head[:m.start()] or not re.search(r'\w[\s*]+$', head[:m.start(1)]):
        return None
    f = Function(path, text.count('\n', 0, begin + m.start(1)) + 1, m.group(1))
    f.static = bool(re.search(r'\bstatic\b', head[:m.start(1)]))
    f.requires = {c for n, a in found if n.startswith('TP_REQUIRES') for c in re.findall(r'\blc_(\w+)', a)}
    for name, args in found:
        if name == 'TP_TAKES':
            f.takes_said.add(args.strip())
        elif name == 'TP_EXCLUDES_ALL':
            f.takes_said.add('shrinkers')
    f.acquires = any(n.startswith(('TP_ACQUIRE', 'TP_RELEASE')) for n, _ in found)
    f.body = body
    return f


def functions_in(path, text):
    """Declarations (body None) and definitions at file scope."""
    begin = i = 0
    while i < len(text):
        c = text[i]
        if c == ';':
            if '(' in text[begin:i] and (f := function_of(path, text, begin, i, None)):
                yield f
            begin = i + 1
        elif c == '{':
            depth, j = 1, i + 1
            while j < len(text) and depth:
                depth += {'{': 1, '}': -1}.get(text[j], 0)
                j += 1
            if ')' in text[begin:i] and (f := function_of(path, text, begin, i, text[i:j])):
                yield f
                begin = j
            i = j
            continue
        i += 1


class Program:
    def __init__(self, src):
        self.src = src
        self.order = self.read_table()
        self.rank = {c: i for i, c in enumerate(self.order)}
        self.by_name, self.by_file = {}, {}
        self.declared = {}
        for path in sorted(src.rglob('*.[ch]')):
            if path != src / TABLE:
                self.read(path)
        for f in self.all():
            self.look_into(f)
        self.spread()

    def read_table(self):
        text = (self.src / TABLE).read_text()
        classes = re.findall(r'^\tX\((\w+), (\w+),', text, flags=re.M)
        self.table_errors = []
        for (name, after), before in zip(classes, [('outermost', '')] + classes):
            if after != before[0]:
                self.table_errors.append(f'{TABLE}: "{name}" comes after "{after}", not "{before[0]}"')
        names = [c for c, _ in classes]
        for i, name in enumerate(names):
            want = f'lc_{name}' + (f', TP_FROM_{names[i + 1]}' if i + 1 < len(names) else '')
            m = re.search(rf'^#define TP_FROM_{name} (.*)$', text, flags=re.M)
            if not m or m.group(1) != want:
                self.table_errors.append(f'{TABLE}: TP_FROM_{name} has to be "{want}"')
        if f'#define TP_EXCLUDES_ALL TP_TAKES({names[0]})' not in text:
            self.table_errors.append(f'{TABLE}: TP_EXCLUDES_ALL has to be TP_TAKES({names[0]})')
        return names

    def read(self, path):
        rel = str(path.relative_to(self.src))
        for f in functions_in(rel, strip(path.read_text())):
            if f.body is None:
                self.declared.setdefault(f.name if path.suffix == '.h' else (rel, f.name), f)
                continue
            if f.static:
                self.by_file.setdefault(rel, {})[f.name] = f
                if path.suffix == '.h':
                    self.by_name[f.name] = f
            else:
                self.by_name[f.name] = f

    def all(self):
        seen = list(self.by_name.values())
        seen += [f for fs in self.by_file.values() for f in fs.values() if self.by_name.get(f.name) is not f]
        return seen

    def declared_in(self, f):
        return self.declared.get((f.path, f.name)) or (None if f.static else self.declared.get(f.name))

    def callee(self, f, name):
        return self.by_file.get(f.path, {}).get(name) or self.by_name.get(name)

    def look_into(self, f):
        d = self.declared_in(f)
        f.public = f.path.endswith('.h') or bool(d and not f.static)
        if d:
            f.takes_said |= d.takes_said
            f.requires |= d.requires
            f.acquires |= d.acquires
        for name, args in re.findall(r'\b(\w+)\s*\((?=([^()]*))', f.body):
            m = WRAPPERS.match(name)
            if m and m.group(3) in self.rank:
                if not m.group(1) and not m.group(2):
                    f.direct.add(m.group(3))
                f.locks |= not m.group(2)
                f.drops |= bool(m.group(2)) and m.group(3) in f.requires
            elif name == 'tp_lock_may_wait':
                f.direct.add(args.strip().removeprefix('LC_'))
            elif name == 'tp_lock_hold_begin':
                f.holds.add(args.split(',')[1].strip().removeprefix('LC_'))
            elif (g := self.callee(f, name)) and g is not f:
                f.calls.add(g)

    def spread(self):
        for f in self.all():
            f.takes = f.direct | f.takes_said
            f.via = {c: None for c in f.takes}
        changed = True
        while changed:
            changed = False
            for f in self.all():
                for g in f.calls:
                    for c in g.takes - f.takes:
                        f.takes.add(c)
                        f.via[c] = g
                        changed = True

    def unknown_names(self):
        known = {f.name for f in self.all()} | {m for m in re.findall(r'\b(tp_lock_\w+)\(', (self.src / TABLE).read_text())}
        known |= {f'{un}lock_{c}{mode}' for un in ('', 'un', 'try') for c in self.order for mode in ('', '_shared')}
        for i, line in enumerate((self.src / STORY).read_text().splitlines(), 1):
            for name in re.findall(r'(?<!->)\b([a-z]\w+)\(', line):
                if name not in known:
                    yield f'{STORY}:{i}: there is no {name}()'

    def chain(self, f, c):
        names = []
        while f:
            names.append(f.name)
            f = f.via[c]
        return ' -> '.join(names)

    def outermost(self, classes):
        return min(classes, key=self.rank.get)

    def violations(self):
        yield from self.table_errors
        yield from self.unknown_names()
        below = {g for f in self.all() if f.locks or f.requires or f.holds for g in f.calls}
        for f in sorted(self.all(), key=lambda f: (f.path, f.line)):
            unknown = (f.takes_said | f.requires) - set(self.order)
            if unknown:
                yield f'{f.where()}: "{unknown.pop()}" is no class of locks'
                continue
            if not f.takes or f.acquires or f.drops:
                continue
            first = self.outermost(f.takes)
            said = self.outermost(f.takes_said) if f.takes_said else None
            if (f.public or f in below) and said != first:
                yield f'{f.where()}: needs TP_TAKES({first}), for {self.chain(f, first)} takes that'
            for held in sorted(f.requires | f.holds):
                if self.rank[first] <= self.rank[held] and held != 'block':
                    yield f'{f.where()}: takes "{first}" with "{held}" held: {self.chain(f, first)}'


if __name__ == '__main__':
    found = list(Program(pathlib.Path(sys.argv[1]) / 'src').violations())
    print('\n'.join(found) or 'locks: ok')
    sys.exit(bool(found))
