"""Results on disk, stage by stage: a stage that is there with the same inputs is not computed again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from filterattr import FilterAttribution, FilterScores, FilterSelection, StorageError
from filterattr.analysis import Record, SampleScores
from filterattr.files import replace_file

_DONE = "done.json"


class Storable(Protocol):
    """What a stage may return: it can be saved, and its class can load it."""

    def save(self, path: str | Path) -> None:
        """Write it to a file."""


Results: TypeAlias = Mapping[str, Any]


class Archive:
    """A folder with one folder per stage.

    The files of a stage are written first and ``done.json``, which names them, last and in one step: a stage is there
    as a whole or not at all.

    Args:
        folder: The folder; it is made with the first result.
        kinds: Further classes of results beside those of `filterattr`: they must have ``save`` and ``load``.

    Example:
        >>> import tempfile
        >>> from filterattr.analysis import RankingTable
        >>> archive = Archive(tempfile.mkdtemp())
        >>> archive.store("rankings", "1234", {"table": RankingTable("attribution", ())}, {"seconds": 1.0})
        >>> archive.is_done("rankings", "1234"), archive.is_done("rankings", "5678")
        (True, False)
        >>> archive.load("rankings")["table"]
        RankingTable(reference='attribution', entries=())
    """

    def __init__(self, folder: str | Path, kinds: tuple[type, ...] = ()) -> None:
        self.folder = Path(folder)
        own = (FilterAttribution, FilterScores, FilterSelection, SampleScores, *kinds)
        self._kinds: dict[str, Any] = {kind.__name__: kind for kind in (*own, *_records())}

    def is_done(self, stage: str, digest: str | None = None) -> bool:
        """Whether the results of a stage are there.

        Args:
            stage: Its name.
            digest: Digest of its inputs; ``None`` takes any.

        Returns:
            Whether they are, and were computed from these inputs.
        """
        done = self._done(stage)
        fits = bool(done) and digest in (None, done["digest"])
        return fits and all(path.exists() for path in self._files(stage, done))

    def stages(self) -> list[str]:
        """List the stages that are there, in the order of their names."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{_DONE}") if self.is_done(path.parent.name))

    def notes(self, stage: str) -> dict[str, Any]:
        """What was noted beside the results of a stage: its digest, time and passes."""
        done = self._done(stage)
        return {name: value for name, value in done.items() if name != "artifacts"}

    def store(self, stage: str, digest: str, results: Results, notes: Mapping[str, Any]) -> None:
        """Write the results of a stage, and forget what it kept while it worked.

        Args:
            stage: Its name.
            digest: Digest of its inputs.
            results: Name (letters, digits, ``_`` and ``-``) to result.
            notes: JSON values.

        Raises:
            StorageError: A name or a class cannot be stored, or the disk refuses.
        """
        foreign = [
            f"{name} ({type(one).__name__})"
            for name, one in results.items()
            if not re.fullmatch(r"[\w-]+", name) or type(one).__name__ not in self._kinds
        ]
        if foreign:
            raise StorageError(f"results must be of a known class under a plain name; {', '.join(foreign)} are not.")
        folder = self.folder / stage
        artifacts = {name: type(one).__name__ for name, one in results.items()}
        done = {"digest": digest, **notes, "artifacts": artifacts}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _DONE).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"'{folder}' cannot be written to: {error}.") from error
        for path, one in zip(self._files(stage, done), results.values(), strict=True):
            one.save(path)
        replace_file(folder / _DONE, [json.dumps(done, indent=1).encode()])
        shutil.rmtree(self.folder / ".work" / stage, ignore_errors=True)

    def load(self, stage: str) -> Results:
        """Open the results of a stage.

        Args:
            stage: Its name.

        Returns:
            Name to result; each is read when it is asked for, and a damaged one refused then.

        Raises:
            StorageError: They are not there, or of another version.
        """
        done = self._done(stage)
        if not done:
            raise StorageError(f"'{self.folder}' holds no results of the stage {stage!r}; run the study first.")
        unknown = set(done["artifacts"].values()) - set(self._kinds)
        if unknown:
            raise StorageError(f"'{self.folder / stage}' holds {', '.join(sorted(unknown))}, which this version lacks.")
        files = zip(done["artifacts"].items(), self._files(stage, done), strict=True)
        return _Stored({name: partial(self._kinds[kind].load, path) for (name, kind), path in files})

    def work(self, stage: str, digest: str) -> Path:
        """Folder for what a stage keeps while it works; it belongs to these inputs and goes when the stage is done.

        Args:
            stage: Its name.
            digest: Digest of its inputs.

        Returns:
            The folder; it exists.
        """
        folder = self.folder / ".work" / stage / digest[:16]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"'{folder}' cannot be made: {error}.") from error
        return folder

    def _done(self, stage: str) -> dict[str, Any]:
        path = self.folder / stage / _DONE
        try:
            done = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StorageError(f"'{path}' cannot be read ({error}). Delete it to compute the stage again.") from error
        if not isinstance(done, dict) or not isinstance(done.get("artifacts"), dict) or "digest" not in done:
            raise StorageError(f"'{path}' does not name the results of a stage. Delete it to compute the stage again.")
        return done

    def _files(self, stage: str, done: Mapping[str, Any]) -> list[Path]:
        return [
            self.folder / stage / f"{name}.{'json' if self._is_record(kind) else 'safetensors'}"
            for name, kind in done["artifacts"].items()
        ]

    def _is_record(self, kind: str) -> bool:
        return issubclass(self._kinds.get(kind, Record), Record)


class _Stored(Mapping[str, Any]):
    """Results that are read from the disk when they are asked for, once."""

    def __init__(self, readers: Mapping[str, Callable[[], Any]]) -> None:
        self._readers = readers
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            self._read[name] = self._readers[name]()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def _records() -> list[type]:
    """Every kind of record that there is."""
    return list(Record.__subclasses__())
