"""Comparisons of two answers, or of two whole conversations: what they share, and where they part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.data.ingest.columns import Columns
from pipeline.data.ingest.numbered import Media
from pipeline.data.ingest.spellings import media_kind_of
from pipeline.data.ingest.turns import Slot, content_of, media_of, turns_of
from pipeline.data.schema import MEDIA_COLUMNS, Reason, RowError
from pipeline.records import Message

Turn = tuple[Message, list[Slot]]


def check_sides(columns: Columns, media: Media) -> None:
    """Makes sure that both answers of a comparison are about the same media: ms-swift has `rejected_images`.

    Raises:
        RowError: they are not.
    """
    for column in list(columns):
        side = next((side for side in ("chosen", "rejected") if side in str(column).split("_")), None)
        kind = media_kind_of(str(column).removeprefix(f"{side}_").removesuffix(f"_{side}")) if side else None
        if kind is None:
            continue
        given = media_of(columns.take(column), kind, column)
        if given and given != list(media[kind].values()):
            raise RowError(
                Reason.BAD_PREFERENCE,
                f"{column} holds other media than {MEDIA_COLUMNS[kind]}; both answers of a comparison are about "
                f"the same ones (prepare.ignore=[{column}] leaves it out on purpose)",
            )


def without_common(
    prompt: list[Turn], chosen: list[Turn], rejected: list[Turn]
) -> tuple[list[Turn], list[Turn], list[Turn]]:
    """Prompt, chosen and rejected, where the latter two may hold the whole conversation (TRL's implicit prompt), and
    the prompt may hold it, too (UltraFeedback's `messages`).

    Raises:
        RowError: there is one side alone, or the two differ in what is asked.
    """
    if not rejected:
        raise RowError(Reason.BAD_PREFERENCE, "chosen without rejected")
    ends_in_answer = bool(prompt) and prompt[-1][0].role == "assistant"
    if not chosen and ends_in_answer:
        # ms-swift has an answer beside the conversation, or a second conversation.
        chosen, prompt = (prompt, []) if len(rejected) > 1 else (prompt[-1:], prompt[:-1])
    if not chosen:
        raise RowError(Reason.BAD_PREFERENCE, "rejected without chosen")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    # What differs begins with an answer.
    while shared and chosen[shared][0].role == rejected[shared][0].role == "user":
        shared -= 1
    common, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if (role := chosen[0][0].role) == rejected[0][0].role != "assistant":
        raise RowError(
            Reason.BAD_PREFERENCE,
            f"chosen and rejected differ in turn {shared + 1}, by {role!r}: {chosen[0][0].content[:80]!r} and "
            f"{rejected[0][0].content[:80]!r}; both are about one prompt",
        )
    if not common or not prompt:
        return common or prompt, chosen, rejected
    if ends_in_answer and _plain(prompt)[: len(_plain(common))] == _plain(common):
        return common, chosen, rejected
    ours, theirs = _plain(prompt), _plain(common)
    if not any(theirs[at : at + len(ours)] == ours for at in range(len(theirs))):
        return [*prompt, *common], chosen, rejected
    has_system = prompt[0][0].role == "system" != common[0][0].role
    return [*prompt[:has_system], *common], chosen, rejected


def _plain(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    return [(message.role, message.content.strip()) for message, _ in turns if message.role != "system"]


def parted(turns: list[Turn], field: str) -> tuple[str | None, tuple[Message, ...]]:
    """The answer in which a side of a comparison begins, and the turns that followed it.

    Raises:
        RowError: those are not the user's and the assistant's in turn, or hold a medium.
    """
    if not turns:
        return None, ()
    roles = [message.role for message, _ in turns]
    if len(turns) == 1 and roles[0] != "assistant":
        raise RowError(Reason.BAD_ROLE, f"{field} is a turn by {roles[0]!r}; answers are the assistant's")
    if roles != ["assistant", "user"] * (len(roles) // 2) + ["assistant"]:
        raise RowError(
            Reason.BAD_PREFERENCE,
            f"{field} goes on in turns by {roles}; wanted the assistant's and the user's in turn, an answer last",
        )
    if any(slots for _, slots in turns[1:]):
        raise RowError(
            Reason.BAD_PREFERENCE,
            f"{field} shows media after its first answer; media belong to the prompt that both sides share",
        )
    first, *then = (replace(message, content=without_tags(message.content, field)) for message, _ in turns)
    return first.content, tuple(then)


def answers_of(value: object, field: str) -> list[Turn]:
    """What an assistant said: an answer, or turns.

    Raises:
        RowError: it is several answers.
    """
    if isinstance(value, list) and value and all(each is None or isinstance(each, str) for each in value):
        texts = [each for each in value if each]
        if len(texts) != 1:
            raise RowError(
                Reason.WRONG_TYPE, f"{field} holds {len(texts)} answers ({str(value)[:80]}); a row a comparison has one"
            )
        value = texts[0]
    return turns_of(value, field, "assistant")


def without_tags(text: str, field: str) -> str:
    """The text itself.

    Raises:
        RowError: it shows a medium.
    """
    _, slots = content_of(text, field)
    if slots:
        raise RowError(Reason.PLACEHOLDER_MISMATCH, f"{field} holds {len(slots)} tags of media; answers are text alone")
    return text
