"""Words and merges as machine code: the part of `fast_encode` that numba compiles.

Text comes in as UTF-16 code units, the form in which a Korean character is one number and CPython needs no
arithmetic to produce it. Every function here is compiled without the GIL, holds no state of its own, and
writes only into the arrays that it is handed.

All of it is in one file, whatever its length, because numba's cache notices a changed source by the file of the
function that is called, not by those of the functions that it calls.
"""

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from malmoi.data_prep.tokenizer.numba_compile import entry, inner

Int: TypeAlias = int | np.int64

CODE_POINTS = 0x110000

# Kinds of code point, the low bits of `Tables.kinds`. 0 stands for one that nobody has asked `tokenizers`
# about; the halves of a surrogate pair stay 0 for ever, which is how the loops below notice a pair.
UNKNOWN, LETTER, DIGIT, SIGN, SPACE, NEWLINE = range(6)
KIND_BITS = 0x07
# NFC may change the code point, or its neighbors.
NFC_MAY_CHANGE = 0x80

# What `scan` finds in a document.
HOLDS_UNKNOWN, HOLDS_NFC_MAY_CHANGE = 1, 2

# One entry of the memo is half a cache line: 8 code units, 5 tokens of 24 bits, and how many of each. Nearly
# all words of Korean fit; larger entries were slower, since fewer of them stay in the processor's caches.
MEMO_UNITS = 8
MEMO_TOKENS = 5
MEMO_IDS = 1 << 24  # every id is below
MEMO_BYTES = 32

# Tokens of a word above which a heap finds the next merge: below it, comparing every pair is quicker.
HEAP_ABOVE = 96

# Units behind the last document, so that words can be read 4 units at a time.
PADDING_UNITS = 8

# Words that are cut before the memo is asked about them.
WORDS_AT_ONCE = 64

NO_MERGE = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_MULTIPLIER = np.uint64(0x9E37_79B9_7F4A_7C15)
# numba makes a float of a sum of signed and unsigned numbers, so even the shifts are unsigned.
_LOW_4, _LOW_24, _LOW_32 = np.uint64(0xF), np.uint64(0xFF_FFFF), np.uint64(0xFFFF_FFFF)
_ZERO, _4, _8, _16, _24 = np.uint64(0), np.uint64(4), np.uint64(8), np.uint64(16), np.uint64(24)
_32, _48, _56 = np.uint64(32), np.uint64(48), np.uint64(56)


class Tables(NamedTuple):
    """What a tokenizer knows, as arrays.

    Attributes:
        kinds: uint8 (CODE_POINTS,), kind of each code point with `NFC_MAY_CHANGE` added where it applies.
        character_ids: int32 (CODE_POINTS,), id of a code point's own token; -1: it is spelled in bytes.
        byte_ids: int32 (256,), ids of the byte pieces.
        merges: uint64 (capacity, 2), open addressing; key `left << 32 | right`, value `rank << 32 | merged`;
            the value of an empty slot is `NO_MERGE`. Capacity is a power of two and never full.
    """

    kinds: NDArray[np.uint8]
    character_ids: NDArray[np.int32]
    byte_ids: NDArray[np.int32]
    merges: NDArray[np.uint64]


class Words(NamedTuple):
    """Words of a document that have been cut and not yet encoded.

    Attributes:
        starts: int64 (words + 1,), where each begins in the units, and where the last one ends.
        keys: uint64 (words, 2), the word itself as in the memo, zeros if it has more than `MEMO_UNITS` units.
        places: int64 (words,), the first of the two neighboring entries of the memo that may hold it.
    """

    starts: NDArray[np.int64]
    keys: NDArray[np.uint64]
    places: NDArray[np.int64]


def empty_memo(entries: int) -> NDArray[np.uint64]:
    """Room to remember `entries` words and their tokens, a power of two and at least 2.

    An entry is believed only if it holds the very word, so it may be overwritten at any time. The memory is
    taken from the system only as it fills up.

    Returns:
        uint64 (entries, 4). Columns 0 and 1: the word's units, zeros behind. Column 2, from its lowest bit: 4
        bits for the count of units, 4 for that of tokens, 24 each for the first and the second token, 8 for
        the lowest of the fifth; all 0 in an empty entry. Column 3: 24 bits each for the third and the fourth
        token, 16 for the rest of the fifth.
    """
    memory = np.zeros(4 * entries + 8, np.uint64)
    first = -memory.ctypes.data % (2 * MEMO_BYTES) // 8  # two neighboring entries then share a cache line
    return memory[first : first + 4 * entries].reshape(entries, 4)


@inner
def _merge_slot(key: np.uint64, capacity: Int) -> Int:
    mixed = key * _MULTIPLIER
    return np.int64((mixed ^ (mixed >> _32)) & np.uint64(capacity - 1))


@inner
def _merge_of(left: Int, right: Int, merges: NDArray[np.uint64]) -> np.uint64:
    """`rank << 32 | merged` of two neighboring tokens, `NO_MERGE` where they stay apart."""
    key = (np.uint64(left) << _32) | np.uint64(right)
    slot = _merge_slot(key, merges.shape[0])
    while merges[slot, 1] != NO_MERGE:
        if merges[slot, 0] == key:
            found: np.uint64 = merges[slot, 1]
            return found
        slot = (slot + 1) & (merges.shape[0] - 1)
    return NO_MERGE


@entry
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


@inner
def _pair(units: NDArray[np.uint16], at: Int) -> Int:
    return 0x10000 + ((np.int64(units[at]) - 0xD800) << 10) + (np.int64(units[at + 1]) - 0xDC00)


@entry
def scan(
    units: NDArray[np.uint16], ends: NDArray[np.int64], kinds: NDArray[np.uint8], findings: NDArray[np.uint8]
) -> None:
    """Find for each document whether it holds code points that are unknown or that NFC may change.

    Args:
        units: UTF-16 of all documents, end to end.
        ends: (documents,), where each ends in `units`.
        findings: (documents,), written: `HOLDS_UNKNOWN`, `HOLDS_NFC_MAY_CHANGE`, or both.
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
        findings[document] = (HOLDS_UNKNOWN if unknown else 0) | (HOLDS_NFC_MAY_CHANGE if seen & NFC_MAY_CHANGE else 0)


@inner
def _end_of_run(units: NDArray[np.uint16], at: Int, end: Int, kind: Int, kinds: NDArray[np.uint8]) -> Int:
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


@inner
def _end_of_word(units: NDArray[np.uint16], start: Int, end: Int, kinds: NDArray[np.uint8]) -> Int:
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


@inner
def _spell(units: NDArray[np.uint16], start: Int, end: Int, tables: Tables, out: NDArray[np.int32], first: Int) -> Int:
    """Write the tokens of a word before any merge to `out[first:]`: characters, or their UTF-8 in bytes."""
    last = first
    at = start
    while at < end:
        code: Int = np.int64(units[at])
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


@inner
def _merge_by_scan(tokens: NDArray[np.int32], count: Int, merges: NDArray[np.uint64], best: NDArray[np.uint64]) -> Int:
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
        # `best` moved by one, so that of the pair that begins at `where` is there now and is wrong
        if where + 1 < count:
            best[where] = _merge_of(tokens[where], tokens[where + 1], merges)
        if where > 0:
            best[where - 1] = _merge_of(tokens[where - 1], tokens[where], merges)
    return count


@inner
def _push(heap: NDArray[np.int64], size: Int, entry: Int) -> None:
    at = size
    while at > 0 and heap[(at - 1) >> 1] > entry:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = entry


@inner
def _pop(heap: NDArray[np.int64], size: Int) -> Int:
    """Take the smallest of `heap[:size]`; the rest is in `heap[:size - 1]` afterwards."""
    smallest: np.int64 = heap[0]
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


@inner
def _merge_by_heap(tokens: NDArray[np.int32], count: Int, merges: NDArray[np.uint64]) -> Int:
    """As `_merge_by_scan`, in time `count * log(count)` and 28 bytes a token of memory."""
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
        at = int(entry & 0xFFFF_FFFF)
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


@inner
def _packed(units: NDArray[np.uint16], start: Int, length: Int) -> np.uint64:
    """The first `length` units from `start` on, 4 at most, in one number. Reads 4 in any case."""
    at = np.uint64(start)
    packed = (
        np.uint64(units[at])
        | np.uint64(units[at + np.uint64(1)]) << _16
        | np.uint64(units[at + np.uint64(2)]) << _32
        | np.uint64(units[at + np.uint64(3)]) << _48
    )
    return packed & (NO_MERGE >> np.uint64(64 - 16 * min(length, 4)))


@inner
def _cut(units: NDArray[np.uint16], at: Int, end: Int, kinds: NDArray[np.uint8], slots: Int, words: Words) -> Int:
    """Cut the next words of a document, as many as there is room for in `words`; give how many.

    Args:
        slots: entries of the memo.
    """
    mask = np.uint64(slots - 1)
    count = 0
    words.starts[0] = at
    while at < end and count < len(words.places):
        start = at
        at = _end_of_word(units, start, end, kinds)
        length = at - start
        word_0 = word_1 = _ZERO
        if length <= MEMO_UNITS:
            word_0 = _packed(units, start, length)
            if length > 4:
                word_1 = _packed(units, start + 4, length - 4)
        mixed = (word_0 ^ (word_1 * _MULTIPLIER)) * _MULTIPLIER
        mixed = (mixed ^ (mixed >> _32)) * _MULTIPLIER
        words.places[count] = np.int64((mixed ^ (mixed >> _32)) & mask)
        words.keys[count, 0] = word_0
        words.keys[count, 1] = word_1
        count += 1
        words.starts[count] = at
    return count


@inner
def _merge(
    units: NDArray[np.uint16],
    start: Int,
    stop: Int,
    tables: Tables,
    heap_above: Int,
    best: NDArray[np.uint64],
    ids: NDArray[np.int32],
    written: Int,
) -> Int:
    """Write the tokens of a word to `ids[written:]`; give how many."""
    last = _spell(units, start, stop, tables, ids, written)
    tokens = ids[written:last]
    if len(tokens) > heap_above:
        return _merge_by_heap(tokens, len(tokens), tables.merges)
    return _merge_by_scan(tokens, len(tokens), tables.merges, best)


@inner
def _recall(memo: NDArray[np.uint64], words: Words, word: Int, ids: NDArray[np.int32], written: Int) -> Int:
    """Write the tokens of a word to `ids[written:]`; give how many, or -1 where the memo does not know it."""
    length = words.starts[word + 1] - words.starts[word]
    place = words.places[word]
    if length > MEMO_UNITS:
        return -1
    for seat in (place, place ^ 1):
        head, tail = memo[seat, 2], memo[seat, 3]
        if (
            memo[seat, 0] == words.keys[word, 0]
            and memo[seat, 1] == words.keys[word, 1]
            and np.int64(head & _LOW_4) == length  # all that tells `!` from `!\0`
        ):
            # all five: cheaper than to guess how many
            ids[written] = np.int32(head >> _8 & _LOW_24)
            ids[written + 1] = np.int32(head >> _32 & _LOW_24)
            ids[written + 2] = np.int32(tail & _LOW_24)
            ids[written + 3] = np.int32(tail >> _24 & _LOW_24)
            ids[written + 4] = np.int32(head >> _56 | tail >> _48 << _8)
            return np.int64(head >> _4 & _LOW_4)
    return -1


@inner
def _remember(
    memo: NDArray[np.uint64], words: Words, word: Int, ids: NDArray[np.int32], written: Int, count: Int
) -> None:
    """Put a word and its tokens, `ids[written : written + count]`, in the memo if they fit in an entry."""
    length = words.starts[word + 1] - words.starts[word]
    place = words.places[word]
    if length > MEMO_UNITS or count > MEMO_TOKENS:
        return
    for column in range(4):  # the newer word takes the first place of the two, the older one the second
        memo[place ^ 1, column] = memo[place, column]
    memo[place, 0] = words.keys[word, 0]
    memo[place, 1] = words.keys[word, 1]
    head = np.uint64(length | count << 4) | np.uint64(ids[written]) << _8
    tail = _ZERO
    if count > 1:
        head |= np.uint64(ids[written + 1]) << _32
    if count > 2:
        tail = np.uint64(ids[written + 2])
    if count > 3:
        tail |= np.uint64(ids[written + 3]) << _24
    if count > 4:
        head |= np.uint64(ids[written + 4]) << _56
        tail |= np.uint64(ids[written + 4]) >> _8 << _48
    memo[place, 2] = head
    memo[place, 3] = tail


@entry
def encode_documents(
    units: NDArray[np.uint16],
    ends: NDArray[np.int64],
    tables: Tables,
    memo: NDArray[np.uint64],
    bos: Int,
    eos: Int,
    heap_above: Int,
    ids: NDArray[np.int32],
    lengths: NDArray[np.int64],
) -> Int:
    """Encode documents in which every kind is known and that are NFC; give the number of tokens.

    Args:
        units: UTF-16 of all documents, end to end, and `PADDING_UNITS` more that no result depends on.
        ends: (documents,), where each ends in `units`.
        memo: read and added to.
        heap_above: tokens of a word above which a heap finds the merges; changes speed only.
        ids: written: the tokens, each document between `bos` and `eos`; room for 3 a unit, 2 a document
            and `MEMO_TOKENS` more.
        lengths: (documents,), written: tokens of each document, `bos` and `eos` among them.
    """
    best = np.empty(max(heap_above, 1), np.uint64)
    words = Words(
        starts=np.empty(WORDS_AT_ONCE + 1, np.int64),
        keys=np.empty((WORDS_AT_ONCE, 2), np.uint64),
        places=np.empty(WORDS_AT_ONCE, np.int64),
    )
    touched = _ZERO
    written: Int = 0
    at: Int = 0
    for document in range(len(ends)):
        first = written
        ids[written] = bos
        written += 1
        end = ends[document]
        while at < end:
            cut = _cut(units, at, end, tables.kinds, len(memo), words)
            at = words.starts[cut]
            # The memo is larger than the caches. Loads that wait for nothing and that nothing waits for
            # go to memory all at once; in the loop below each would wait for the guess before it.
            for word in range(cut):
                touched ^= memo[words.places[word], 0]
            for word in range(cut):
                count = _recall(memo, words, word, ids, written)
                if count < 0:
                    start, stop = words.starts[word], words.starts[word + 1]
                    count = _merge(units, start, stop, tables, heap_above, best, ids, written)
                    _remember(memo, words, word, ids, written, count)
                written += count
        ids[written] = eos
        written += 1
        lengths[document] = written - first
    best[0] = touched  # or the compiler would leave out the loads
    return written
