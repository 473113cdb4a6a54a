"""User models: from a user's row number to the soft tokens that stand for that user (P-RLHF, arXiv 2402.05133).

Row 0 is the generic user: whoever is unknown, or whose preferences are not to be used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

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
        bad = [u for u in self.user_ids if not isinstance(u, str) or not u]
        if bad:
            raise TypeError(
                f"user ids must be non-empty text, but {bad[0]!r} is a {type(bad[0]).__name__}. "
                "Convert the column once with str()."
            )
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
        if user_id is None:
            return GENERIC
        if user_id not in self._row:
            if unknown == "generic":
                return GENERIC
            known = ", ".join(self.user_ids[:5]) + (", ..." if len(self.user_ids) > 5 else "")
            raise KeyError(
                f"user {user_id!r} has no row: this model knows {len(self.user_ids)} users ({known}). "
                "Pass None for the generic user, or unknown='generic'."
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
                f"{path} is missing, so it is unknown which row belongs to which user. It is written beside the "
                "adapter by PersonalizedDPOTrainer.save_model; point to that folder."
            )
        saved = json.loads(path.read_text())
        return cls(saved.pop("user_ids")), saved


class IndividualUserModel(nn.Module):
    """Individual preferences: `e_i = e_0 + o_i` (P-RLHF), T_u soft tokens a user.

    The generic tokens `e_0` and each user's offset `o_i` start as the embeddings of random words of the model's
    vocabulary, so users differ from the first step on. Row 0 has no offset.

    Args:
        num_rows: users + 1, i.e. `len(UserIndex)`.
        word_embeddings: `[V, d_model]`, the language model's own input embeddings.
        num_tokens: T_u.
        seed: of the draw of words.
    """

    def __init__(self, num_rows: int, word_embeddings: torch.Tensor, num_tokens: int = 10, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        words = torch.randint(len(word_embeddings), (num_rows, num_tokens), generator=generator)
        vectors = word_embeddings.detach()[words.to(word_embeddings.device)].clone()
        self.generic = nn.Parameter(vectors[0])  # e_0 [T_u, d_model]
        self.offsets = nn.Parameter(vectors[1:].clone())  # o [num_rows - 1, T_u, d_model]

    @property
    def num_rows(self) -> int:
        """Users and the generic one."""
        return self.offsets.shape[0] + 1

    @property
    def num_tokens(self) -> int:
        """T_u, the soft tokens a user takes in front of the prompt."""
        return self.generic.shape[0]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows `[B]` (int64, 0 = generic) -> user tokens `[B, T_u, d_model]`."""
        offset = self.offsets[(rows - 1).clamp(min=0)]
        return self.generic + offset * (rows > GENERIC).to(offset.dtype)[:, None, None]
