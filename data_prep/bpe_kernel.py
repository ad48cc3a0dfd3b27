"""Words and merges as machine code: the part of `fast_encode` that numba compiles.

Text comes in as UTF-16 code units, the form in which a Korean character is one number and CPython needs no
arithmetic to produce it. Every function here is compiled without the GIL, holds no state of its own, and
writes only into the arrays that it is handed.

All of it stands in one file because numba's cache notices a changed source by the file of the function that
is called, not by those of the functions that it calls.
"""

from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")

CODE_POINTS = 0x110000

# Kinds of code point, the low bits of `Tables.kinds`. 0 stands for one that nobody has asked `tokenizers` about;
# the halves of a surrogate pair stay 0 for ever, which is how the loops below notice that there is a pair.
UNKNOWN, LETTER, DIGIT, SIGN, SPACE, NEWLINE = range(6)
KIND_BITS = 0x07
# NFC may change the code point, or what stands beside it.
UNSETTLED = 0x80

# What `look_over` says of a document.
HOLDS_UNKNOWN, HOLDS_UNSETTLED = 1, 2

# One entry of the memo is a cache line of 64 bytes: 16 code units, one header, 7 token ids.
MEMO_UNITS = 16
MEMO_TOKENS = 7
MEMO_HEADER = 8  # its place among the entry's 16 numbers of 32 bits

# Tokens of a word above which a heap finds the next merge: below it, looking at every pair is quicker.
HEAP_ABOVE = 96

# Words that are cut before the memo is asked about them.
WORDS_AT_ONCE = 64

NO_MERGE = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_MULTIPLIER = np.uint64(0x9E37_79B9_7F4A_7C15)
_LOW_32 = np.uint64(0xFFFF_FFFF)
_ZERO, _ONE, _16, _32 = np.uint64(0), np.uint64(1), np.uint64(16), np.uint64(32)


class Tables(NamedTuple):
    """What a tokenizer knows, as arrays.

    Attributes:
        kinds: uint8 (CODE_POINTS,), kind of each code point with `UNSETTLED` added where it applies.
        character_ids: int32 (CODE_POINTS,), id of a code point's own token; -1: it is spelt in bytes.
        byte_ids: int32 (256,), ids of the byte pieces.
        merges: uint64 (capacity, 2), open addressing; key `left << 32 | right`, value `rank << 32 | merged`;
            the value of an empty slot is `NO_MERGE`. Capacity is a power of two and never full.
    """

    kinds: NDArray[np.uint8]
    character_ids: NDArray[np.int32]
    byte_ids: NDArray[np.int32]
    merges: NDArray[np.uint64]


class Memo(NamedTuple):
    """Words seen before and their tokens: two views of the same memory, one entry of 64 bytes a row.

    An entry is believed only if it holds the very word, so it may be overwritten at any time.

    Attributes:
        words: uint64 (entries, 8); the first 4 columns are the word's code units, zeros behind.
        tokens: uint32 (entries, 16); column `MEMO_HEADER` is `units | tokens << 8`, 0 in an empty entry; the
            token ids follow it. `entries` is a power of two, at least 2.
    """

    words: NDArray[np.uint64]
    tokens: NDArray[np.uint32]


def empty_memo(entries: int) -> Memo:
    """A memo of `entries` words; its 64 bytes an entry are taken from the system only as they fill up."""
    memory = np.zeros(entries * 64 + 64, np.uint8)
    first = -memory.ctypes.data % 64  # an entry that straddled two cache lines would cost two misses
    aligned = memory[first : first + entries * 64]
    return Memo(aligned.view(np.uint64).reshape(entries, 8), aligned.view(np.uint32).reshape(entries, 16))


def _inner(function: Callable[P, R]) -> Callable[P, R]:
    return cast(Callable[P, R], numba.njit(nogil=True, error_model="numpy")(function))


def _entry(function: Callable[P, R]) -> Callable[P, R]:
    """Compile at the first call, and keep the machine code on disk for the next process where that is possible."""
    try:
        compiled = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # numba finds no folder to write its cache into
        return _inner(function)
    return cast(Callable[P, R], compiled)


@_inner
def _merge_slot(key: np.uint64, capacity: int) -> int:
    mixed = key * _MULTIPLIER
    return np.int64((mixed ^ (mixed >> _32)) & np.uint64(capacity - 1))


@_inner
def _merge_of(left: int, right: int, merges: NDArray[np.uint64]) -> np.uint64:
    """`rank << 32 | merged` of two neighbouring tokens, `NO_MERGE` where they stay apart."""
    key = (np.uint64(left) << _32) | np.uint64(right)
    slot = _merge_slot(key, merges.shape[0])
    while merges[slot, 1] != NO_MERGE:
        if merges[slot, 0] == key:
            return merges[slot, 1]
        slot = (slot + 1) & (merges.shape[0] - 1)
    return NO_MERGE


@_entry
def fill_merges(triples: NDArray[np.int64], merges: NDArray[np.uint64]) -> None:
    """Fill `merges` (see `Tables`), all slots empty before.

    Args:
        triples: (count, 3), the ids of left, right and merged token, in order of rank.
    """
    for rank in range(len(triples)):
        key = (np.uint64(triples[rank, 0]) << _32) | np.uint64(triples[rank, 1])
        slot = _merge_slot(key, merges.shape[0])
        while merges[slot, 1] != NO_MERGE and merges[slot, 0] != key:
            slot = (slot + 1) & (merges.shape[0] - 1)
        merges[slot, 0] = key
        merges[slot, 1] = (np.uint64(rank) << _32) | np.uint64(triples[rank, 2])


@_inner
def _pair(units: NDArray[np.uint16], at: int) -> int:
    return 0x10000 + ((np.int64(units[at]) - 0xD800) << 10) + (np.int64(units[at + 1]) - 0xDC00)


@_entry
def look_over(units: NDArray[np.uint16], ends: NDArray[np.int64], kinds: NDArray[np.uint8],
              findings: NDArray[np.uint8]) -> None:
    """Say of each document whether it holds code points that are unknown or that NFC may change.

    Args:
        units: UTF-16 of all documents, end to end.
        ends: (documents,), where each ends in `units`.
        findings: (documents,), written: `HOLDS_UNKNOWN`, `HOLDS_UNSETTLED`, or both.
    """
    at = 0
    for document in range(len(ends)):
        unknown = False
        seen = 0
        while at < ends[document]:
            kind = kinds[units[at]]
            if kind == UNKNOWN and 0xD800 <= units[at] < 0xDC00:
                kind = kinds[_pair(units, at)]
                at += 1
            unknown |= kind == UNKNOWN
            seen |= kind
            at += 1
        findings[document] = (HOLDS_UNKNOWN if unknown else 0) | (HOLDS_UNSETTLED if seen & UNSETTLED else 0)


@_inner
def _end_of_run(units: NDArray[np.uint16], at: int, end: int, kind: int, kinds: NDArray[np.uint8]) -> int:
    while at < end:
        found = kinds[units[at]] & KIND_BITS
        if found == UNKNOWN:
            if kinds[_pair(units, at)] & KIND_BITS != kind:
                return at
            at += 2
        elif found != kind:
            return at
        else:
            at += 1
    return at


@_inner
def _end_of_word(units: NDArray[np.uint16], start: int, end: int, kinds: NDArray[np.uint8]) -> int:
    """Where the word that begins at `start` ends: `WORD_PATTERN`, with a space where the pattern has `▁`."""
    at = start
    kind = kinds[units[at]] & KIND_BITS
    if kind == SPACE:
        at += 1
        if at == end:
            return at
        kind = kinds[units[at]] & KIND_BITS
        if kind == NEWLINE:
            return at
        if kind == SPACE:  # the last space of several belongs to the word behind it
            return _end_of_run(units, at, end, SPACE, kinds) - 1
    width = 1
    if kind == UNKNOWN:
        kind = kinds[_pair(units, at)] & KIND_BITS
        width = 2
    if kind == DIGIT:
        return at + width
    return _end_of_run(units, at + width, end, kind, kinds)


@_inner
def _spell(units: NDArray[np.uint16], start: int, end: int, tables: Tables, out: NDArray[np.int32], first: int) -> int:
    """Write the tokens of a word before any merge to `out[first:]`: characters, or their UTF-8 in bytes."""
    last = first
    at = start
    while at < end:
        code = np.int64(units[at])
        at += 1
        if 0xD800 <= code < 0xDC00:
            code = _pair(units, at - 1)
            at += 1
        token = tables.character_ids[code]
        if token >= 0:
            out[last] = token
            last += 1
            continue
        if code == 0x2581:
            code = 0x2126  # the tokenizer's escape of a literal `▁`
        elif code == 0x20:
            code = 0x2581
        if code < 0x80:
            out[last] = tables.byte_ids[code]
            last += 1
        elif code < 0x800:
            out[last] = tables.byte_ids[0xC0 | code >> 6]
            out[last + 1] = tables.byte_ids[0x80 | code & 0x3F]
            last += 2
        elif code < 0x10000:
            out[last] = tables.byte_ids[0xE0 | code >> 12]
            out[last + 1] = tables.byte_ids[0x80 | code >> 6 & 0x3F]
            out[last + 2] = tables.byte_ids[0x80 | code & 0x3F]
            last += 3
        else:
            out[last] = tables.byte_ids[0xF0 | code >> 18]
            out[last + 1] = tables.byte_ids[0x80 | code >> 12 & 0x3F]
            out[last + 2] = tables.byte_ids[0x80 | code >> 6 & 0x3F]
            out[last + 3] = tables.byte_ids[0x80 | code & 0x3F]
            last += 4
    return last


@_inner
def _merge_by_looking(tokens: NDArray[np.int32], count: int, merges: NDArray[np.uint64], best: NDArray[np.uint64]) -> int:
    """Merge `tokens[:count]` in place, lowest rank first and leftmost among equals; give the new count.

    Args:
        best: room for `count` numbers.
    """
    for at in range(count - 1):
        best[at] = _merge_of(tokens[at], tokens[at + 1], merges)
    while count > 1:
        lowest = best[0]
        where = 0
        for at in range(1, count - 1):
            if best[at] < lowest:
                lowest = best[at]
                where = at
        if lowest == NO_MERGE:
            break
        tokens[where] = np.int32(lowest & _LOW_32)
        count -= 1
        for at in range(where + 1, count):
            tokens[at] = tokens[at + 1]
            best[at - 1] = best[at]
        # `best` moved by one, so that of the pair that begins at `where` stands there now and is wrong
        if where + 1 < count:
            best[where] = _merge_of(tokens[where], tokens[where + 1], merges)
        if where > 0:
            best[where - 1] = _merge_of(tokens[where - 1], tokens[where], merges)
    return count


@_inner
def _push(heap: NDArray[np.int64], size: int, entry: int) -> None:
    at = size
    while at > 0 and heap[(at - 1) >> 1] > entry:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = entry


@_inner
def _pop(heap: NDArray[np.int64], size: int) -> int:
    """Take the smallest of `heap[:size]`; the rest lies in `heap[:size - 1]` afterwards."""
    smallest = heap[0]
    entry = heap[size - 1]
    at = 0
    child = 1
    while child < size - 1:
        if child + 1 < size - 1 and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= entry:
            break
        heap[at] = heap[child]
        at = child
        child = 2 * at + 1
    heap[at] = entry
    return smallest


@_inner
def _merge_by_heap(tokens: NDArray[np.int32], count: int, merges: NDArray[np.uint64]) -> int:
    """As `_merge_by_looking`, in time `count * log(count)` and 28 bytes a token of memory."""
    before = np.arange(-1, count - 1).astype(np.int32)
    behind = np.arange(1, count + 1).astype(np.int32)
    heap = np.empty(2 * count, np.int64)  # `rank << 32 | place`; each merge takes one entry and adds at most two
    size = 0
    for at in range(count - 1):
        found = _merge_of(tokens[at], tokens[at + 1], merges)
        if found != NO_MERGE:
            _push(heap, size, np.int64(found & ~_LOW_32) | at)
            size += 1
    left = count
    while size > 0:
        entry = _pop(heap, size)
        size -= 1
        at = entry & 0xFFFF_FFFF
        right = behind[at]
        if tokens[at] < 0 or right >= count:
            continue
        found = _merge_of(tokens[at], tokens[right], merges)
        # A token here or to the right has changed since; the pair that it is now has an entry of its own.
        if found == NO_MERGE or np.int64(found >> _32) != entry >> 32:
            continue
        tokens[at] = np.int32(found & _LOW_32)
        tokens[right] = -1
        behind[at] = behind[right]
        left -= 1
        if behind[at] < count:
            before[behind[at]] = at
            found = _merge_of(tokens[at], tokens[behind[at]], merges)
            if found != NO_MERGE:
                _push(heap, size, np.int64(found & ~_LOW_32) | at)
                size += 1
        if before[at] >= 0:
            found = _merge_of(tokens[before[at]], tokens[at], merges)
            if found != NO_MERGE:
                _push(heap, size, np.int64(found & ~_LOW_32) | np.int64(before[at]))
                size += 1
    kept = 0
    for at in range(count):
        if tokens[at] >= 0:
            tokens[kept] = tokens[at]
            kept += 1
    return left


@_inner
def _packed(units: NDArray[np.uint16], start: int, end: int) -> np.uint64:
    packed = _ZERO
    shift = _ZERO
    for at in range(start, min(start + 4, end)):
        packed |= np.uint64(units[at]) << shift
        shift += _16
    return packed


@_inner
def _cut(
    units: NDArray[np.uint16],
    at: int,
    end: int,
    kinds: NDArray[np.uint8],
    slots: int,
    starts: NDArray[np.int64],
    keys: NDArray[np.uint64],
    places: NDArray[np.int64],
) -> int:
    """Cut the next words of a document, as many as there is room for; give how many.

    Args:
        starts: (words + 1,), written: where each word begins, and where the last one ends.
        keys: (words, 4), written: the word itself where it has at most `MEMO_UNITS` units, as in `Memo`.
        places: (words,), written: the first entry of the memo that may hold it.
    """
    mask = np.uint64(slots - 1)
    count = 0
    starts[0] = at
    while at < end and count < len(places):
        start = at
        at = _end_of_word(units, start, end, kinds)
        length = at - start
        word_0 = word_1 = word_2 = word_3 = _ZERO
        if length <= MEMO_UNITS:
            word_0 = _packed(units, start, at)
            if length > 4:
                word_1 = _packed(units, start + 4, at)
                if length > 8:
                    word_2 = _packed(units, start + 8, at)
                    word_3 = _packed(units, start + 12, at)
        mixed = (word_0 ^ (word_1 * _MULTIPLIER)) * _MULTIPLIER
        mixed = (mixed ^ (mixed >> _32) ^ word_2 ^ (word_3 * _MULTIPLIER)) * _MULTIPLIER
        places[count] = np.int64((mixed ^ (mixed >> _32)) & mask)
        keys[count, 0] = word_0
        keys[count, 1] = word_1
        keys[count, 2] = word_2
        keys[count, 3] = word_3
        count += 1
        starts[count] = at
    return count


@_entry
def encode_documents(
    units: NDArray[np.uint16],
    ends: NDArray[np.int64],
    tables: Tables,
    memo: Memo,
    bos: int,
    eos: int,
    heap_above: int,
    ids: NDArray[np.int32],
    lengths: NDArray[np.int64],
) -> int:
    """Encode documents in which every kind is known and that are NFC; give the number of tokens.

    Args:
        units: UTF-16 of all documents, end to end.
        ends: (documents,), where each ends in `units`.
        memo: read and added to.
        heap_above: tokens of a word above which a heap finds the merges; changes speed only.
        ids: written: the tokens, each document between `bos` and `eos`; room for 3 a unit and 2 a document.
        lengths: (documents,), written: tokens of each document, `bos` and `eos` among them.
    """
    best = np.empty(max(heap_above, 1), np.uint64)
    starts = np.empty(WORDS_AT_ONCE + 1, np.int64)
    keys = np.empty((WORDS_AT_ONCE, 4), np.uint64)
    places = np.empty(WORDS_AT_ONCE, np.int64)
    slots = memo.words.shape[0]
    touched = 0
    written = 0
    at = 0
    for document in range(len(ends)):
        first = written
        ids[written] = bos
        written += 1
        end = ends[document]
        while at < end:
            words = _cut(units, at, end, tables.kinds, slots, starts, keys, places)
            at = starts[words]
            # The memo is larger than the caches. Loads that wait for nothing and that nothing waits for
            # go to memory all at once; in the loop below each would wait for the guess before it.
            for word in range(words):
                touched ^= memo.tokens[places[word], MEMO_HEADER] ^ memo.tokens[places[word] ^ 1, MEMO_HEADER]
            for word in range(words):
                length = starts[word + 1] - starts[word]
                slot = places[word]
                if length <= MEMO_UNITS:
                    held = -1
                    for candidate in (slot, slot ^ 1):
                        if (
                            memo.words[candidate, 0] == keys[word, 0]
                            and memo.words[candidate, 1] == keys[word, 1]
                            and memo.words[candidate, 2] == keys[word, 2]
                            and memo.words[candidate, 3] == keys[word, 3]
                            and memo.tokens[candidate, MEMO_HEADER] & 0xFF == length
                        ):
                            held = candidate
                            break
                    if held >= 0:
                        count = np.int64(memo.tokens[held, MEMO_HEADER] >> 8)
                        for token in range(count):
                            ids[written + token] = memo.tokens[held, MEMO_HEADER + 1 + token]
                        written += count
                        continue
                last = _spell(units, starts[word], starts[word + 1], tables, ids, written)
                tokens = ids[written:last]
                if last - written > heap_above:
                    count = _merge_by_heap(tokens, last - written, tables.merges)
                else:
                    count = _merge_by_looking(tokens, last - written, tables.merges, best)
                if length <= MEMO_UNITS and count <= MEMO_TOKENS:
                    # The newer word takes the first place of the two, the older one the second.
                    for column in range(8):
                        memo.words[slot ^ 1, column] = memo.words[slot, column]
                    for column in range(4):
                        memo.words[slot, column] = keys[word, column]
                    memo.tokens[slot, MEMO_HEADER] = length | count << 8
                    for token in range(count):
                        memo.tokens[slot, MEMO_HEADER + 1 + token] = tokens[token]
                written += count
        ids[written] = eos
        written += 1
        lengths[document] = written - first
    best[0] = touched  # or the compiler would leave out the loads
    return written
