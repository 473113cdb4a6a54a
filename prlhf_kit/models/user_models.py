"""User models: from a user's row number to the soft tokens that stand for that user (P-RLHF, arXiv 2402.05133). Row 0
is the generic user: whoever is unknown, or whose preferences are not to be used."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from prlhf_kit.models.user_index import GENERIC


def word_vectors(
    word_embeddings: nn.Module,
    rows: int,
    num_tokens: int,
    init: str = "words",
    vocabulary: int | Sequence[int] | None = None,
    random_range: float | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Starting values of soft tokens: `[rows, num_tokens, d_model]`.

    Args:
        word_embeddings: the language model's own embedding layer (`model.get_input_embeddings()`), whose *output* soft
            tokens start as: Gemma's layer scales its weights, others norm them.
        init: "words" (random ones), or "normal" or "uniform" with the mean and standard deviation of all words.
        vocabulary: token ids among which words are drawn, or how many of the first (most common) ones. None: all.
        random_range: "uniform" is from minus it to it (P-RLHF: 0.5). None: as wide as the words.
    """
    table: Any = word_embeddings.weight  # [V, d_model]

    @torch.no_grad()
    def words(ids: torch.Tensor) -> torch.Tensor:
        return word_embeddings(ids.to(table.device))

    if num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens}: expected at least 1, else all users are the same.")
    size = (rows, num_tokens, table.shape[1])
    generator = torch.Generator().manual_seed(seed)
    if init == "words":
        known = range(len(table)) if vocabulary is None else vocabulary
        drawn = torch.tensor(range(known) if isinstance(known, int) else known)
        if not len(drawn) or not 0 <= int(drawn.min()) <= int(drawn.max()) < len(table):
            raise ValueError(f"{vocabulary=}: expected a number from 1 to {len(table)}, token ids below that, or None.")
        return words(drawn[torch.randint(len(drawn), size[:2], generator=generator)])
    if init == "normal":
        values = torch.randn(size, generator=generator)
    elif init == "uniform":
        values = torch.rand(size, generator=generator) * 2 - 1
        if random_range is not None:
            return (values * random_range).to(table)
        values *= 3**0.5  # variance 1
    else:
        raise ValueError(f"init={init!r}: expected 'words', 'normal' or 'uniform'.")
    known_words = words(torch.arange(len(table)))
    return values.to(known_words) * known_words.std() + known_words.mean()


class UserModel(nn.Module):
    """A user model: what is a user's own (`own`, one row a user), and how it becomes soft tokens (`tokens`).

    Subclasses set `own` `[num_rows, ...]`, define `tokens`, and add to `options`. Parameters named in `shared_slow` (as
    a rule `generic` `[T_u, d_model]`) learn at the adapter's rate, all others at `user_learning_rate`.
    `row_0_is_zero`: nothing is added for the generic user (`e_i = e_0 + ...`). Where row 0 has numbers of its own and
    no term of the loss is the generic user's (alpha = 1, reward models), the trainer sets `generic_is_mean`: row 0 is
    then the mean of all users' numbers.

    Args:
        after_bos: user tokens go after each sequence's first token (P-RLHF: BOS), not in front of it. None: the trainer
            decides, True where dialogues begin with a BOS that the tokenizer writes by itself (`begins_with_bos`).
        user_text: the prompt's system message is what the user says of themselves (P-RLHF's textual information);
            trainer and scoring put it there, prompts for generation have it already. True: for the policy, the generic
            user's term included, and not for the reference. "authors", as in P-RLHF's code: for policy and reference
            alike, and not in the generic user's term.
        start: `init`, `vocabulary`, `random_range` and `seed` of `word_vectors`.
    """

    own: nn.Parameter
    shared_slow: tuple[str, ...] = ("generic",)
    row_0_is_zero = True

    def __init__(
        self,
        after_bos: bool | None = None,
        user_text: bool | Literal["authors"] = False,
        generic_is_mean: bool = False,
        **start: Any,
    ):
        super().__init__()
        if user_text not in (False, True, "authors"):
            raise ValueError(f"user_text={user_text!r}: expected False, True or 'authors'.")
        self.generic_is_mean = generic_is_mean
        self.after_bos, self.user_text, self.start = after_bos, user_text, start

    def normal(self, *size: int) -> torch.Tensor:
        """Numbers from `N(0, 1)` to start at."""
        return torch.randn(size, generator=torch.Generator().manual_seed(self.start.get("seed", 0) + 1))

    @property
    def num_rows(self) -> int:
        """Users and the generic one."""
        return len(self.own)

    @property
    def num_tokens(self) -> int:
        """T_u, the soft tokens that a user takes in the context."""
        return self.tokens(self.own[:1]).shape[1]

    def options(self) -> dict[str, Any]:
        """Arguments beside the number of rows and the embeddings, to build an untrained one of the same shape."""
        known = {"num_tokens": self.num_tokens, "after_bos": bool(self.after_bos), "user_text": self.user_text}
        return known | ({"generic_is_mean": True} if self.generic_is_mean else {})

    def tokens(self, own: torch.Tensor) -> torch.Tensor:
        """Users' own numbers `[B, ...]` -> user tokens `[B, T_u, d_model]`."""
        raise NotImplementedError

    def user_offsets(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows `[B]` -> the users' own numbers `[B, ...]`; zeros for the generic user where that is their meaning."""
        rows = rows.to(self.own.device)
        own, generic = self.own[rows], (rows == GENERIC).view(-1, *[1] * (self.own.dim() - 1))
        if self.row_0_is_zero:
            return own * ~generic
        if self.generic_is_mean and self.num_rows > 1 and generic.any():
            return torch.where(generic, self.own[GENERIC + 1 :].mean(0), own)
        return own

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows `[B]` (int64, 0 = generic) -> user tokens `[B, T_u, d_model]`."""
        return self.tokens(self.user_offsets(rows))


class IndividualUserModel(UserModel):
    """Individual preferences: `e_i = e_0 + o_i` (P-RLHF). A user costs `T_u * d_model` numbers.

    Args:
        num_rows: users + 1, i.e. `len(UserIndex)`.
        word_embeddings: see `word_vectors`.
        num_tokens: T_u.
        add_generic_user: False gives `e_i = o_i`; row 0 then has tokens of its own that no user shares.
        more: see `UserModel`.
    """

    def __init__(self, num_rows: int, word_embeddings: nn.Module, num_tokens=10, *, add_generic_user=True, **more):
        super().__init__(**more)
        vectors = word_vectors(word_embeddings, num_rows, num_tokens, **self.start)
        self.row_0_is_zero = add_generic_user
        self.generic = nn.Parameter(vectors[0].clone()) if add_generic_user else None  # e_0 [T_u, d_model]
        if add_generic_user:
            vectors[0] = 0
        self.own = nn.Parameter(vectors)  # o [num_rows, T_u, d_model]

    def options(self) -> dict[str, Any]:
        return super().options() | {"add_generic_user": self.row_0_is_zero}

    def tokens(self, own: torch.Tensor) -> torch.Tensor:
        return own if self.generic is None else self.generic + own  # [T_u, d_model] + [B, T_u, d_model]


class ClusterUserModel(UserModel):
    """Cluster-based preferences: `e_i = sum_k softmax(w_i)_k c_k` (P-RLHF).

    A user, the generic one included, costs K (`clusters`) numbers. The logits `w_i` start as `N(0, 1)`: users who all
    started at the mean of the centres would hardly leave it. `own` holds `w_i / 10`, since Adam moves every number by
    about the learning rate a step, and logits have farther to go. Other arguments: see `IndividualUserModel`.
    """

    row_0_is_zero = False
    SCALE = 10.0

    def __init__(self, num_rows: int, word_embeddings: nn.Module, num_tokens=10, *, clusters=5, **more):
        super().__init__(**more)
        self.centres = nn.Parameter(word_vectors(word_embeddings, clusters, num_tokens, **self.start))
        if clusters < 2:
            raise ValueError(f"clusters={clusters}: expected at least 2, else all users are the same.")
        drawn = self.normal(num_rows, clusters)
        self.own = nn.Parameter((drawn / self.SCALE).to(self.centres))  # w / SCALE [num_rows, K]

    def options(self) -> dict[str, Any]:
        return super().options() | {"clusters": len(self.centres)}

    def tokens(self, own: torch.Tensor) -> torch.Tensor:
        # weights [B, K], centres [K, T_u, d_model]
        return torch.einsum("bk,ktd->btd", (self.SCALE * own).softmax(-1), self.centres)

    def assignment(self) -> torch.Tensor:
        """softmax(w): `[num_rows, K]`, rows add up to 1."""
        return (self.SCALE * self.own.detach()).softmax(-1)


class LowRankUserModel(UserModel):
    """Users in a shared basis: `e_i = e_0 + sum_r a_ir B_r`. Beyond P-RLHF, for very many users.

    A user costs `rank` numbers: a million users of rank 16 are 64 MB in float32, where T_u = 10 tokens of d_model =
    4096 each would be 164 GB. The coefficients start as `N(0, 1 / rank)`. Other arguments: see `IndividualUserModel`.
    """

    def __init__(self, num_rows: int, word_embeddings: nn.Module, num_tokens=10, *, rank=16, **more):
        super().__init__(**more)
        if rank < 1:
            raise ValueError(f"rank={rank}: expected at least 1, else all users are the same.")
        vectors = word_vectors(word_embeddings, rank + 1, num_tokens, **self.start)
        self.generic = nn.Parameter(vectors[0].clone())  # e_0 [T_u, d_model]
        self.basis = nn.Parameter(vectors[1:].clone())  # B [rank, T_u, d_model]
        drawn = self.normal(num_rows, rank)
        drawn[GENERIC] = 0
        self.own = nn.Parameter((drawn * rank**-0.5).to(self.generic))  # a [num_rows, rank]

    def options(self) -> dict[str, Any]:
        return super().options() | {"rank": len(self.basis)}

    def tokens(self, own: torch.Tensor) -> torch.Tensor:
        # coefficients [B, r], basis [r, T_u, d_model]
        return self.generic + torch.einsum("br,rtd->btd", own, self.basis)


USER_MODELS: dict[str, type[UserModel]] = {
    "individual": IndividualUserModel,
    "cluster": ClusterUserModel,
    "low_rank": LowRankUserModel,
}
