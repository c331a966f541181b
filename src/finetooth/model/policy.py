"""PolicyModel: backbone, head and loss in one module.

Shapes: B rows, T tokens in a row, D hidden, V vocabulary, N targets.
"""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from finetooth.base.errors import ConfigError, problem
from finetooth.batching.collate import Batch
from finetooth.data.records import IGNORED_LABEL
from finetooth.model.attention import IMPLEMENTATION
from finetooth.model.balance import balance_loss, balance_of
from finetooth.model.dropout import KeyedDropout, ResidualDropout
from finetooth.model.loss import LogitTransform, TrainedRows, head_loss, sft_loss, target_losses
from finetooth.model.quiet import quiet_transformers
from finetooth.model.recompute import Recompute, set_forward

if TYPE_CHECKING:
    from finetooth.model.adapters import Adapter  # loads peft, which takes seconds


class PolicyModel(nn.Module):
    """A causal language model that is being trained.

    `policy(batch)` gives the weighted loss *sum* of packed rows; attention stays within documents.
    `policy(input_ids=…, attention_mask=…, labels=…)` gives logits and mean loss as transformers models do.

    model:          any transformers causal LM; `load_policy` loads one and proves it to be computed exactly.
    why_not_packed: why documents of this model cannot share a row; None where they can.
    adapter:        what alone is trained of the model; None where all of it is.
    balance:        the auxiliary loss that a mixture of experts asks for, added in training mode, or None.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.why_not_packed: str | None = None  # settled by `load_policy`
        self.adapter: Adapter | None = None
        self._dropout: ResidualDropout | None = None
        self._own_attention: str = model.config._attn_implementation or "eager"
        self._logit_transform = _logit_transform(model.config.get_text_config())
        self.balance = balance_of(model.config.get_text_config())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.device

    @property
    def layers(self) -> list[nn.Module]:
        """The layers of the language model: its longest list of modules that lies in no other list."""
        return list(max(_outermost_lists(self.model.get_decoder()), key=len))

    def num_parameters(self, *, trained: bool = False) -> int:
        """How many parameters the model has, an adapter's included; or how many of them are trained."""
        return self.model.num_parameters(only_trainable=trained)

    @property
    def drops(self) -> bool:
        """Whether outputs or adapters' inputs are dropped in training, for which batches need keys."""
        return any(dropout.probability > 0 for dropout in self._dropouts)

    def set_dropout(self, probability: float) -> None:
        """Drops outputs of the layers' blocks wherever a batch has `dropout_keys_BT`, in training mode.

        Raises ConfigError for a probability above 0 where the blocks cannot be told.
        """
        if self._dropout is not None:
            self._dropout.probability = probability
        elif probability > 0:
            self._dropout = ResidualDropout(self.layers, probability)

    def set_recompute(self, recompute: Recompute, *, compiled: bool = False) -> None:
        """What of each layer is computed a second time in the backward pass of training; changes no bit.

        compiled: whether each layer is one compiled graph, which rounds otherwise. A layer that cannot be
        compiled is told by ConfigError in the first pass of training.
        """
        set_forward(self.layers, recompute, again=self._again_as_now, compiled=compiled)

    @property
    def vocab_size(self) -> int:
        """V: rows of the embedding, at least as many as the tokenizer has entries."""
        embedding = self._plain(self.model.get_input_embeddings())
        assert isinstance(embedding, nn.Embedding), "load_policy refuses models without an embedding"
        return embedding.num_embeddings

    def forward(
        self,
        batch: Batch | None = None,
        *,
        gradient_scale: float = 1.0,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor | CausalLMOutput:
        """The loss sum of a batch, or logits and mean loss of padded rows.

        batch:          packed rows; returns a scalar, float32: Σ loss weight · cross-entropy.
        gradient_scale: the factor the caller multiplies that sum by before `backward`.
        input_ids:      int [B, T], attention_mask: int [B, T], labels: int [B, T] with −100 where
                        nothing is trained; returns `.logits` [B, T, V] and, with labels, `.loss`,
                        the mean over all targets (0 where there are none).
        """
        if batch is not None:
            return self._loss_sum(batch, gradient_scale)
        with self.own_attention():
            logits_BTV = self.model(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            ).logits
        if labels is None:
            return CausalLMOutput(logits=logits_BTV)
        is_target = labels != IGNORED_LABEL
        loss = sft_loss(logits_BTV, labels.clamp(min=0), is_target.float())
        return CausalLMOutput(loss=loss, logits=logits_BTV)  # pyright: ignore[reportArgumentType]

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """The backbone's last hidden states of a batch's rows, [B, T, D].

        Where documents cannot share a row, each has its own, and the model computes it with its own
        attention, without a mask: nothing looks ahead, and padding stands behind the document.
        """
        return self._backbone(batch).last_hidden_state

    def balance_sum(self, batch: Batch) -> torch.Tensor:
        """The auxiliary loss of a batch's rows, weighted as `balance_loss` says; a scalar, float32."""
        assert self.balance is not None, "asked of a model whose config wants it"
        out = self._backbone(batch, output_router_logits=True)
        return balance_loss(out.router_logits, batch, self.balance)

    @torch.no_grad()
    def target_losses(self, batch: Batch) -> torch.Tensor:
        """The cross-entropy of each target of a batch, in their order and without their loss weights.

        Returns float32 [N]. The auxiliary loss of a mixture of experts is none of a target's.
        """
        head, rows = self._head()
        return target_losses(
            self._backbone(batch).last_hidden_state.flatten(0, 1)[batch.target_sources_N],
            head.weight,
            head.bias,
            batch.targets_N,
            rows=rows,
            transform=self._logit_transform,
        )

    def own_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """transformers' own mean loss of rows without padding, int [B, T]; −100 where nothing is a target.

        With the auxiliary loss in training mode only, as in that of a batch.
        """
        with self.own_attention():
            out = self.model(input_ids=input_ids, labels=labels, use_cache=False)
        if self.balance is None or self.training:
            return out.loss
        return out.loss - self.balance.coefficient * out.aux_loss

    def _backbone(self, batch: Batch, **options: Any) -> Any:
        if self.why_not_packed is not None:
            _require_own_rows(batch)
            with self.own_attention():
                return self.model.base_model(input_ids=batch.token_ids_BT, use_cache=False, **options)
        with self.attention_of_training():
            return self.model.base_model(
                input_ids=batch.token_ids_BT,
                position_ids=batch.positions_BT,
                use_cache=False,
                document_layout=batch.layout,
                **options,
            )

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`, with the attention the model came with.

        Ranks that share the policy do not wait for one another: each may generate what it likes, or nothing,
        while it holds all parameters (`whole_parameters`).
        """
        with self.own_attention():
            return self.model.generate(*args, synced_gpus=False, **kwargs)  # pyright: ignore[reportCallIssue]

    def save_pretrained(self, folder: str | Path, *, state: dict[str, torch.Tensor] | None = None) -> None:
        """Writes config.json, generation_config.json and safetensors, as plain transformers loads them.

        state: the parameters, where the model itself holds only a part of each. Of a policy with an adapter,
        the adapter is written, as plain peft loads it.
        """
        if self.adapter is not None:
            self.adapter.save(Path(folder))
            return
        with self.own_attention(), quiet_transformers():
            self.model.save_pretrained(folder, state_dict=state)

    def settings_files(self) -> dict[str, bytes]:
        """What config.json (or adapter_config.json) and generation_config.json hold, by file name."""
        model = self.model
        with self.own_attention(), quiet_transformers():
            if self.adapter is not None:
                files = self.adapter.settings_files()
            else:
                model.config.dtype = str(model.dtype).removeprefix("torch.")
                model.config.architectures = [type(model).__name__]
                files = {"config.json": model.config.to_json_string().encode()}
            if model.generation_config is not None:
                text = model.generation_config.to_json_string(keys_to_pop=["compile_config"])
                files["generation_config.json"] = text.encode()
        return files

    def frozen_copy(self) -> "PolicyModel":
        """The reference that preference learning starts from, which is not trained.

        An independent copy; with an adapter, the base itself: it computes with the adapter switched off,
        shares the policy's memory and has no parameters of its own.
        """
        if self.adapter is not None:
            return BaseOfPolicy(self)
        return copy.deepcopy(self).requires_grad_(False).eval()

    @contextlib.contextmanager
    def own_attention(self) -> Iterator[None]:
        """Within it, the model computes with the attention it was loaded with (which knows padding)."""
        with self._attention(self._own_attention):
            yield

    @contextlib.contextmanager
    def attention_of_training(self) -> Iterator[None]:
        """Within it, the model's attention keeps to documents, so that passes need not switch to it."""
        with self._attention(self._own_attention if self.why_not_packed is not None else IMPLEMENTATION):
            yield

    def _again_as_now(self) -> contextlib.AbstractContextManager[None]:
        """For later: what computing a layer depends on besides its inputs, attention and dropout's keys."""
        implementation: str = self.model.config._attn_implementation or "eager"
        return self._again(implementation, [dropout.keys_BT for dropout in self._dropouts])

    @contextlib.contextmanager
    def _again(self, implementation: str, keys: list[torch.Tensor | None]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._attention(implementation))
            for dropout, keys_BT in zip(self._dropouts, keys, strict=True):
                stack.enter_context(dropout.keyed_by(keys_BT))
            yield

    @contextlib.contextmanager
    def _attention(self, implementation: str) -> Iterator[None]:
        before: str = self.model.config._attn_implementation or "eager"
        if before == implementation:
            yield
            return
        self.model.set_attn_implementation(implementation)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    def _plain(self, module: nn.Module) -> nn.Module:
        """An embedding or head, behind what an adapter wraps around it."""
        return module if self.adapter is None else self.adapter.plain_module(module)

    @property
    def _dropouts(self) -> list[KeyedDropout]:
        return [dropout for dropout in (self._dropout, self.adapter and self.adapter.dropout) if dropout]

    @contextlib.contextmanager
    def _dropping(self, batch: Batch) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for dropout in self._dropouts:
                stack.enter_context(dropout.keyed_by(batch.dropout_keys_BT))
            yield

    def _loss_sum(self, batch: Batch, gradient_scale: float) -> torch.Tensor:
        is_balanced = self.balance is not None and self.training
        with self._dropping(batch):
            out = self._backbone(batch, **({"output_router_logits": True} if is_balanced else {}))
        loss_sum = self._head_loss(out.last_hidden_state, batch, gradient_scale)
        if self.balance is None or not is_balanced:
            return loss_sum
        return loss_sum + balance_loss(out.router_logits, batch, self.balance)

    def _head(self) -> tuple[nn.Linear, TrainedRows | None]:
        """The head, and the rows that an adapter trains in place of its own."""
        wrapped = self.model.get_output_embeddings()
        assert wrapped is not None, "load_policy refuses models without a head"
        head = self._plain(wrapped)
        assert isinstance(head, nn.Linear), "the head is a linear layer; load_policy refuses other models"
        return head, self.adapter.trained_rows(wrapped) if self.adapter else None

    def _head_loss(self, hidden_BTD: torch.Tensor, batch: Batch, gradient_scale: float) -> torch.Tensor:
        head, rows = self._head()
        return head_loss(
            hidden_BTD.flatten(0, 1)[batch.target_sources_N],
            head.weight,
            head.bias,
            batch.targets_N,
            batch.loss_weights_N,
            rows=rows,
            transform=self._logit_transform,
            gradient_scale=gradient_scale,
        )


class BaseOfPolicy(PolicyModel):
    """The base of a policy with an adapter: the same model, computed with the adapter switched off."""

    def __init__(self, policy: PolicyModel):
        nn.Module.__init__(self)
        # Not a submodule: the parameters are the policy's, and neither moved nor trained from here.
        self.__dict__.update({name: value for name, value in vars(policy).items() if name not in vars(self)})
        self.__dict__["model"] = policy.model
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor | CausalLMOutput:
        """As `PolicyModel.forward`, without gradients."""
        with self._as_base():
            return super().forward(*args, **kwargs)

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """As `PolicyModel.hidden_states`, without gradients."""
        with self._as_base():
            return super().hidden_states(batch)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As `PolicyModel.generate`."""
        with self._as_base():
            return super().generate(*args, **kwargs)

    def save_pretrained(self, folder: str | Path, *, state: dict[str, torch.Tensor] | None = None) -> None:
        """Raises ConfigError: the base stands where the policy's adapter names it."""
        assert self.adapter is not None
        fact = "it is the base that the policy was made of"
        raise ConfigError(problem("save_pretrained", fact, f"copy {self.adapter.base_name}"))

    def frozen_copy(self) -> PolicyModel:
        """Itself, as nothing trains it."""
        return self

    @contextlib.contextmanager
    def _as_base(self) -> Iterator[None]:
        assert self.adapter is not None
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.adapter.switched_off():
                yield
        finally:
            self.model.train(was_training)


def _require_own_rows(batch: Batch) -> None:
    """Raises ConfigError where documents share a row: then a position 1 stands elsewhere than in column 1."""
    if bool((batch.positions_BT[:, 2:] == 1).any()):
        fact, remedy = "documents of this model cannot share a row", "lay them out without packing"
        raise ConfigError(problem("batch", fact, remedy))


def _outermost_lists(module: nn.Module) -> list[nn.ModuleList]:
    """Lists of modules that lie in no other list, as the experts of a layer do."""
    if isinstance(module, nn.ModuleList):
        return [module]
    return [found for child in module.children() for found in _outermost_lists(child)]


def _logit_transform(config: Any) -> LogitTransform:
    """Soft-capping (Gemma 2) and scaling (Granite divides, Cohere multiplies) of a model's logits."""
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
        getattr(config, "logits_scaling", None) or 1.0
    )
    return LogitTransform(scale=scale, soft_cap=getattr(config, "final_logit_softcapping", None))
