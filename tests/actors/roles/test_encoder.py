"""How an encoder worker shows a prompt's media: as they are, blanked, or those of another row."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import ray
from numpy.typing import NDArray
from ray.exceptions import ObjectLostError

from actors.engine.place import Place
from actors.fleet.failures import InputsLost
from actors.roles.encoder import (
    SAME_MEDIA,
    EncoderWorker,
    Needs,
    PromptRef,
    Showing,
    StoredMedium,
    StoredPrompt,
    fetch_encoded,
)
from pipeline.config import Device, load_recipe
from pipeline.data.datasets import RowKey, RowRef
from pipeline.data.schema import to_row
from pipeline.data.table import PromptTable, write_prompts
from pipeline.records import MediaKind, Medium, Message, Prompt, Quarantined
from tests.prompts import prompt_ref

pytestmark = pytest.mark.usefixtures("local_ray")

IMAGE, AUDIO = MediaKind.IMAGE, MediaKind.AUDIO
ROWS = ("digit", "other digit", "pair", "other pair", "same digit", "corrupt", "text")


@pytest.fixture(scope="module")
def media(demo_data: Path) -> Mapping[MediaKind, list[Medium]]:
    """Two pictures and two sounds of the built-in data, all different."""
    table = PromptTable(demo_data / "train.parquet")
    prompts = [row for row in table.read([info.id for info in table.infos()]) if isinstance(row, Prompt)]
    return {
        kind: [row.media[0] for row in prompts if row.task == task][:2]
        for task, kind in (("digit", IMAGE), ("speech", AUDIO))
    }


@pytest.fixture(scope="module")
def worker(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, media: Mapping[MediaKind, list[Medium]]
) -> EncoderWorker:
    """A worker over a table of `ROWS`; the media of a pair are in different orders."""
    (digit, other_digit), (word, other_word) = media[IMAGE], media[AUDIO]
    prompts = {
        "digit": ("<image>Which?", (digit,)),
        "other digit": ("<image>What is it?", (other_digit,)),
        "pair": ("<image><audio>Both?", (digit, word)),
        "other pair": ("<audio><image>Sum?", (other_word, other_digit)),
        "same digit": ("<image>Again?", (digit,)),
        "corrupt": ("<image>Broken?", (Medium(IMAGE, b"\x89PNG no picture"),)),
        "text": ("None?", ()),
    }
    directory = tmp_path_factory.mktemp("shown")
    rows = (
        to_row(Prompt(name, "task", (Message("user", text),), shown, "7"), ())
        for name, (text, shown) in prompts.items()
    )
    write_prompts(directory / "train.parquet", rows)
    recipe = load_recipe(None, ["cluster.device=cpu", f"data.path={directory}", f"model.path={tiny_checkpoint}"])
    encoder = EncoderWorker(recipe, recipe.rlhf.encoder)
    encoder.setup(Place(0, 1, "127.0.0.1", 0, Device.CPU, 60.0), tiny_checkpoint)
    return encoder


def key(name: str) -> RowKey:
    return RowKey(0, ROWS.index(name))


def shown(worker: EncoderWorker, name: str, showing: Showing) -> PromptRef | Quarantined:
    (found,) = worker.encode([RowRef(key(name))], "train", Needs(), shown={key(name): showing})
    return found


def features(worker: EncoderWorker, name: str, showing: Showing | None = None) -> list[np.ndarray[Any, Any]]:
    found = shown(worker, name, showing or Showing())
    assert isinstance(found, PromptRef) and found.id == name
    return [cast("np.ndarray[Any, Any]", medium) for medium in fetch_encoded([found])[0].media]


def test_a_completion_that_opens_a_medium_is_not_for_the_models_own_forward(
    worker: EncoderWorker, tiny_checkpoint: Path
) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    prompt = shown(worker, "pair", Showing())
    assert isinstance(prompt, PromptRef)
    words, opened = np.array([70, 71, 72]), np.array([70, config["audio_start_token_id"], 72])
    found = worker.stock_logprobs([(prompt, [words]), (prompt, [opened])], "train", temperature=1.0)
    assert found[0] is not None and found[0].shape == (3,) and found[1] is None


def test_a_prompt_with_the_media_of_another_row_keeps_its_words_and_sees_what_that_row_shows(
    worker: EncoderWorker,
) -> None:
    (own,), (other,) = features(worker, "digit"), features(worker, "other digit")
    (swapped,) = features(worker, "digit", Showing(donor=key("other digit")))
    assert np.array_equal(swapped, other) and not np.array_equal(swapped, own)
    refs = [shown(worker, "digit", each) for each in (Showing(), Showing(donor=key("other digit")))]
    before, after = fetch_encoded([ref for ref in refs if isinstance(ref, PromptRef)])
    assert np.array_equal(before.input_ids, after.input_ids)


def test_each_medium_is_replaced_by_one_of_its_kind_whatever_the_order(worker: EncoderWorker) -> None:
    sound, picture = features(worker, "other pair")
    swapped = features(worker, "pair", Showing(donor=key("other pair")))
    assert np.array_equal(swapped[0], picture) and np.array_equal(swapped[1], sound)


def test_what_is_blanked_and_what_is_swapped_is_kept_apart(worker: EncoderWorker) -> None:
    own = features(worker, "pair")
    blanked = features(worker, "pair", Showing(blanked=frozenset([IMAGE])))
    assert not np.array_equal(blanked[0], own[0]) and np.array_equal(blanked[1], own[1])
    again = features(worker, "pair")
    assert all(np.array_equal(one, other) for one, other in zip(own, again, strict=True))


def test_swapping_runs_no_tower_again(worker: EncoderWorker) -> None:
    for name in ("digit", "other digit"):
        features(worker, name)
    calls = worker.num_tower_calls()
    features(worker, "other digit", Showing(donor=key("digit")))
    assert worker.num_tower_calls() == calls


def test_a_swap_that_changes_nothing_or_has_no_donor_is_refused(worker: EncoderWorker) -> None:
    same = shown(worker, "digit", Showing(donor=key("same digit")))
    assert isinstance(same, Quarantined) and (same.row_id, same.reason) == ("digit", SAME_MEDIA)
    nothing = shown(worker, "digit", Showing(donor=key("text")))
    assert isinstance(nothing, Quarantined) and nothing.reason == SAME_MEDIA
    broken = shown(worker, "digit", Showing(donor=key("corrupt")))
    assert isinstance(broken, Quarantined) and (broken.row_id, broken.reason) == ("digit", "corrupt_image")


@ray.remote(num_cpus=0)
class Owner:
    """Whose end takes along what it owns in the object store."""

    def put(self, value: Any) -> list[Any]:
        return [ray.put(value)]


def copied(prompt: PromptRef) -> list[NDArray[np.float32]]:
    """Features of a prompt; what is only looked at stays in the object store as long as that."""
    return [np.array(cast(Any, medium)) for medium in fetch_encoded([prompt])[0].media]


def test_what_has_left_the_object_store_is_put_there_again_and_nothing_else(
    worker: EncoderWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner: Any = Owner.remote()
    pair, text = RowRef(key("pair")), RowRef(key("text"))
    needs = Needs(tensors=frozenset([IMAGE]))  # that no other test has asked for
    with monkeypatch.context() as patched:
        patched.setattr(ray, "put", lambda value: ray.get(owner.put.remote(value))[0])
        (lost,) = worker.encode([pair], "train", needs)
    (kept,) = worker.encode([text], "train", needs)
    before = copied(cast(PromptRef, lost))
    num_calls = worker.num_tower_calls()
    assert worker.encode([pair, text], "train", needs, again=True) == [lost, kept]
    ray.kill(owner)
    with pytest.raises(ObjectLostError):
        for _ in range(100):  # its end takes a moment to be known
            copied(cast(PromptRef, lost))
            time.sleep(0.1)
    # What is kept is believed, until it is said to be lost.
    assert worker.encode([pair, text], "train", needs) == [lost, kept]
    renewed, same = worker.encode([pair, text], "train", needs, again=True)
    assert same == kept and renewed != lost
    for one, other in zip(before, copied(cast(PromptRef, renewed)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert worker.num_tower_calls() == num_calls + 2


@ray.remote(num_cpus=0)
def late(seconds: float, value: object) -> object:
    """What its owner, as one that hangs on another node, has not got for so long."""
    time.sleep(seconds)
    return value


@pytest.mark.parametrize("is_late", ["prompt", "medium"])
def test_who_waits_for_an_encoder_that_hangs_says_so_and_does_not_hang_itself(is_late: str) -> None:
    features, ids = np.ones((2, 4), np.float32), np.arange(3)

    medium = late.remote(2.0 if is_late == "medium" else 0.0, features)
    stored = StoredPrompt("a", ids, ids[None], (StoredMedium(IMAGE, cast(Any, medium), None),))
    held = late.remote(2.0, stored) if is_late == "prompt" else ray.put(stored)
    prompt = replace(prompt_ref("a"), stored=cast(Any, held))
    with pytest.raises(InputsLost, match=r"not there after 0\.3 s"):
        fetch_encoded([prompt], within_s=0.3)
    (found,) = fetch_encoded([prompt], within_s=30.0)
    assert np.array_equal(cast(Any, found.media[0]), features)
