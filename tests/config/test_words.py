"""Words of a recipe: a value is what it seems to be, or an error says which field, which value and what to write."""

import shlex
from pathlib import Path

import pytest

from pipeline.config import Base, ConfigError, Recipe, Section, absolute, check_once, load_recipe


def value(field: str, override: str | None = None, text: str | None = None, directory: Path | None = None) -> object:
    """What a field is after an override, or in a recipe of this text."""
    path = None
    if text is not None and directory is not None:
        path = directory / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
    found: object = load_recipe(path, [] if override is None else [f"{field}={override}"])
    for name in field.split("."):
        assert isinstance(found, Section)
        found = getattr(found, name)
    return found


def refused(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "written", "meant"),
    [
        # YAML 1.1 has octal, base 60, underscores, dates and a dozen words for true and false.
        ("run.seed", "0123", 123),
        ("run.seed", "007", 7),
        ("run.seed", "0x10", 16),
        ("run.seed", "1_000", 1000),
        ("run.seed", "1e3", 1000),
        ("sft.learning_rate", "1e-6", 1e-6),
        ("sft.learning_rate", ".5", 0.5),
        ("run.name", "1:30", "1:30"),
        ("run.name", "2026-11-26", "2026-11-26"),
        ("run.name", "no", "no"),
        ("run.name", "On", "On"),
        ("run.name", "1_000", "1_000"),
        ("prepare.tasks", "[yes, no, on, off, y, 12:30:45]", ("yes", "no", "on", "off", "y", "12:30:45")),
        ("model.share_prefix", "no", False),
        ("model.share_prefix", "False", False),
        ("model.path", "null", None),
        # What a shell hands over is a text as it stands, unless it is quoted or a list or a mapping.
        ("run.name", "exp #3", "exp #3"),
        ("run.name", "#3", "#3"),
        ("run.name", "&a b", "&a b"),
        ("run.name", "--- a", "--- a"),
        ("run.name", "=", "="),
        ("run.name", "'exp #3'", "exp #3"),
        ("run.name", "'None'", "None"),
        ("run.name", "'7'", "7"),
        # So is a number: quotes around it are eaten by the shell.
        ("run.name", "20240615", "20240615"),
        ("run.name", "007", "007"),
        ("run.name", "1e3", "1e3"),
        ("evaluate.split", "2", "2"),
        ("run.directory", "2026", Path("2026")),
        ("data.path", "2024", "2024"),
        ("prepare.sort_by", "3", "3"),
    ],
)
def test_a_value_is_what_it_seems_to_be(field: str, written: str, meant: object) -> None:
    found = value(field, written)
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.path=", "override 'model.path=': no value; write model.path=null for none"),
        ("run.name= ", "no value; write run.name=null for none"),
        ("prepare.tasks=[digit, ]#x", "would be lost as a comment"),
        ("run.name='a' # b", "\"'a'\" would be lost as a comment"),
        ("model.path=None", "model.path: None is Python's word; write null for none"),
        ("prepare.sort_by=None", "prepare.sort_by: None is Python's word"),
        ("data.mixture=[{path: a, name: None}]", "data.mixture.0.name: None is Python's word"),
        ("data.path=none", "path='none': this is a text; write null, without quotes"),
        ("data.path='null'", "path='null': this is a text; write null, without quotes"),
        ("prepare.sort_by=none", "sort_by='none': this is a text; write null"),
        ("run.directory=none", "run.directory: Value error, 'none' as a path; write null without quotes"),
        ("model.path=~", "~ is null to YAML, and home to a shell; write null for none, ~/"),
        ("run.seed=true", "seed=true: no number; write one, such as 1"),
        ("sft.betas=[true, 0.9]", "betas=true: no number"),
        ("run.name=!!int 7", "run.name: Input should be a valid string (got 7); in quotes it is a text"),
        ("run.name=true", "run.name: Input should be a valid string (got True); in quotes it is a text"),
        ("prepare.map={answer: 7}", "prepare.map.answer: Input should be a valid string (got 7)"),
        ("prepare.map={answer: a, answer: b}", "prepare.map.answer: stands twice, on line 1, and one would be lost"),
        ("prepare.map={true: a, 1: b}", "prepare.map.1: stands twice"),
        ("rlhf.policy.resources={a: true}", "resources.a=true: no number; write one, such as 1"),
        ("rlhf.rewards.wer.weight={0: 1, 5: true}", "schedule.5=true: no number"),
        ("rlhf.rewards.wer.weight={0: 1, true: 2}", "a key of schedule=true: no number"),
        ("rlhf.rewards.wer.weight={0: 1, 00: 2}", "rlhf.rewards.wer.weight.00: stands twice, on line 1"),
        ("rlhf.rewards.wer.weight={1: 1, 0x1: 2}", "rlhf.rewards.wer.weight.0x1: stands twice"),
        ("rlhf.rewards.wer.weight={0: 1, false: 2}", "rlhf.rewards.wer.weight.false: stands twice"),
        ("run.name={{ name }}", "run.name: a list or a mapping stands where a name should; a {{ template }} is to be"),
        ("run.seed=1:30", "run.seed: Input should be a valid integer"),
        ("run.seed=3 #x", "run.seed: Input should be a valid integer"),
        ("run.directory=''", "run.directory: Value error, an empty path; write null for none, or . for"),
        ("run.directory=$HOME/x", "'$HOME/x' holds a variable, which recipes do not know"),
        ("data.access.roots=['${DATA}/x']", "'${DATA}/x' holds a variable"),
        ("run.directory=~nobody-of-this-name/x", "nobody here has this home directory; write ./~nobody"),
        ("run.directory=s3://bucket/run", "'s3://bucket/run' is an address; name a directory on disk"),
        # What pathlib makes of an address with one slash is a directory here.
        (
            "data.path=s3:/bucket/x",
            "data.path: Value error, 's3:/bucket/x' is half an address, or a path",
        ),
        ("rlhf.checkpoints.path=dbfs:/x", "write dbfs://x"),
        ("prepare.sources=[{path: 's3:b/x.jsonl'}]", "prepare.sources.0.path: Value error, 's3:b/x.jsonl' is half"),
        ("data.mixture=[{path: 'gs:/b'}]", "write gs://b"),
        ("data.access.roots=['s3:/b']", "write s3://b"),
        ("run.directory=s3:/bucket/run", "write s3://bucket/run"),
        ("data.path=C:/data", "a path of Windows; write that of the machine which opens it"),
        (r"run.directory=C:\data", "a path of Windows"),
        ("feedback.url=/runs/store.sqlite", "feedback.url: Value error, url=/runs/store.sqlite: write sqlite:////path"),
        ("feedback.url=runs/store.sqlite", "url=runs/store.sqlite: write sqlite:////path/to/file"),
        ("feedback.url=mysql://u@h/x", "url=mysql://u@h/x: write sqlite:////path/to/file"),
        ("feedback.url=sqlite:////~/x.db", "with four slashes, no ~ and no variables"),
        ("feedback.url=sqlite:////runs/$NAME.db", "no ~ and no variables"),
    ],
)
def test_what_would_change_in_silence_is_refused_with_field_value_and_cure(override: str, told: str) -> None:
    message = refused(override)
    assert told in message, message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "run: {seed: 1}\nsft: {rows: 2}\nrun: {name: a}\n",
            "run: stands twice, on lines 1 and 3, and one would be lost",
        ),
        (
            "rlhf:\n  policy:\n    betas: [0.9, 0.9]\n    betas: [0.8, 0.9]\n",
            "rlhf.policy.betas: stands twice, on lines 3",
        ),
        ("prepare: {sources: [{path: a}, {path: b, path: c}]}\n", "prepare.sources.1.path: stands twice, on line 1"),
        ("run:\n  name: a\n  'name': b\n", "run.name: stands twice, on lines 2 and 3"),
        ("base: a.yaml\nbase: b.yaml\n", "base: stands twice, on lines 1 and 2"),
        ("model:\n  path:\n", "model.path: no value; write null for none"),
        ("model: {path: }\n", "model.path: no value"),
        ("model: {path: ~}\n", "model.path: ~ is null to YAML"),
        ("model: {path: None}\n", "model.path: None is Python's word"),
        ("run:\n  directory: {{ directory }}\n", "run.directory: a list or a mapping stands where a name should"),
        (
            "sft: &a {rows: 1}\npreferences: &b {num_prompts: 2}\ndistill:\n  <<: *a\n  <<: *b\n",
            "distill.<<: stands twice, on lines 4 and 5, and one would be lost; write <<: [*one, *other]",
        ),
        ("run:\n  name: exp #3\n", "run.name: '#3' would be lost as a comment; put 'exp #3' in quotes"),
    ],
)
def test_a_recipe_that_loses_a_value_is_refused_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    message = refused(path=path)
    assert message.startswith(f"--config {path}: ")
    assert told in message, message


@pytest.mark.parametrize(
    ("override", "typed"),
    [
        ("run.name=true", """'run.name="true"'"""),
        ("run.name=a: b", """'run.name="a: b"'"""),
        ("run.name=[it's]", """'run.name="[it'"'"'s]"'"""),
        ("run.directory=true", """'run.directory="true"'"""),
        ("run.sinks=console", "'run.sinks=[console]'"),
        ("run.sinks=console,jsonl", "'run.sinks=[console,jsonl]'"),
        ("data.access.roots=/tmp", "'data.access.roots=[/tmp]'"),
        ("prepare.sources=a", """'prepare.sources=[{path: "a"}]'"""),
        ("prepare.steps=text.normalise", """'prepare.steps=[{step: "text.normalise"}]'"""),
    ],
)
def test_a_cure_is_told_as_a_shell_takes_it(override: str, typed: str) -> None:
    message = refused(override)
    assert message.endswith(f": {typed}"), message
    (argument,) = shlex.split(typed)
    load_recipe(None, [argument])


def test_a_cure_in_a_file_needs_no_shell_and_what_cannot_be_meant_has_none(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("run: {name: 7, sinks: console}\n", encoding="utf-8")
    name, sinks = refused(path=path).splitlines()
    assert name.endswith("(got 7); in quotes it is a text") and sinks.endswith("; write a list: [console]")
    assert "others around the override" in refused("prepare.tasks=[7]")
    for override in ("pretrain.pairs=text", "run.sinks=null", "run.sinks=true"):
        assert "; write" not in refused(override)


def test_comments_anchors_and_merge_keys_are_yaml(tmp_path: Path) -> None:
    text = "rlhf:\n  policy: &p\n    warmup_steps: 5 # of 40\n    learning_rate: 1e-3\n"
    text += "  critic:\n    <<: *p\n    warmup_steps: 7\n"
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    rlhf = load_recipe(path).rlhf
    assert (rlhf.policy.warmup_steps, rlhf.critic.warmup_steps, rlhf.critic.learning_rate) == (5, 7, 1e-3)


def test_a_document_that_is_deep_or_endless_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for text in ("run: " + "[" * 5000, "run: &a [*a]\n"):
        path.write_text(text, encoding="utf-8")
        refused(path=path)


def test_a_recipe_is_utf_8_and_others_are_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text("run: {name: übung 演示}\n", encoding=encoding)
        assert load_recipe(path).run.name == "übung 演示"
    for encoding in ("latin-1", "utf-16"):
        path.write_text("run: {name: übung}\n", encoding=encoding)
        assert "is not UTF-8; save the recipe as UTF-8" in refused(path=path)


@pytest.mark.parametrize(
    "written", ["file:///a b/c%20d", "file:/a b/c%20d", "file://localhost/a b/c%20d", "FILE:///a b/c%20d"]
)
def test_a_file_address_is_the_path_that_it_names(written: str) -> None:
    recipe = load_recipe(None, [f"{field}={written}" for field in PATHS])
    assert {place(recipe, field) for field in PATHS} == {"/a b/c%20d"}


def test_a_word_that_is_no_path_may_be_the_name_of_one(tmp_path: Path) -> None:
    recipe = load_recipe(None, ["run.directory=./none", "data.path=./12:30", "prepare.sources=[{path: ./a:/b}]"])
    moved = absolute(recipe, Base(tmp_path))
    assert (moved.run.directory, moved.data.path) == (tmp_path / "none", f"{tmp_path}/12:30")
    assert moved.prepare.sources[0].path == f"{tmp_path}/a:/b"


@pytest.mark.parametrize(
    "url", ["sqlite:////runs/store.sqlite", "postgresql://u@h/x", "postgresql://u@/x?host=/tmp/pg"]
)
def test_a_feedback_store_is_a_file_or_in_postgresql(url: str) -> None:
    assert value("feedback.url", url) == url


def test_home_is_home_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    recipe = load_recipe(None, [f"{field}=~/x" for field in PATHS])
    assert {place(recipe, field) for field in PATHS} == {"/home/ada/x"}
    recipe = load_recipe(
        None, ["prepare.sources=[{path: ~/x}]", "data.access.roots=[~/x]", "data.mixture=[{path: ~/x}]"]
    )
    assert recipe.prepare.sources[0].path == recipe.data.access.roots[0] == recipe.data.mixture[0].path == "/home/ada/x"


PATHS = ("run.directory", "model.path", "data.path", "rlhf.checkpoints.path")
LISTED = ("prepare.sources=[{path: in/a}]", "data.mixture=[{path: in/b}]", "data.access.roots=[in/c]")


def place(recipe: Recipe, field: str) -> str:
    found: object = recipe
    for name in field.split("."):
        found = getattr(found, name)
    return str(found)


def test_every_path_becomes_absolute_and_addresses_stay(tmp_path: Path) -> None:
    recipe = load_recipe(None, [*(f"{field}=../a/./b" for field in PATHS), *LISTED])
    moved = absolute(recipe, Base(tmp_path / "here"))
    assert {place(moved, field) for field in PATHS} == {f"{tmp_path}/a/b"}
    assert moved.prepare.sources[0].path == f"{tmp_path}/here/in/a"
    assert moved.data.mixture[0].path == f"{tmp_path}/here/in/b"
    assert moved.data.access.roots == (f"{tmp_path}/here/in/c",)
    assert place(absolute(Recipe(), Base(tmp_path)), "run.directory") == f"{tmp_path}/runs/demo"
    remote = load_recipe(None, ["data.path=s3://bucket/a", "rlhf.checkpoints.path=memory://b", "run.directory=/x"])
    assert absolute(remote, Base(tmp_path)) == remote


@pytest.mark.parametrize("override", [*(f"{field}=in/a" for field in PATHS), *LISTED, None])
def test_where_nobody_knows_what_a_path_is_relative_to_it_is_refused(override: str | None) -> None:
    given = [] if override is None else [override]
    if override is None or "run.directory" not in override:  # Its default is relative, too.
        with pytest.raises(ConfigError, match=r"^run\.directory: .*'runs/demo' is relative, and why"):
            absolute(load_recipe(None, given), Base(None, "why"))
        given = [*given, "run.directory=/x"]
    if override is None:
        assert absolute(load_recipe(None, given), Base(None, "why")) == load_recipe(None, given)
        return
    with pytest.raises(ConfigError, match=r"'in/.' is relative, and why"):
        absolute(load_recipe(None, given), Base(None, "why"))


@pytest.mark.parametrize(
    ("overrides", "lost"),
    [
        (["run.seed=1", "run.seed=2"], "override 'run.seed=2': 'run.seed=1' would be lost; give one of them"),
        (["rlhf.rewards.wer=1", "rlhf.rewards={learned: 1}"], "'rlhf.rewards.wer=1' would be lost"),
        (["run.seed=1", "run={seed: 2}"], "'run.seed=1' would be lost"),
        (["rlhf={num_steps: 6}", "rlhf.num_steps=5"], "'rlhf={num_steps: 6}' would be lost"),
        (["rlhf={num_steps: 6}", "rlhf={group_size: 4, num_steps: 5}"], "'rlhf={num_steps: 6}' would be lost"),
        (["prepare.map={answer: a}", "prepare.map.answer=b"], "'prepare.map={answer: a}' would be lost"),
        (["rlhf.rewards={wer: 1.0}", "rlhf.rewards.wer=0.5"], "'rlhf.rewards={wer: 1.0}' would be lost"),
        (["rlhf.algorithm.kl={weight: 1}", "rlhf.algorithm=null"], "'rlhf.algorithm.kl={weight: 1}' would be lost"),
        (["run.seed=1", "run={name: a}"], None),
        (["rlhf={num_steps: 6}", "rlhf.num_steps=6"], None),
        (["rlhf.algorithm.kl={weight: 1}", "rlhf={algorithm: {kl: {place: loss}}}"], None),
        (["run.seed=1", "run.seed=1"], None),
        (["rlhf.rewards={learned: 1}", "rlhf.rewards.wer=1"], None),
        (["run.name=a", "run.seed=1"], None),
    ],
)
def test_a_person_gives_an_override_once(overrides: list[str], lost: str | None) -> None:
    if lost is None:
        check_once(overrides)
        return
    with pytest.raises(ConfigError) as caught:
        check_once(overrides)
    assert lost in str(caught.value)
