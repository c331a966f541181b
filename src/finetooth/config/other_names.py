"""Names that other training tools use for a setting, and what to write here instead."""

_BATCH = "write training.global_batch_size, the documents per update over all devices"
_LAYOUT = "leave it out: training.global_batch_size counts documents per update over all devices"
_ROWS = "leave it out: training.rows_at_once changes the rows per forward pass and nothing that is learnt"
_EPOCHS = "write training.num_train_epochs"
_STEPS = "write training.max_steps"
_RATE = "write training.learning_rate"
_LOWEST_RATE = "write training.min_learning_rate"
_SCHEDULER = "write training.lr_scheduler_type: cosine, linear or constant"
_WARMUP = "write training.warmup_steps"
_WARMUP_SHARE = "write training.warmup_steps; below 1 it is a share of all steps"
_DECAY_STEPS = "leave it out: the learning rate falls until the last step"
_CLIP = "write training.max_grad_norm"
_PRECISION = "write training.precision: fp32, bf16, fp16 or auto"
_LENGTH = "write data.max_length, the longest document in tokens"
_MODEL = "write model.path, a folder or a hub name"
_TOKENIZER = "write model.tokenizer, a folder or a hub name"
_TRAIN = "write data.train, the file with the training records"
_DEV = "write data.dev, a share of the training records or a file"
_FIELDS = "write data.fields: {prompt: NAME, response: NAME}"
_TEMPLATE = "write data.template: auto, chatml, concat or the path of a .jinja file"
_LOSS = "write data.loss_on: assistant, last or all"
_OUTPUT = "write output_dir, at the top level"
_RUN_NAME = "leave it out: the folder named by output_dir is the run's name"
_OVERWRITE = "leave it out: name another output_dir, or go on with `finetooth train RUN.yaml --resume`"
_RESUME = "leave it out: go on with `finetooth train RUN.yaml --resume`"
_EVALUATE = "write evaluation.every, in steps"
_EVALUATION_SIZE = "leave it out: all dev records are evaluated; evaluation.train_documents sizes train_loss"
_SAVE = "write checkpoints.every, in steps"
_KEEP = "write checkpoints.keep"
_LOG = "write logging.every, in steps"
_PACKING = "write training.packing: auto, true or false"
_SEED = "write training.seed"
_DEVICE = "write training.device: auto, cuda, mps or cpu"
_NEW_TOKENS = "write evaluation.max_new_tokens"
_OPTIMIZER = "leave it out: AdamW is the optimizer of this version"

OTHER_NAMES: dict[str, str] = {
    "accumulation_steps": _LAYOUT,
    "adam_eps": "write training.adam_epsilon",
    "amp": _PRECISION,
    "assistant_only_loss": _LOSS,
    "base_model": _MODEL,
    "batch_size": _BATCH,
    "beta1": "write training.adam_beta1",
    "beta2": "write training.adam_beta2",
    "betas": "write training.adam_beta1 and training.adam_beta2",
    "bf16": _PRECISION,
    "block_size": _LENGTH,
    "chat_template": _TEMPLATE,
    "checkpoint_interval": _SAVE,
    "checkpointing_steps": _SAVE,
    "clip_grad_norm": _CLIP,
    "completion_only_loss": _LOSS,
    "context_length": _LENGTH,
    "conversation_template": _TEMPLATE,
    "cutoff_len": _LENGTH,
    "data_path": _TRAIN,
    "data_seed": _SEED,
    "dataset": _TRAIN,
    "dataset_dir": _TRAIN,
    "dataset_name": _TRAIN,
    "dataset_path": _TRAIN,
    "dataset_prepared_path": "write data.cache_dir",
    "dataset_text_field": _FIELDS,
    "datasets": _TRAIN,
    "decay_lr": _SCHEDULER,
    "dtype": _PRECISION,
    "epochs": _EPOCHS,
    "eps": "write training.adam_epsilon",
    "eval_dataset": _DEV,
    "eval_interval": _EVALUATE,
    "eval_iters": _EVALUATION_SIZE,
    "eval_steps": _EVALUATE,
    "eval_strategy": _EVALUATE,
    "evals_per_epoch": _EVALUATE,
    "evaluation_strategy": _EVALUATE,
    "field_instruction": _FIELDS,
    "field_output": _FIELDS,
    "fp16": _PRECISION,
    "global_batch": _BATCH,
    "grad_accum": _LAYOUT,
    "grad_accum_steps": _LAYOUT,
    "grad_clip": _CLIP,
    "gradient_accumulation_steps": _LAYOUT,
    "gradient_clipping": _CLIP,
    "init_from": _MODEL,
    "iterations": _STEPS,
    "keep_last_n": _KEEP,
    "log_every_n_steps": _LOG,
    "log_interval": _LOG,
    "logging_dir": _RUN_NAME,
    "logging_steps": _LOG,
    "lr": _RATE,
    "lr_decay_iters": _DECAY_STEPS,
    "lr_decay_steps": _DECAY_STEPS,
    "lr_schedule": _SCHEDULER,
    "lr_scheduler": _SCHEDULER,
    "mask_prompt": _LOSS,
    "max_epochs": _EPOCHS,
    "max_examples": "write data.max_records",
    "max_iters": _STEPS,
    "max_len": _LENGTH,
    "max_samples": "write data.max_records",
    "max_seq_len": _LENGTH,
    "max_seq_length": _LENGTH,
    "max_sequence_length": _LENGTH,
    "max_tokens": _NEW_TOKENS,
    "max_train_steps": _STEPS,
    "micro_batch_size": _ROWS,
    "min_lr": _LOWEST_RATE,
    "min_lr_rate": _LOWEST_RATE,
    "mixed_precision": _PRECISION,
    "model_max_length": _LENGTH,
    "model_name": _MODEL,
    "model_name_or_path": _MODEL,
    "model_path": _MODEL,
    "n_epochs": _EPOCHS,
    "neat_packing": _PACKING,
    "num_epochs": _EPOCHS,
    "num_iterations": _STEPS,
    "optim": _OPTIMIZER,
    "optimizer": _OPTIMIZER,
    "out_dir": _OUTPUT,
    "output": _OUTPUT,
    "output_path": _OUTPUT,
    "overwrite_output_dir": _OVERWRITE,
    "pad_to_max_length": "leave it out: training.packing: false gives each document a row of its own",
    "per_device_eval_batch_size": _ROWS,
    "per_device_train_batch_size": _BATCH,
    "pretrained_model_name_or_path": _MODEL,
    "preprocessing_num_workers": "leave it out: records are prepared once and kept",
    "project_name": _RUN_NAME,
    "random_seed": _SEED,
    "report_to": "leave it out: metrics are written to metrics.jsonl in output_dir",
    "resume": _RESUME,
    "resume_from": _RESUME,
    "resume_from_checkpoint": _RESUME,
    "run_name": _RUN_NAME,
    "sample_packing": _PACKING,
    "save_dir": _OUTPUT,
    "save_every": _SAVE,
    "save_interval": _SAVE,
    "save_steps": _SAVE,
    "save_strategy": _SAVE,
    "save_total_limit": _KEEP,
    "saves_per_epoch": _SAVE,
    "scheduler": _SCHEDULER,
    "seq_len": _LENGTH,
    "seq_length": _LENGTH,
    "sequence_len": _LENGTH,
    "sequence_length": _LENGTH,
    "split_dataset_ratio": _DEV,
    "system_prompt": "write data.system",
    "test_size": _DEV,
    "tokenizer_name": _TOKENIZER,
    "tokenizer_name_or_path": _TOKENIZER,
    "tokenizer_path": _TOKENIZER,
    "torch_dtype": _PRECISION,
    "total_batch_size": _BATCH,
    "train_batch_size": _BATCH,
    "train_file": _TRAIN,
    "train_on_input": _LOSS,
    "train_on_inputs": _LOSS,
    "train_on_prompt": _LOSS,
    "train_on_responses_only": _LOSS,
    "train_path": _TRAIN,
    "use_amp": _PRECISION,
    "use_cosine": _SCHEDULER,
    "use_cpu": _DEVICE,
    "val_file": _DEV,
    "val_set_size": _DEV,
    "val_size": _DEV,
    "val_split": _DEV,
    "validation_split": _DEV,
    "warmup": _WARMUP,
    "warmup_iters": _WARMUP,
    "warmup_ratio": _WARMUP_SHARE,
    "weight_decay_rate": "write training.weight_decay",
}

NOT_AVAILABLE = {
    "adapter",
    "attention_dropout",
    "best_by",
    "bnb_4bit_quant_type",
    "compile",
    "ddp",
    "deepspeed",
    "deterministic",
    "dropout",
    "fsdp",
    "gradient_checkpointing",
    "label_smoothing",
    "load_in_4bit",
    "load_in_8bit",
    "lora",
    "neftune_noise_alpha",
    "patience",
    "peft",
    "qlora",
    "quantization",
    "repeat",
    "torch_compile",
    "use_liger_kernel",
    "use_lora",
    "use_peft",
}
NOT_AVAILABLE_PREFIXES = ("lora_", "peft_", "bnb_", "fsdp_")
