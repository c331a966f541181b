"""Things that would leave a file behind if they ran."""

import os
import pickle
from pathlib import Path


class Canary:
    """Python source and a pickle that each create the file `ran`."""

    def __init__(self, folder: Path):
        self.mark = folder / "canary-ran"

    @property
    def has_run(self) -> bool:
        return self.mark.exists()

    @property
    def source(self) -> str:
        """A module with classes of any name; it runs when it is imported."""
        return f"open({str(self.mark)!r}, 'w').close()\nclass Evil: pass\ndef generate(*_, **__): pass\n"

    @property
    def pickle(self) -> bytes:
        return pickle.dumps(_Caller(self.mark))

    def run(self) -> None:
        """What each canary does; also in place of a function of a library."""
        self.mark.touch()

    def reset(self) -> None:
        self.mark.unlink()


class _Caller:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.open, (str(self.mark), os.O_CREAT)
