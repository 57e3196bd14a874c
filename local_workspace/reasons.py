"""Which files of a mini-batch failed, and why: told from the rows and the log of the scoring script.

Azure only counts them. The time this takes grows with what is read, and not with files times messages.

worker.py loads this file by its path; like worker.py it imports nothing of this package.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

LONGEST_REASON = 1000  # characters of a reason or a message, wherever one is kept
NO_ROW = "no row, and nothing in the log names it"
NOT_NAMED = "no row, and the rows do not name their files"


def cut(text: str, longest: int = LONGEST_REASON) -> str:
    """`text`, of which at most so many characters are kept, of its two ends; says what was cut."""
    half = longest // 2
    if len(text) <= longest:
        return text
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters cut here) ... {text[-half:]}"


def failed_files(
    paths: list[str], rows: Iterable[Iterable[Any]], count: int, messages: Iterable[str]
) -> list[tuple[str, str]]:
    """The files of a mini-batch that have no row, each with the first of `messages` that is about it.

    `rows` are the values of each of the `count` rows. Where every row names its file, a file that none names
    has failed. Else it is as in Azure: as many files failed as there are fewer rows than files, and which
    ones is told where that fits the names.
    """
    rows = list(rows)
    if are_named_in_order(paths, rows):
        return []
    names = Names(paths)
    named: Counter[str] = Counter()
    unsure = False
    for row in rows:
        found = names.in_row(row)
        named.update(found)
        unsure |= not found
    unsure |= any(times < names.sharing[name] for name, times in named.items())
    left_out = [path for path in paths if not named[path] and not named[base_name(path)]]
    fewer = max(0, len(paths) - count)
    if len(left_out) != fewer and (unsure or len(left_out) < fewer):
        among = f"one of {base_name(paths[0])} ... {base_name(paths[-1])}"
        return [(among, NOT_NAMED)] * fewer
    reasons = names.reasons_in(messages) if left_out else {}
    return [(path, reasons.get(path) or reasons.get(base_name(path), NO_ROW)) for path in left_out]


def are_named_in_order(paths: list[str], rows: list[Iterable[Any]]) -> bool:
    """Whether one column of `rows` is the names of the files: so it is in most cases, and this is fast."""
    names = list(map(base_name, paths))
    columns = (list(column) for column in zip(*rows) if set(map(type, column)) == {str})
    return len(rows) == len(paths) and any(column in (names, paths) for column in columns)


class Names:
    """The names that the files of a mini-batch go by: the whole path, or what is after its last slash."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = set(paths)
        self.sharing = Counter(map(base_name, paths))  # files in several folders may have one name
        self.all = self.paths | self.sharing.keys()

    def in_row(self, row: Iterable[Any]) -> set[str]:
        """The names in the values of a row: each is one, or holds one between blanks."""
        texts = [str(value) for value in row if isinstance(value, (str, os.PathLike))]
        return {text if text in self.all else self.longest_word(text) for text in texts} - {""}

    def longest_word(self, text: str) -> str:
        """The longest name that stands in `text` between blanks: "a b.jpg 3" is not about b.jpg."""
        found = self.found_at(self.begins_word, text)
        whole = (name for at, name in found if not text[at + len(name) :][:1].strip())
        return max(whole, key=len, default="")

    def reasons_in(self, messages: Iterable[str]) -> dict[str, str]:
        """For each name the first message that is about it.

        It is about the longest name in it: "11.jpg: cannot be read" is not about 1.jpg.
        """
        reasons: dict[str, str] = {}
        for message in messages:
            found = {name for _, name in self.found_at(self.begins, message)}
            longest = max(map(len, found), default=0)
            for name in found:
                if len(name) == longest:
                    reasons.setdefault(name, message)
        return reasons

    def found_at(self, begins: re.Pattern[str], text: str) -> Iterator[tuple[int, str]]:
        """Every name in `text` and where it begins."""
        for match in begins.finditer(text):
            at = match.start()
            for length in self.lengths[text[at]]:
                if text[at : at + length] in self.all:
                    yield at, text[at : at + length]

    @cached_property
    def lengths(self) -> dict[str, set[int]]:
        """The lengths of the names that begin with a character."""
        lengths = defaultdict(set)
        for name in self.all:
            lengths[name[0]].add(len(name))
        return dict(lengths)

    @cached_property
    def begins(self) -> re.Pattern[str]:
        return re.compile(f"[{re.escape(''.join(self.lengths))}]")

    @cached_property
    def begins_word(self) -> re.Pattern[str]:
        return re.compile(rf"(?<!\S){self.begins.pattern}")


def base_name(path: str) -> str:
    return path.rpartition("/")[2]
