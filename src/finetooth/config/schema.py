"""Every setting of a run: frozen dataclasses that mirror run.yaml, with types, ranges and meanings.

A relative path is relative to the working directory, as on any command line.

    from finetooth import SFTConfig
    from finetooth.config.schema import DataConfig, ModelConfig

    SFTConfig(model=ModelConfig(path="base"), data=DataConfig(train="train.jsonl"), output_dir="runs/first")
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from finetooth.config.checks import require_valid
from finetooth.config.figures import Figure
from finetooth.config.sources import Count, Format, Text

Sources = Annotated[list[dict[str, JsonValue]], Field(min_length=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Names = Annotated[list[Text], Field(min_length=1)]
OneGPU = Annotated[str, Field(pattern=r"^cuda:(0|[1-9][0-9]?)$", examples=["cuda:1"])]
Extractor = (
    Literal["answer-tag", "plain", "gsm8k", "last-line"]
    | Annotated[str, Field(pattern=r"^regex:.", examples=["regex:PATTERN"])]
    | Annotated[str, Field(pattern=r"^json:.", examples=["json:FIELD"])]
)
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Where the base model comes from: exactly one of `path` and `from_config`, except for some .pt files."""

    path: Text | None = None
    """Folder or hub name of the base model, or a .pt file of a system that docs/legacy.md lists; `tokenizer`
    must then be given."""

    from_config: Text | None = None
    """A model's config.json, to start from fresh parameters, or for a .pt file that holds parameters alone;
    `tokenizer` must then be given."""

    tokenizer: Text | None = None
    """Folder or hub name of the tokenizer; null takes the model's own."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which records are trained, how they are rendered, and what becomes of those that do not fit."""

    train: Text | Sources
    """The training records: a file, folder, pattern or hf://NAME; or a list of such sources, each
    {path, format, fields, repeat, max_records}."""

    dev: Share | Text | Sources | None = 0.02
    """Records kept for evaluation: a share of the training records, sources as above, or null for none."""

    format: Format = "auto"
    """How a record is read; auto recognises the format from the fields."""

    fields: dict[str, Text] | None = None
    """Names of the fields that hold what the format calls otherwise, for
    instance {prompt: question, response: reply}."""

    input_join: str = "\n\n"
    """What stands between the instruction and the input (Alpaca) or context (Dolly) of a record."""

    template: Text = "auto"
    """How a conversation becomes text: auto (the tokenizer's own template; without one, chatml for messages
    and concat for prompt and response), chatml, six-token, headers, concat, the path of a .jinja file, or
    own:NAME where the tokenizer has several, e.g. own:tool_use."""

    template_args: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """Further values for the template, e.g. enable_thinking: false; used wherever it is rendered."""

    system: str | None = None
    """System text for conversations that have none."""

    loss_on: Literal["assistant", "last", "all"] = "assistant"
    """What is trained: every assistant turn, the last one only, or all tokens."""

    train_reasoning: bool = True
    """Whether the reasoning of a trained turn is trained; false leaves it as context."""

    train_end_token: bool = False
    """Whether the end token behind targets that were given as tokens is trained where it was left out."""

    single_turn: bool = False
    """Declares that every document of given tokens has one question, so that files without boundaries can
    be divided at each question."""

    allow_tokens: list[Text] = field(default_factory=list[str])
    """Control tokens that text of the records may become, e.g. ["<think>"]; for trusted records only."""

    max_length: Annotated[int, Field(ge=2)] = 2048
    """Longest document, in tokens."""

    on_bad_record: Literal["error", "drop"] = "error"
    """A record that cannot be used: error lists all of them and stops, drop notes them in the ledger."""

    on_long_document: Literal["drop", "error", "keep-turns"] = "drop"
    """A document above `max_length`: drop notes it in the ledger, error lists all of them and stops,
    keep-turns keeps as many whole turns from its end as fit."""

    on_duplicate: Literal["drop", "error", "keep"] = "drop"
    """A record whose documents equal those of an earlier one."""

    on_near_duplicate: Literal["keep", "report", "drop"] = "keep"
    """A record almost equal to an earlier one; keep does not look for them (needs finetooth[neardup])."""

    near_duplicate_similarity: Share = 0.85
    """From which share of common word triples on two records are almost equal."""

    on_leak: Literal["error", "drop", "keep"] = "error"
    """A training record whose conversation, or prompt, also stands in dev."""

    group_by: Text = "prompt"
    """Records with the same value stay together when dev is a share: prompt (all that stands before the
    last answer), or a field of the records."""

    max_records: Count | None = None
    """Use only this many records from the start of each training source."""

    cache_dir: Text | None = None
    """Folder of prepared stores; null means FINETOOTH_CACHE, else ~/.cache/finetooth."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, in what portions, with which optimizer settings and on which device the policy is trained."""

    num_train_epochs: Positive = 3
    """How often every document is trained."""

    max_steps: Count | None = None
    """Number of steps (optimizer updates); when set, it decides instead of `num_train_epochs`."""

    global_batch_size: Count = 128
    """Documents per step over all devices."""

    global_batch_tokens: Count | None = None
    """Tokens per step over all devices; when set, it decides instead of `global_batch_size`."""

    packing: bool | Literal["auto"] = "auto"
    """Whether several documents share a row, each by itself; auto: where the model keeps them apart.
    Never changes what is learnt."""

    row_tokens: Count = 16384
    """Longest row, in tokens; at least `data.max_length`. Never changes what is learnt."""

    rows_at_once: Count = 1
    """Rows per forward pass. Never changes what is learnt."""

    recompute: Literal["auto", "nothing", "elementwise", "all-but-attention", "all"] = "auto"
    """What of a layer the backward pass computes again rather than keeps: each saves more memory and takes
    longer; auto is the first that memory holds. Never changes what is learnt."""

    compile: bool = False
    """Whether each layer is compiled, once for all layers and row lengths: steps are faster after a minute or
    so of compiling. It rounds otherwise, and changes nothing else; needs a C++ compiler on a CPU."""

    learning_rate: Positive = 2e-5
    """Highest learning rate, reached after the warm-up."""

    min_learning_rate: NotNegative = 2e-6
    """Learning rate at the last step of cosine and linear."""

    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""

    warmup_steps: NotNegative = 0.03
    """Steps over which the learning rate rises to its highest value; below 1, a share of all steps."""

    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW with states of the parameters' type, or of 8 bits (needs finetooth[qlora])."""

    weight_decay: NotNegative = 0.01
    """AdamW's decay of matrices and embeddings; biases and norms have none."""

    adam_beta1: Decay = 0.9
    """AdamW's decay of the mean gradient."""

    adam_beta2: Decay = 0.999
    """AdamW's decay of the mean squared gradient."""

    adam_epsilon: Positive = 1e-8
    """AdamW's term against division by zero."""

    dropout: Decay = 0.0
    """Share of the outputs of every attention and feed-forward block that a step sets to zero."""

    max_grad_norm: Positive | None = 1.0
    """Gradients are scaled down to this norm when theirs is larger; null never does."""

    on_non_finite: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is not finite: stop ends the run, skip passes over up to ten of them
    and notes their documents in metrics.jsonl. Neither touches the policy."""

    precision: Literal["auto", "fp32", "bf16", "bf16-pure", "fp16"] = "auto"
    """Number format of the forward and backward pass; parameters stay in fp32, but for bf16-pure, which has
    all in bf16 and rounds stochastically. Auto takes bf16 or fp16 on a GPU, bf16 on a CPU that is much faster
    in it, fp32 elsewhere."""

    device: Literal["auto", "cuda", "mps", "cpu"] | OneGPU = "auto"
    """Where to train: auto (cuda, then mps, then cpu), cuda, one GPU of several (cuda:1), mps or cpu."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    """Decides the dev share, the order of the documents, fresh parameters and every other draw."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What is trained in place of all parameters: low-rank matrices beside a frozen base's linear layers."""

    type: Literal["lora", "dora", "qlora"] | None = None
    """Null trains all parameters. lora: low-rank matrices; dora: these and the length of each output row;
    qlora: lora on a base that is held in 4 bits (needs finetooth[qlora])."""

    r: Count = 16
    """Rank of the matrices."""

    alpha: Positive = 32
    """The product of the matrices is multiplied by alpha / r, or alpha / √r with `rslora`."""

    rslora: bool = False
    """Whether the product is divided by √r instead of r, which keeps high ranks learning."""

    lora_dropout: Decay = 0.0
    """Share of the adapters' inputs that a step sets to zero."""

    target_modules: Names | None = None
    """Names of the linear layers that have adapters, e.g. [q_proj, v_proj]; null: all but the head."""

    modules_to_save: Names | None = None
    """Names of further modules that are trained as a whole and saved with the adapter,
    e.g. [embed_tokens, lm_head]."""

    train_tokens: Literal["auto"] | list[Text] = "auto"
    """Tokens whose rows of embedding and head are trained, besides those that the template added; auto: those
    of the template that the base model seems never to have learnt."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the processes of a run (--nproc, torchrun) share the work. Never changes what is learnt."""

    shard: Literal["all", "node"] | None = None
    """Which processes share one set of parameters, gradients and optimizer states (FSDP2): all of them,
    those of one machine (node), or none: every process holds everything (DDP)."""

    replicate: Literal["across"] | None = None
    """With shard: node on several machines: across gives each machine a whole set (HSDP)."""

    sum_gradients: Literal["step", "pass"] = "step"
    """When processes that share parameters add up their gradients: once per step, for which each holds a
    whole gradient and all parameters meanwhile, or in every forward pass (pass), which takes least memory."""

    offload_optimizer: bool = False
    """Whether the optimizer's states stay in the host's memory, where it then computes; also alone."""

    timeout: Positive = 600
    """Seconds after which a process that does not answer ends the run."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured during training, and how often."""

    every: CountOrZero = 200
    """Steps between evaluations; 0 evaluates only at the end."""

    train_documents: Count = 256
    """Size of the fixed sample of training documents on which train_loss is measured."""

    exact_match: Extractor | None = None
    """Compare generated answers with the dev records': the text in the answer tag, all of it (plain), what
    stands behind #### (gsm8k), the last line, what a pattern matches last (regex:PATTERN), or a field of the
    last JSON object (json:FIELD). See docs/evaluation.md."""

    exact_match_records: Count = 64
    """Dev records answered at each evaluation during training; `finetooth eval` answers all."""

    max_new_tokens: Count = 256
    """Longest generated answer, in tokens."""

    best_by: Figure = "dev_loss"
    """Which figure of an evaluation says what policy is the best: losses, perplexities and loop_rate by
    their lowest value, exact_match and stop_rate by their highest; of equal ones the earlier."""

    patience: Count | None = None
    """So many evaluations one after the other without a better one end the run; null never does."""


@dataclass(frozen=True, kw_only=True)
class CheckpointsConfig:
    """How often the state of the run is saved, and how much of it is kept."""

    every: CountOrZero = 200
    """Steps between checkpoints; 0 saves at the end; a new best evaluation is saved as well."""

    keep: Count = 3
    """How many checkpoints are kept, the best one besides; older ones are removed."""

    final: Literal["auto", "last", "best"] = "auto"
    """Which policy final/ holds: that of the last step, or of the best evaluation (`evaluation.best_by`);
    auto: the best where `evaluation.patience` is set, else the last."""

    background: bool = True
    """Whether training goes on while a checkpoint is written; a copy of the state is in memory meanwhile."""

    stop_deadline: Positive = 25
    """Seconds after SIGTERM, SIGUSR1 or SIGINT within which the step at hand is finished and saved; a run
    that cannot do it ends all the same, and says what is lost."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """How often a line of metrics is written."""

    every: Count = 1
    """Steps between lines of metrics.jsonl."""

    spikes: bool = True
    """Whether a loss far above those of the last 100 steps is noted, with the documents of that step that
    have the highest loss."""

    tensorboard: bool = False
    """Whether tensorboard/ in the run directory shows the same figures (needs finetooth[tensorboard])."""

    wandb: Text | None = None
    """Project at wandb that is shown the same figures (needs finetooth[wandb]); null: none."""


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Every setting of one run, as `load_config` reads it from run.yaml."""

    model: ModelConfig
    """Where the base model comes from."""

    data: DataConfig
    """Which records are trained and how they are rendered."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How long, in what portions and with which optimizer settings."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """What is trained instead of all parameters."""

    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How the processes of a run share the work."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured during training."""

    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    """How often the state is saved."""

    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """How often metrics are written."""

    output_dir: Text
    """The run directory, which holds everything the run leaves behind."""

    origins: Mapping[str, str] = field(default_factory=dict[str, str], compare=False, repr=False)
    """Where each value was set, by dotted key: "run.yaml:5", "command line" or "default"; not a setting."""

    def __post_init__(self) -> None:
        """Checks every value and the values against one another.

        Raises ConfigError with all problems at once.
        """
        require_valid(self)
