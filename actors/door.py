"""The door: every row is checked and processed before it is used; refused ones go to a counted quarantine."""

from __future__ import annotations

from collections.abc import Sequence

from actors.encoder import Needs, PromptRef
from actors.roles import Roles
from pipeline.config import Recipe
from pipeline.data.table import PromptTable, Quarantine
from pipeline.records import MediaKind, Quarantined


class Door:
    """Lets the good rows of one split in, and remembers why others were refused."""

    def __init__(self, roles: Roles, recipe: Recipe, split: str, *, stage: str, needs: Needs):
        self._roles = roles
        self._recipe = recipe
        self.split = split
        self._needs = needs
        self._file = recipe.run.directory / "quarantine" / f"{stage}_{split}.parquet"
        self._seen: set[str] = set()
        table = PromptTable(recipe.data_path / f"{split}.parquet")
        self.infos = {info.id: info for info in table.infos()}
        """What the table says of each row, by id, in file order."""
        self.quarantine = Quarantine()

    def admit(self, ids: Sequence[str], *, blanked: frozenset[MediaKind] = frozenset()) -> list[PromptRef]:
        """Processed prompts in the order of `ids`, without the refused ones.

        Raises:
            TooManyBadRows: more than `data.max_bad_fraction` of the rows seen so far were refused.
        """
        admitted: list[PromptRef] = []
        for prompt in self._roles.encode(ids, self.split, self._needs, blanked=blanked):
            if isinstance(prompt, Quarantined):
                self.quarantine.add(prompt)
            else:
                admitted.append(prompt)
        self._seen.update(ids)
        self.quarantine.write(self._file)
        self.quarantine.check(len(self._seen), self._recipe.data.max_bad_fraction)
        return admitted

    def announce(self, ids: Sequence[str]) -> None:
        """Says which rows will be asked for next, so that they are processed by then."""
        self._roles.announce(ids, self.split, self._needs)
