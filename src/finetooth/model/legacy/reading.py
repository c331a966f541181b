"""Reads a `.pt` checkpoint of a described system as the transformers model that computes the same.

Nothing in the file is run, and every tensor of it is mapped or refused.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetooth.base.errors import ConfigError, DataError, problem
from finetooth.base.torch_files import StoredObject, read_torch_file
from finetooth.config.wording import show_value
from finetooth.model.legacy.known import LAYOUTS
from finetooth.model.legacy.layouts import Layout, is_met, names_of
from finetooth.model.legacy.origin import LegacyOrigin, checked_origin, remember
from finetooth.model.legacy.steps import Sizes, Tensors, go_back, go_forward
from finetooth.model.model_config import UNUSABLE, first_line, make_config, read_config

FILE_NAME = "model.pt"
SUFFIXES = (".pt", ".pth")
# What torch.compile and DistributedDataParallel put before every name.
PREFIXES = ("_orig_mod.", "module.")
SHOWN_NAMES = 20
# Of cosines at far positions in 16 bits; those of another rotation differ by far more.
_LARGEST_DIFFERENCE = 2e-2
_INTACT = "use an intact copy"

Arrays = Mapping[str, np.ndarray]


def is_legacy(name: str) -> bool:
    """Whether a name is that of a `.pt` file, or of a folder that holds its parameters in model.pt."""
    path = Path(name).expanduser()
    if path.is_dir():
        return (path / FILE_NAME).is_file() and not any(path.glob("*.safetensors"))
    return path.suffix in SUFFIXES


def load_legacy(name: str, place: str, *, config_path: str | None = None) -> PreTrainedModel:
    """The model of a `.pt` file, or of a folder with model.pt, with float32 parameters on the CPU.

    place:       what names the model, for messages
    config_path: the config.json of a plain state dict of transformers' names (SFT_step_N/model.pt); default:
                 the one beside it
    Raises ConfigError for a file that is damaged, of no known layout, or not computed by transformers, and
    for every tensor that is missing, unexpected, of another shape, or not finite.
    """
    path = Path(name).expanduser()
    file = path / FILE_NAME if path.is_dir() else path
    subject = f"{place}: {file}"
    content = _read(file, place)
    if (layout := _layout_of(content)) is None:
        return _load_plain(content, file, subject, config_path)
    settings, arrays = _settings_and_arrays(layout, content, subject, config_path)
    return _Reading(layout, arrays, subject).load(settings)


def examine_legacy(name: str, place: str, *, config_path: str | None = None) -> tuple[dict[str, Any], int]:
    """What config.json would say of such a model, and its number of parameters; none of them is copied.

    Arguments as for `load_legacy`. Raises ConfigError for a file that is damaged or of no known layout.
    """
    path = Path(name).expanduser()
    file = path / FILE_NAME if path.is_dir() else path
    subject = f"{place}: {file}"
    content = _read(file, place)
    if (layout := _layout_of(content)) is None:
        config, _ = _plain_parts(content, file, subject, config_path)
    else:
        settings, arrays = _settings_and_arrays(layout, content, subject, config_path)
        reading = _Reading(layout, arrays, subject)
        config = reading.config(reading.origin(settings))
    return config.to_dict(), _outline(config, subject).num_parameters()


@dataclass(frozen=True, slots=True)
class _Reading:
    """A file whose layout is known: its parameters by name, and what names it in messages."""

    layout: Layout
    arrays: Arrays
    subject: str

    def load(self, settings: Mapping[str, Any]) -> PreTrainedModel:
        origin = self.origin(settings)
        config = self.config(origin)
        remember(config, origin)
        outline = _outline(config, self.subject)
        self._require_fit(origin, outline)
        tensors = self._tensors(origin)
        for name, parameter in outline.named_parameters():
            if name not in tensors:
                tensors[name] = torch.zeros(parameter.shape)
        return _filled(outline, tensors, self.subject)

    def config(self, origin: LegacyOrigin) -> Any:
        """transformers' config object of the model that the file is."""
        fixed = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **origin.twin.fixed}
        fields = {field: origin.all_settings[name] for field, name in origin.twin.fields.items()}
        return make_config({"model_type": origin.twin.model_type, **fixed, **fields}, self.subject)

    def origin(self, settings: Mapping[str, Any]) -> LegacyOrigin:
        embedding = self.arrays.get(self.layout.embedding)
        if embedding is None or embedding.ndim != 2:
            fact = f"there is no matrix {self.layout.embedding} in {self.layout.state}"
            raise ConfigError(problem(self.subject, fact, _INTACT))
        told = settings.get(self.layout.vocabulary or "", embedding.shape[0])
        if told != embedding.shape[0]:
            fact = f"{self.layout.settings}: {self.layout.vocabulary} is {show_value(told)}"
            fact += f", and {self.layout.embedding} has {embedding.shape[0]} rows"
            raise ConfigError(problem(self.subject, fact, _INTACT))
        bare = checked_origin(self.layout, settings, (), embedding.shape[0], self.subject)
        self._require_as_many(bare.sizes)
        held = tuple(
            constant.pattern
            for constant in self.layout.constants
            if is_met(constant.needs, bare.all_settings)
            and self.arrays.keys() >= set(names_of(constant, bare.sizes))
        )
        return LegacyOrigin(self.layout, settings, held, embedding.shape[0])

    def _require_as_many(self, sizes: Sizes) -> None:
        """Settings that name more tensors than there are would take long to be found wrong."""
        num_named = sizes.layers * (sizes.heads if self.layout.names_heads else 1)
        if num_named > len(self.arrays):
            fact = f"{self.layout.settings} says {sizes.layers} layers of {sizes.heads} heads"
            fact += f", too many for {len(self.arrays)} tensors"
            raise ConfigError(problem(self.subject, fact, _INTACT))

    def _require_fit(self, origin: LegacyOrigin, outline: PreTrainedModel) -> None:
        """Raises ConfigError with what is missing, unexpected, of another shape or dtype, or not finite."""
        expected = _shapes(origin, outline)
        constants = {
            name: constant
            for constant in self.layout.constants
            if constant.pattern in origin.constants
            for name in names_of(constant, origin.sizes)
        }
        arrays = self.arrays
        held = [name for name in expected if name in arrays]
        differing = [name for name in held if arrays[name].shape != expected[name]]
        shapes = (f"{name} {arrays[name].shape} instead of {expected[name]}" for name in differing)
        findings = {
            "tensors are missing": [name for name in expected if name not in arrays],
            "tensors are unexpected": [n for n in arrays if n not in expected and n not in constants],
            "tensors have another shape than the settings say": list(shapes),
            "tensors are no floating-point numbers": [n for n in held if arrays[n].dtype.kind != "f"],
            "tensors differ from what the settings say": self._wrong_constants(origin),
        }
        problems = _worded(findings, self.subject)
        if not problems:
            problems = _worded(
                {"tensors hold values that are not finite": _not_finite(arrays, held)}, self.subject
            )
        if problems:
            raise ConfigError(problems)

    def _wrong_constants(self, origin: LegacyOrigin) -> list[str]:
        wrong: list[str] = []
        for constant in self.layout.constants:
            if constant.pattern not in origin.constants:
                continue
            with torch.device("meta"):
                shape = tuple(constant.compute(origin.all_settings).shape)
            names = names_of(constant, origin.sizes)
            misshapen = [name for name in names if self.arrays[name].shape != shape]
            if not misshapen:
                right = constant.compute(origin.all_settings).numpy()
                wrong += [name for name in names if not _is_near(self.arrays[name], right)]
            wrong += misshapen
        return wrong

    def _tensors(self, origin: LegacyOrigin) -> dict[str, torch.Tensor]:
        """The parameters under transformers' names, float32."""
        tensors: dict[str, torch.Tensor] = {}
        for group in origin.groups():
            theirs = [_as_tensor(self.arrays[name]) for name in group.theirs]
            try:
                ours = go_forward(group.steps, theirs, origin.sizes)
            except ValueError as error:
                fact = f"{' and '.join(group.theirs)} {error}"
                raise ConfigError(problem(self.subject, fact, _INTACT)) from error
            tensors |= {name: tensor.contiguous() for name, tensor in zip(group.ours, ours, strict=True)}
        return tensors


def _read(file: Path, place: str) -> dict[str, Any]:
    classes = [layout.settings_class for layout in LAYOUTS if layout.settings_class is not None]
    try:
        content = read_torch_file(file, plain_objects=classes)
    except DataError as error:
        raise ConfigError(f"{place}: {text}" for text in error.problems) from error
    if not isinstance(content, dict):
        raise ConfigError(problem(f"{place}: {file}", "it holds no parameters by name", _INTACT))
    return content


def _layout_of(content: Mapping[str, Any]) -> Layout | None:
    return next((layout for layout in LAYOUTS if _is_in(layout, content)), None)


def _is_in(layout: Layout, content: Mapping[str, Any]) -> bool:
    state, settings = content.get(layout.state), content.get(layout.settings)
    is_object = isinstance(settings, StoredObject) and settings.name == layout.settings_class
    return isinstance(state, dict) and (isinstance(settings, dict) or is_object)


def _settings_and_arrays(
    layout: Layout, content: Mapping[str, Any], subject: str, config_path: str | None
) -> tuple[dict[str, Any], Arrays]:
    """What a file of a known layout says of its model, and its parameters by name."""
    if config_path is not None:
        raise ConfigError(problem(subject, "it holds settings of its own", "leave model.from_config out"))
    settings = content[layout.settings]
    given = settings.attributes if isinstance(settings, StoredObject) else settings
    return _plain(given, subject), _arrays(content[layout.state], subject)


def _plain_parts(
    content: dict[str, Any], file: Path, subject: str, config_path: str | None
) -> tuple[Any, Arrays]:
    """transformers' config object and the parameters of a plain state dict."""
    if not content or not all(isinstance(value, np.ndarray) for value in content.values()):
        keys = ", ".join(str(key)[:40] for key in list(content)[:SHOWN_NAMES])
        layouts = ", ".join(f"{layout.name} ({layout.state}, {layout.settings})" for layout in LAYOUTS)
        fact = f"its keys ({keys}) are those of no layout that finetooth reads: {layouts}"
        raise ConfigError(problem(subject, fact, "save the parameters alone, and name their config.json"))
    beside = file.with_name("config.json")
    if config_path is None and not beside.is_file():
        fact = "a file of parameters alone, and no config.json beside it"
        raise ConfigError(
            problem(subject, fact, "put that of its base there, or name it as model.from_config")
        )
    arrays = _arrays(content, subject)
    return read_config(Path(config_path) if config_path else beside, subject), arrays


def _load_plain(
    content: dict[str, Any], file: Path, subject: str, config_path: str | None
) -> PreTrainedModel:
    """The model of a plain state dict, whose names are those of transformers."""
    config, arrays = _plain_parts(content, file, subject, config_path)
    if problems := _worded(
        {
            "tensors are no floating-point numbers": [n for n, a in arrays.items() if a.dtype.kind != "f"],
            "tensors hold values that are not finite": _not_finite(arrays, arrays),
        },
        subject,
    ):
        raise ConfigError(problems)
    outline = _outline(config, subject)
    tensors = {name: _as_tensor(array) for name, array in arrays.items()}
    _require_ties(outline, tensors, subject)
    return _filled(outline, tensors, subject)


def _require_ties(outline: PreTrainedModel, tensors: dict[str, torch.Tensor], subject: str) -> None:
    """Tensors that are one in the model must be one in the file, which may name them several times."""
    first: dict[int, str] = {}
    for name, parameter in outline.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name and {name, other} <= tensors.keys():
            if not torch.equal(tensors[name], tensors[other]):
                fact = f"{other} and {name} differ, and config.json says that they are one"
                raise ConfigError(problem(subject, fact, "correct tie_word_embeddings in config.json"))
            del tensors[name]


def _outline(config: Any, subject: str) -> PreTrainedModel:
    """The model without memory for its parameters: names and shapes alone."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    except UNUSABLE as error:
        raise ConfigError(problem(subject, first_line(error), "correct its settings")) from error


def _filled(outline: PreTrainedModel, tensors: dict[str, torch.Tensor], subject: str) -> PreTrainedModel:
    try:
        loaded: Any = type(outline).from_pretrained(
            None,
            config=outline.config,
            state_dict=tensors,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except UNUSABLE as error:
        raise ConfigError(problem(subject, first_line(error), _INTACT)) from error
    model, report = loaded
    shapes = [f"{name} {tuple(a)} instead of {tuple(b)}" for name, a, b in report["mismatched_keys"]]
    findings = {
        "tensors are missing": sorted(report["missing_keys"]),
        "tensors are unexpected": sorted(report["unexpected_keys"]),
        "tensors have another shape than the settings say": sorted(shapes),
    }
    if problems := _worded(findings, subject):
        raise ConfigError(problems)
    return model


def _shapes(origin: LegacyOrigin, outline: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The shapes that the tensors of the file must have: those of the model, taken the way back."""
    parameters = outline.state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for group in origin.groups():
        ours: Tensors = [parameters[name] for name in group.ours]
        theirs = go_back(group.steps, ours, origin.sizes)
        shapes |= {name: tuple(tensor.shape) for name, tensor in zip(group.theirs, theirs, strict=True)}
    return shapes


def _arrays(state: dict[Any, Any], subject: str) -> Arrays:
    """The tensors of a state dict, without what torch.compile and DDP put before their names."""
    if others := [str(name) for name, value in state.items() if not isinstance(value, np.ndarray)]:
        raise ConfigError(_worded({"entries of its state dict are no tensors": others}, subject))
    arrays: dict[str, np.ndarray] = {}
    for name, array in state.items():
        bare = str(name)
        while prefix := next((prefix for prefix in PREFIXES if bare.startswith(prefix)), None):
            bare = bare.removeprefix(prefix)
        if bare in arrays:
            fact = f"{bare} is in it twice, with and without {' or '.join(PREFIXES)}"
            raise ConfigError(problem(subject, fact, _INTACT))
        arrays[bare] = array
    return arrays


def _plain(settings: Mapping[Any, Any], subject: str) -> dict[str, Any]:
    """The settings, once it is sure that config.json can hold them."""
    checked = {str(name): value for name, value in settings.items()}
    for name, value in checked.items():
        if not _is_plain(value):
            fact = f"its setting {name[:60]} is neither number, text, list nor mapping"
            raise ConfigError(problem(subject, fact, "save it without"))
    return checked


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    is_finite = not isinstance(value, float) or bool(np.isfinite(value))
    return value is None or (isinstance(value, str | int | float) and is_finite)


def _not_finite(arrays: Arrays, names: Iterable[str]) -> list[str]:
    return [name for name in names if not np.isfinite(arrays[name]).all()]


def _is_near(array: np.ndarray, right: np.ndarray) -> bool:
    return np.allclose(array, right, rtol=0, atol=_LARGEST_DIFFERENCE)


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    """A float32 copy: what the file holds is read-only."""
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _worded(findings: Mapping[str, list[str]], subject: str) -> list[str]:
    """One problem for each finding that has names."""
    return [
        problem(
            subject, f"{len(names)} {what}: {_some(names)}", "check that file and settings belong together"
        )
        for what, names in findings.items()
        if names
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")
