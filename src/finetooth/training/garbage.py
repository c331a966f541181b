"""Python's garbage collection during a run: never within a step, regularly between steps.

The collector walks over every object that may be part of a cycle, hundreds of thousands after the libraries
are loaded. What is there before the first step stays until the end, so it is left out of the walk.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator

STEPS_BETWEEN = 100


@contextlib.contextmanager
def collecting_between_steps() -> Iterator[Callable[[], object]]:
    """Within it, garbage is collected only when what it yields is called.

    At the end the collector is as it was before, also behind an error. Where somebody has switched it off or
    frozen objects already, that stays.
    """
    was_enabled, is_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.collect()
    if not is_frozen:
        gc.freeze()
    gc.disable()
    try:
        yield gc.collect
    finally:
        if not is_frozen:
            gc.unfreeze()
        if was_enabled:
            gc.enable()
