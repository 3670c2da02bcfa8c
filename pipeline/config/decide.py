"""Choosing among K actions: from what, for what reward, learned how."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from pipeline.config.fusion import EncoderKind, EncoderSettings, FusionSettings, InputSizes, Modality
from pipeline.config.offline import OfflineLearning
from pipeline.config.section import Section


class DecisionAlgorithm(StrEnum):
    DQN = "dqn"
    REINFORCE = "reinforce"
    A2C = "a2c"
    PPO = "ppo"
    SAC = "sac"
    SUPERVISED = "supervised"
    BC = "bc"
    MARWIL = "marwil"
    CQL = "cql"
    RANDOM = "random"
    LINUCB = "linucb"

    @property
    def is_online(self) -> bool:
        """Whether it learns from what its own actions bring, by RLlib."""
        return self in (
            DecisionAlgorithm.DQN,
            DecisionAlgorithm.REINFORCE,
            DecisionAlgorithm.A2C,
            DecisionAlgorithm.PPO,
            DecisionAlgorithm.SAC,
        )

    @property
    def is_offline(self) -> bool:
        """Whether it learns from a log alone."""
        return self in (
            DecisionAlgorithm.SUPERVISED,
            DecisionAlgorithm.BC,
            DecisionAlgorithm.MARWIL,
            DecisionAlgorithm.CQL,
        )


class DecisionSource(StrEnum):
    WORLD = "world"
    TABLE = "table"


class DecisionReward(StrEnum):
    TRUTH = "truth"
    CLICKS = "clicks"
    LOGGED = "logged"
    RATINGS = "ratings"
    LIVE = "live"


class World(Section):
    num_items: int = Field(default=12, ge=2)
    """Items of the catalogue: the actions."""
    num_positions: int = Field(default=5, ge=1)
    """Places of the page of the log."""
    eta: float = Field(default=1.0, ge=0)
    """How steeply attention falls with the place: what is shown at place p is examined with probability
    1 / (1 + p) ** eta. A recommended item is at place 0."""
    train_wishes: int = Field(default=6000, gt=0)
    """Wishes that online algorithms meet, each once."""
    held_out_wishes: int = Field(default=1000, gt=0)
    """Wishes of the validation split, and of the test split."""
    logged: int = Field(default=3000, gt=0)
    """Clicks that were logged before, by the page's own policy: what offline algorithms and estimates know, and what
    frozen encoders were trained on."""


class QLearning(Section):
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of Adam."""
    batch_size: int = Field(default=64, gt=0)
    """Steps of the replay buffer in an update."""
    intensity: float = Field(default=8.0, gt=0)
    """How often a step is learned from, on average."""
    warmup_steps: int = Field(default=256, ge=0)
    """Steps before the first update."""
    buffer_size: int = Field(default=50_000, gt=0)
    """Steps of the replay buffer."""
    n_step: int = Field(default=1, ge=1)
    """Rewards that a target sums before it trusts a Q value; with sessions of one step there is one."""
    double_q: bool = True
    """Whether the learning network says which action is the best, and the target network what it is worth."""
    dueling: bool = True
    """Whether Q is the sum of a state's value and of an action's advantage."""
    epsilon: tuple[float, float] = (1.0, 0.02)
    """Share of random actions, at the beginning and in the end."""
    epsilon_steps: int = Field(default=1500, gt=0)
    """Steps from the first to the second, linearly."""
    target_steps: int = Field(default=256, gt=0)
    """Steps between copies to the target network."""


class PolicyGradient(Section):
    learning_rate: float = Field(default=2e-3, gt=0)
    """Of Adam."""
    batch_size: int = Field(default=64, gt=0)
    """Steps in an update, all of the policy as it is."""
    entropy_weight: float = Field(default=0.1, ge=0)
    """Weight of the entropy, which keeps the policy exploring, at the beginning. Advantages of `a2c` and `ppo` are
    standardised: so is what it stands against."""
    entropy_steps: int | None = Field(default=None, gt=0)
    """Steps in which that weight falls to 0, linearly; null leaves it."""
    baseline_momentum: float | None = Field(default=0.9, ge=0, lt=1)
    """Of `reinforce`: how much of the moving mean of returns stays with each batch; null takes no baseline."""
    value_weight: float = Field(default=0.5, ge=0)
    """Of `a2c` and `ppo`: weight of the value loss."""
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    """Of `a2c` and `ppo`: how far advantages look before they trust a value; 1 is n-step returns."""
    num_epochs: int = Field(default=4, ge=1)
    """Of `ppo`: passes over a batch."""
    minibatch_size: int = Field(default=32, gt=0)
    """Of `ppo`: steps of a minibatch."""
    clip: float = Field(default=0.3, gt=0)
    """Of `ppo`: how far a probability ratio may go from 1."""

    @property
    def entropy_schedule(self) -> float | list[list[float]]:
        """The weight, as RLlib takes it: a number, or [step, value] at both ends."""
        if self.entropy_steps is None:
            return self.entropy_weight
        return [[0, self.entropy_weight], [self.entropy_steps, 0.0]]


class SoftActorCritic(Section):
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of Adam, for policy and Q functions."""
    temperature_rate: float = Field(default=3e-3, gt=0)
    """Of Adam, for the temperature."""
    batch_size: int = Field(default=64, gt=0)
    """Steps of the replay buffer in an update."""
    intensity: float = Field(default=8.0, gt=0)
    """How often a step is learned from, on average."""
    warmup_steps: int = Field(default=256, ge=0)
    """Steps before the first update."""
    buffer_size: int = Field(default=50_000, gt=0)
    """Steps of the replay buffer."""
    n_step: int = Field(default=1, ge=1)
    """Rewards that a target sums before it trusts a Q value."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature at the beginning."""
    entropy_share: float = Field(default=0.1, gt=0, lt=1)
    """Entropy that the temperature aims at, as a share of that of the uniform policy."""
    tau: float = Field(default=0.01, gt=0, le=1)
    """How far target networks move to the learning ones at each update."""


class Decide(Section):
    algorithm: DecisionAlgorithm | tuple[DecisionAlgorithm, ...] = DecisionAlgorithm.PPO
    """dqn, reinforce, a2c, ppo, sac (online); supervised, bc, marwil, cql (from the log); random, linucb; or a list of
    them, which meet the same decisions."""
    source: DecisionSource = DecisionSource.WORLD
    """`world`: the simulated shop of `world`. `table`: the prompt table of `data.path`; actions are answers."""
    world: World = World()
    """The shop."""
    actions: tuple[str, ...] = ()
    """Of a table: names of the actions; empty takes all answers of the train split, sorted."""
    task: str | None = None
    """Of a table: the task whose rows are taken; null takes all."""
    max_rows: int | None = Field(default=None, gt=0)
    """Of a table: rows of a split that are taken, the first ones; null takes all."""
    group_column: str | None = None
    """Of a table: column that groups rows in the fairness table; null takes the task."""
    reward: DecisionReward = DecisionReward.CLICKS
    """What an action brings. `truth`: its expected reward, 1 for the right answer. `clicks`: 1 with that probability.
    `logged`: what a log says, weighted by its propensities. `ratings`: what people said in the feedback store.
    `live`: what `live` answers."""
    live: str | None = None
    """Of `reward=live`: a function of your own, `module:name`, of a decision's id and an action; it
    gives the reward, in the processes that decide."""
    unrated: float = 0.0
    """Of `reward=ratings`: what an action is worth that nobody rated."""
    session_length: int = Field(default=1, ge=1)
    """Actions until a session ends; it ends sooner with the first that brings something. 1: a contextual bandit."""
    question_cost: float | None = Field(default=None, ge=0)
    """What a clarifying question costs, which is an action more and shows hidden modalities; null: nobody can ask."""
    hidden_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the decisions with several modalities of which one is hidden until asked."""
    gamma: float = Field(default=0.95, ge=0, le=1)
    """Discount of a step."""
    fusion: FusionSettings = FusionSettings(
        modalities=(Modality.TEXT, Modality.AUDIO),
        encoders={Modality.AUDIO: EncoderSettings(kind=EncoderKind.MEL_CNN, width=48, num_bands=24)},
        sizes=InputSizes(text_length=24, audio_s=1.5),
    )
    """The model of the state."""
    cache: bool = True
    """Whether encoders are frozen and their features computed once, kept and read; else they learn with the rest."""
    pool: bool = True
    """Whether a cached modality is the mean over its tokens; else all of them are kept, which attention needs."""
    feature_workers: int = Field(default=0, ge=0)
    """Workers of Ray Data that compute features, for many rows; 0: this process."""
    encoders_from_log: bool = False
    """Of the world: whether encoders first learn to foresee the clicks of the log, as `supervised` does and by
    `offline`, before they are frozen; else they stay as they are."""
    warm_start: bool = False
    """Whether online algorithms start from what `supervised` learned of the log: all from its fusion, and policies from
    its logits."""
    words: bool = True
    """Whether a text encoder that is built reads words, of the train split, in place of bytes."""
    num_decisions: int = Field(default=6000, gt=0)
    """Decisions that each algorithm makes while it learns."""
    report_every: int = Field(default=256, gt=0)
    """Decisions between two points of a curve."""
    num_env_runners: int = Field(default=0, ge=0)
    """Processes that decide; 0: in this one."""
    num_envs: int = Field(default=16, ge=1)
    """Environments of each."""
    evaluate_every: int = Field(default=0, ge=0)
    """Iterations between evaluations on validation; 0: in the end."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Iterations between checkpoints; 0: in the end. `run.resume=auto` goes on from the last one."""
    test_split: str = "test"
    """Split that is reported on."""
    validation_split: str = "validation"
    """Split that settings are chosen by."""
    protected: tuple[str, ...] = ()
    """Columns on which no decision may depend: checked, and shown in the report."""
    dqn: QLearning = QLearning()
    """Q-learning."""
    reinforce: PolicyGradient = PolicyGradient()
    """Policy gradient."""
    a2c: PolicyGradient = PolicyGradient()
    """Advantage actor-critic."""
    ppo: PolicyGradient = PolicyGradient(batch_size=128)
    """Proximal policy optimisation."""
    sac: SoftActorCritic = SoftActorCritic()
    """Soft actor-critic with discrete actions."""
    linucb_alpha: float = Field(default=0.3, ge=0)
    """How far LinUCB trusts what it does not know."""
    offline: OfflineLearning = OfflineLearning()
    """Learning from the log: `supervised`, `bc`, `marwil` and `cql`."""
    estimate: bool = False
    """Whether to check, on many simulated logs of the world, how often the intervals of off-policy estimates hold the
    true value."""

    @property
    def algorithms(self) -> tuple[DecisionAlgorithm, ...]:
        """The algorithms in their order, each once."""
        named = self.algorithm if isinstance(self.algorithm, tuple) else (self.algorithm,)
        return tuple(dict.fromkeys(named))

    @model_validator(mode="after")
    def _check(self) -> Decide:
        if not self.algorithms:
            raise ValueError("algorithm=[]: nothing to learn by; name one, such as ppo")
        if (self.reward is DecisionReward.LIVE) != (self.live is not None):
            raise ValueError(
                f"reward={self.reward} with live={self.live}: name a function with reward=live, and none with others"
            )
        if self.live is not None and self.live.count(":") != 1:
            raise ValueError(f"live={self.live!r}: write module:name of a function, such as shop.rewards:ask")
        if self.reward is DecisionReward.RATINGS and self.source is DecisionSource.WORLD:
            raise ValueError("reward=ratings with source=world: its users rate nothing; use clicks, or source=table")
        if self.hidden_share and self.question_cost is None:
            raise ValueError(
                f"hidden_share={self.hidden_share:g} with question_cost=null: nothing shows what is hidden; set a cost"
            )
        if self.session_length > 1 and DecisionAlgorithm.LINUCB in self.algorithms:
            raise ValueError("algorithm=linucb with session_length above 1: it is a bandit; use 1")
        return self
