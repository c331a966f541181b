"""Which records are kept for evaluation: a pure function of their content and the seed.

A record's key is a number below 2^64, drawn evenly from its content; records whose key is below a threshold
go to dev. So a record stays on its side when others come or go, and equal records are on the same side.
"""

import hashlib
import json
from collections.abc import Iterable

from finetooth.data.records import Record

_NUM_KEYS = 2**64


def split_key(record: Record, *, seed: int) -> int:
    """The record's key, 0 to 2^64 - 1, from its fields and the seed; its place in the file plays no part."""
    content = json.dumps(record.fields, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.blake2b(content, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little")


def dev_threshold(records: Iterable[Record], share: float, *, seed: int) -> int:
    """The number below which a record's key sends it to dev.

    It is the share of all keys, moved where needed so that both sides have a record; only records that are
    all the same stay together, in train. Reads no more records than it takes to know.
    """
    threshold = round(share * _NUM_KEYS)
    smallest, largest = _NUM_KEYS, -1
    for record in records:
        key = split_key(record, seed=seed)
        smallest, largest = min(smallest, key), max(largest, key)
        if smallest < threshold <= largest:
            return threshold
    return smallest + 1 if threshold <= smallest < largest else largest
