"""kill -9 while checkpoints are being saved."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from actors.engine.files import STATE_FILE, Folder
from tests import worlds
from tests.worlds import killed

NUM_KILLS = 20


def test_kill_9_at_any_moment_of_a_save_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    """What dies is a process that is driver and only rank in one: a real DeepSpeed engine that gathers and writes its
    tensors, the manifest, the rename, and the removal of old checkpoints, through the code that the loop uses. Ray is
    not in it, nor is a machine that loses power: what the process has written survives it in the page cache.
    """
    moments, root = random.Random(0), Folder(f"{tmp_path}/run")
    last_step, num_interrupted = 0, 0
    for number in range(NUM_KILLS):
        started = tmp_path / f"started-{number}"
        ((process, answer),) = worlds.start(killed.save_for_ever, 1, str(root), str(started))
        while not started.exists():
            assert not answer.poll(), answer.recv()
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.25))
        process.kill()
        process.join()
        assert process.exitcode == -9
        num_interrupted += any(name.endswith(".partial") for name in root.names())
        newest = killed.newest_whole(root)
        if newest is None:
            # Only before the first checkpoint there may be none.
            assert last_step == 0
            continue
        folder, manifest = newest
        assert manifest.step >= last_step
        last_step = manifest.step
        stored = json.loads(folder.read(STATE_FILE))
        assert (stored["step"], stored["cursor"]) == (last_step, last_step)
        tensors = killed.tensors_of(folder, manifest)
        trained = [name for name in tensors if name.startswith("parts.")]
        assert len(trained) == 4 * killed.NUM_PARAMETERS
        assert all(bool((tensors.read(name) == last_step).all()) for name in trained)
    assert last_step > 0
    # The kills did not all miss: saves were under way.
    assert num_interrupted >= NUM_KILLS // 4
