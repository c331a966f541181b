"""Which records are kept for evaluation: a pure function of their group and the seed.

A group's key is a number below 2^64, drawn evenly; groups whose key is below a threshold go to dev. So a
record stays on its side when others come or go, and records of one group (the same prompt, say) are on the
same side.
"""

import hashlib
import json
from collections.abc import Iterable

from finetooth.data.ledger import Entry, Item
from finetooth.data.quality import prompt_hash
from finetooth.data.records import Record

_NUM_KEYS = 2**64


def group_of(entry: Entry, item: Item | None, group_by: str) -> bytes | None:
    """What an entry shares with the others of its group; None where it has no field `group_by`.

    An entry that was not understood is a group by itself.
    """
    if group_by == "prompt":
        if item is not None:
            return prompt_hash(item)
        return _canonical(entry.fields) if isinstance(entry, Record) else str(entry.origin).encode()
    if not isinstance(entry, Record) or group_by not in entry.fields:
        return None
    return _canonical(entry.fields[group_by])


def split_key(group: bytes, *, seed: int) -> int:
    """The group's key, 0 to 2^64 - 1, from its content and the seed; no place in a file plays a part."""
    digest = hashlib.blake2b(group, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little")


def dev_threshold(groups: Iterable[bytes], share: float, *, seed: int) -> int:
    """The number below which a group's key sends it to dev.

    It is the share of all keys, moved where needed so that both sides have a group; only records that are
    all of one group stay together, in train. Reads no more groups than it takes to know.
    """
    threshold = round(share * _NUM_KEYS)
    smallest, largest = _NUM_KEYS, -1
    for group in groups:
        key = split_key(group, seed=seed)
        smallest, largest = min(smallest, key), max(largest, key)
        if smallest < threshold <= largest:
            return threshold
    return smallest + 1 if threshold <= smallest < largest else largest


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
