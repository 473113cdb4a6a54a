"""Users and their rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

GENERIC = 0
INDEX_FILE = "users.json"


class UserIndex:
    """The one place where a user's id (text) becomes a row number. Row 0 belongs to the generic user.

    >>> index = UserIndex(["ann", "bob"])
    >>> index.rows(["bob", None, "ann"])
    [2, 0, 1]
    """

    def __init__(self, user_ids: Iterable[str]):
        self.user_ids = list(user_ids)
        if bad := [u for u in self.user_ids if not isinstance(u, str) or not u]:
            raise TypeError(f"user ids must be non-empty text, got {bad[0]!r}. Convert the column once with str().")
        self._row = {user: row for row, user in enumerate(self.user_ids, start=1)}
        if len(self._row) != len(self.user_ids):
            twice = next(u for u in self.user_ids if self.user_ids.count(u) > 1)
            raise ValueError(f"user id {twice!r} is listed twice; each is expected once: pass sorted(set(ids)).")

    def __len__(self) -> int:
        """Number of rows, the generic user's included."""
        return len(self.user_ids) + 1

    def __contains__(self, user_id: object) -> bool:
        return user_id in self._row

    def row(self, user_id: str | None, unknown: str = "error") -> int:
        """Row of one user; None is the generic user. `unknown="generic"` sends unseen users to row 0 instead of
        raising `KeyError`, as P-RLHF does at inference."""
        if user_id is None or (unknown == "generic" and user_id not in self._row):
            return GENERIC
        if user_id not in self._row:
            known = ", ".join(self.user_ids[:5]) + (", ..." if len(self.user_ids) > 5 else "")
            raise KeyError(
                f"user {user_id!r} has no row among {len(self.user_ids)} ({known}). None, or unknown='generic': row 0."
            )
        return self._row[user_id]

    def rows(self, user_ids: Iterable[str | None], unknown: str = "error") -> list[int]:
        """Rows of several users, see `row`."""
        return [self.row(user, unknown) for user in user_ids]

    def save(self, folder: str | Path, **extra) -> None:
        """Write `users.json` into `folder`, with `extra` (what is needed to build the user model again)."""
        Path(folder, INDEX_FILE).write_text(json.dumps({"user_ids": self.user_ids, **extra}, indent=1))

    @classmethod
    def load(cls, folder: str | Path) -> tuple[UserIndex, dict]:
        """The index saved in `folder`, and the extras saved with it."""
        path = Path(folder, INDEX_FILE)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: unknown which row is whose. Pass a folder that training wrote."
            )
        saved = json.loads(path.read_text())
        return cls(saved.pop("user_ids")), saved
