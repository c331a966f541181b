"""Settings with comments are YAML that reads back as it was, whatever stands in a name or a comment."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from finetooth.config.commented import commented_yaml
from finetooth.config.load import load_config, read_config
from finetooth.config.settings import values_of

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=20)


def test_comments_stand_below_one_another():
    settings = {
        "model.path": ("./base", "1.24B parameters"),
        "data.train": ("a folder with a very long name/train.jsonl", "999 records"),
        "training.learning_rate": (2.5e-05, "for a model of this size"),
        "training.warmup_steps": (0.03, ""),
        "data.dev": (None, "none"),
        "output_dir": ("runs/first", "all that the run leaves behind"),
    }
    assert commented_yaml(settings, heading=["Written by hand."]) == (
        "# Written by hand.\n"
        "model:\n"
        "  path: ./base           # 1.24B parameters\n"
        "data:\n"
        '  train: "a folder with a very long name/train.jsonl"  # 999 records\n'
        "  dev: null              # none\n"
        "training:\n"
        "  learning_rate: 2.5e-5  # for a model of this size\n"
        "  warmup_steps: 0.03\n"
        "output_dir: runs/first   # all that the run leaves behind\n"
    )


@given(train=TEXTS, comment=st.text(max_size=20), rate=st.floats(1e-12, 1.0))
def test_what_is_written_reads_back(train: str, comment: str, rate: float):
    settings = {
        "model.path": ("base", comment),
        "data.train": (train, comment),
        "training.learning_rate": (rate, comment),
        "training.min_learning_rate": (rate / 10, comment),
        "output_dir": ("run", comment),
    }
    values = values_of(read_config(commented_yaml(settings, heading=[comment]), "run.yaml"))
    assert {key: values[key] for key in settings} == {key: value for key, (value, _) in settings.items()}


def test_a_text_is_read_as_a_file_is(tmp_path: Path):
    text = commented_yaml({"model.path": ("b", ""), "data.train": ("t", ""), "output_dir": ("o", "")})
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert read_config(text, str(path)).origins == load_config(path).origins
