"""Mutations of YAML: texts that promise more than they hold, and lines that are changed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from textwrap import indent

from support.hostile import Mutation

_LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9)
)
YAMLS = {
    "aliases": _LAUGHS + "name: *a9\n",
    "aliases in arguments": "teacher:\n  arguments:\n" + indent(_LAUGHS, "    "),
    "merges": "".join(
        f"k{i}: &k{i}\n  a{i}: 1\n" + (f"  <<: [{', '.join([f'*k{i - 1}'] * 9)}]\n" * bool(i))
        for i in range(9)
    ),
    "an alias of itself": "teacher: {arguments: &a {b: *a}}\n",
    "an alias of itself in a list": "train: &a [*a]\n",
    "a key twice": "name: a\nname: b\n",
    "a key twice below": "train: {steps: 1, steps: 2}\n",
    "a key twice, quoted": "name: a\n'name': b\n",
    "deep lists": "name: " + "[" * 50_000,
    "deep dashes": "- " * 50_000 + "1",
    "deep mappings": "".join(" " * i + "a:\n" for i in range(300)),
    "deep braces": "{a: " * 20_000,
    "code": "name: !!python/object/apply:os.system ['touch hostile']\n",
    "a name of code": "name: !!python/name:os.system\n",
    "a module of code": "name: !!python/module:os\n",
    "new object": "name: !!python/object/new:os.system [x]\n",
    "an unknown tag": "name: !x y\n",
    "an empty int": "train: {steps: !!int ''}\n",
    "no float": "train: {steps: !!float x}\n",
    "no bool": "train: {steps: !!bool x}\n",
    "no date": "name: !!timestamp x\n",
    "bytes": "teacher: {arguments: {a: !!binary gIGC}}\n",
    "a set": "teacher: {arguments: {a: !!set {b}}}\n",
    "an impossible date": "name: 2024-13-45\n",
    "many digits": "train: {steps: " + "9" * 50_000 + "}\n",
    "many hexadecimal digits": "train: {steps: 0x" + "f" * 50_000 + "}\n",
    "not a number": "train: {steps: .nan}\n",
    "infinity": "dmd: {guidance_scale: .inf}\n",
    "not a number in a list": "student: {t_list: [1.0, .nan, 0.0]}\n",
    "two documents": "name: a\n---\nname: b\n",
    "a list": "- a\n",
    "a word": "word\n",
    "a list for a key": "? [a, b]\n: 1\n",
    "a mapping for a key": "? {a: b}\n: 1\n",
    "a number for a key": "1: 2\n",
    "nothing for a key": "~: 2\n",
    "a list for a group": "train: [1, 2]\n",
    "a huge t_list": "student: {t_list: [" + "0.5, " * 60_000 + "0.0]}\n",
    "2 MB": "name: " + "x" * (2 << 20) + "\n",
    "a NUL": "name: 'a\0b'\n",
    "UTF-8 that isn't": b"name: \xff\xfe\n",
    "a tab": "train:\n\tsteps: 1\n",
    "a directive": "%YAML 9.9\n---\nname: a\n",
    "an undefined alias": "name: *nobody\n",
}


def of_yaml(name: str, data: bytes, rng: random.Random, number: int) -> Iterator[Mutation]:
    """Texts that promise more than they hold, and lines that are changed."""
    words = [
        "null",
        "true",
        "-1",
        "1e400",
        "9" * 400,
        ".nan",
        "''",
        "'../../x'",
        "[]",
        "{}",
        "[[1]]",
        "{a: b}",
        "&a x",
        "*a",
    ]
    words += [
        "!!str 5",
        "2024-02-30",
        "0o9",
        "1:60",
        "0x",
        "~",
        "|",
        ">",
        "'",
        '"',
        "\\",
        "@",
        "%",
        "é" * 300,
    ]
    for what, text in YAMLS.items():
        raw = text if isinstance(text, bytes) else text.encode()
        yield Mutation(
            f"{name}: {what}", "refused", lambda folder, raw=raw: (folder / name).write_bytes(raw)
        )
    lines = data.decode().splitlines(True)
    for _ in range(number):
        new = list(lines)
        at = rng.randrange(len(lines))
        way = rng.choice(["value", "value", "value", "gone", "twice", "indented", "moved", "key"])
        key, colon, _ = new[at].partition(":")
        if way == "value":
            new[at] = f"{key}{colon} {rng.choice(words)}\n"
        elif way == "key":
            new[at] = new[at].replace(key.strip(), rng.choice(words), 1)
        elif way == "gone":
            del new[at]
        elif way == "twice":
            new.insert(at, new[at])
        elif way == "indented":
            new[at] = " " * rng.randrange(1, 5) + new[at]
        else:
            new.insert(rng.randrange(len(new)), new.pop(at))
        text = "".join(new)
        law = "refused" if way == "twice" and colon else "sound"
        change = f"{name}: line {at + 1} {way}: {new[min(at, len(new) - 1)].strip()[:40]}"
        yield Mutation(change, law, lambda folder, text=text: (folder / name).write_text(text))
