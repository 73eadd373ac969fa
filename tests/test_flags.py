"""Flags from dataclasses: spelling, values, errors."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from freqformer import FreqFormerError
from freqformer.flags import Flags
from freqformer.tasks import ClassificationConfig


@dataclass
class Base:
    """A config."""

    learning_rate: float = 0.1
    """How fast."""
    clip_grad: float | None = 1.0
    """Largest norm."""


@dataclass
class Config(Base):
    """A config with a base."""

    epochs: int = 3
    """How long."""
    input_size: int | tuple[int, int] | None = None
    """How large."""
    name: str = "x"
    """Some text."""
    path: str | None = None
    """Some place."""
    betas: tuple[float, float] | None = None
    """Two numbers."""
    average: bool = False
    """Whether to average."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Anything else."""
    resume: str | None = None
    """From where."""
    sizes: list[int] = field(default_factory=lambda: [7, 14])
    """Several numbers."""


@pytest.fixture
def parse():
    def call(*words, **settings):
        flags = Flags("freqformer try", "try")
        flags.fields(Config, optional_value={"resume": "last"})
        flags.config_file()
        return flags.parse([str(word) for word in words], **settings)

    return call


def test_defaults_are_the_dataclasss(parse):
    assert Config(**parse()) == Config()


@pytest.mark.parametrize(
    "words",
    [
        ["--learning-rate", "0.5"],
        ["--learning_rate", "0.5"],
        ["--learning-rate=0.5"],
        ["--learning_rate=0.5"],
        ["--learning-rate", "5e-1"],
    ],
)
def test_a_dash_and_an_underscore_are_the_same(parse, words):
    assert parse(*words)["learning_rate"] == 0.5


def test_the_last_of_a_repeated_flag_counts(parse):
    assert parse("--epochs", 4, "--epochs", 5)["epochs"] == 5


@pytest.mark.parametrize("word", ["none", "None", "null"])
def test_none_is_no_value_where_there_may_be_none(parse, word):
    assert parse("--clip-grad", word)["clip_grad"] is None
    assert parse(f"--clip-grad={word}")["clip_grad"] is None
    assert parse("--input-size", word)["input_size"] is None


def test_none_is_a_word_where_there_must_be_text(parse):
    assert parse("--name", "none")["name"] == "none"


def test_none_where_a_number_must_be(parse):
    with pytest.raises(FreqFormerError, match="--epochs"):
        parse("--epochs", "none")


@pytest.mark.parametrize(("given", "size"), [("48", 48), ("[32, 64]", (32, 64)), ("[32,64]", (32, 64)), ("none", None)])
def test_a_size_is_a_number_or_a_pair(parse, given, size):
    assert parse("--input-size", given)["input_size"] == size


@pytest.mark.parametrize(("given", "sizes"), [(["3"], [3]), (["3", "4", "5"], [3, 4, 5])])
def test_a_list_takes_one_word_or_more(parse, given, sizes):
    assert parse("--epochs", 2, "--sizes", *given, "--name", "y")["sizes"] == sizes


@pytest.mark.parametrize("given", [["0.9", "0.99"], ["[0.9, 0.99]"], ["[0.9,0.99]"]])
def test_a_pair_is_one_word_or_two(parse, given):
    values = parse("--epochs", 2, "--betas", *given, "--name", "y")
    assert (values["betas"], values["name"], values["epochs"]) == ((0.9, 0.99), "y", 2)
    assert parse("--betas", *given)["betas"] == (0.9, 0.99)


@pytest.mark.parametrize("given", [["0.9"], ["0.9", "0.9", "0.9"], ["x", "y"], []])
def test_what_is_not_a_pair(parse, given):
    with pytest.raises(FreqFormerError):
        parse("--betas", *given)


def test_other_defaults_give_way_to_a_config_file_and_that_to_flags(tmp_path):
    (tmp_path / "c.yaml").write_text("epochs: 7\nname: y\n")
    flags = Flags("freqformer try", "try")
    flags.fields(Config)
    flags.config_file()
    flags.defaults({"epochs": 5, "name": "x", "clip_grad": None, "betas": (0.5, 0.6), "average": True})
    values = flags.parse(["--name", "z", "--config", str(tmp_path / "c.yaml")])
    assert (values["epochs"], values["name"], values["clip_grad"]) == (7, "z", None)
    assert (values["betas"], values["average"]) == ((0.5, 0.6), True)


def test_an_optional_word_may_be_left_out_and_stand_anywhere():
    def parse(*words):
        flags = Flags("freqformer try", "try")
        flags.fields(Config)
        flags.positional("place", "where", optional=True)
        return flags.parse(list(words))["place"]

    assert parse("--epochs", "3") is None
    assert parse("here", "--epochs", "3") == parse("--epochs", "3", "here") == "here"
    assert parse("--input-size", "32", "64", "here") == "here"


@pytest.mark.parametrize("given", [["x"], ["1", "x"], ["1.5"], []])
def test_a_list_of_something_else(parse, given):
    with pytest.raises(FreqFormerError, match="--sizes"):
        parse("--sizes", *given)


@pytest.mark.parametrize("given", ["[1]", "[1, 2, 3]", "x", "1.5"])
def test_a_size_that_is_neither(parse, given):
    with pytest.raises(FreqFormerError, match="--input-size"):
        parse("--input-size", given)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--average"], True),
        (["--average", "true"], True),
        (["--average", "false"], False),
        (["--average=false"], False),
        (["--no-average"], False),
        (["--no_average"], False),
    ],
)
def test_a_switch_in_every_spelling(parse, words, value):
    assert parse(*words)["average"] is value
    assert parse(*words, "--epochs", 4)["average"] is value


@pytest.mark.parametrize("words", [["--model-args", '{"depth": 3}'], ["--model-args.depth", "3"]])
def test_a_dictionary_whole_or_by_key(parse, words):
    assert parse(*words)["model_args"] == {"depth": 3}


def test_keys_of_a_dictionary_keep_their_underscores(parse):
    assert parse("--model-args.spectral_depth", "3")["model_args"] == {"spectral_depth": 3}
    assert parse("--model_args.spectral_depth=3")["model_args"] == {"spectral_depth": 3}


def test_a_flag_that_may_lack_its_value(parse):
    assert parse()["resume"] is None
    assert parse("--resume")["resume"] == "last"
    assert parse("--resume", "--epochs", 4)["resume"] == "last"
    assert parse("--resume", "x.ckpt")["resume"] == "x.ckpt"
    assert parse("--resume=x.ckpt")["resume"] == "x.ckpt"


def test_negative_numbers_are_values(parse):
    assert parse("--learning-rate", "-0.5")["learning_rate"] == -0.5


@pytest.mark.parametrize("text", ["3", "1e3", "true", "null", "[a]", "a: b", "", "two words", "-x", "C:\\x", "~/x"])
def test_text_stays_text(parse, text):
    assert parse(f"--name={text}")["name"] == text
    if text != "null":
        assert parse(f"--path={text}")["path"] == text


@pytest.mark.parametrize("wrong", ["x", "1.5", "", "1e3x"])
def test_a_wrong_value_names_flag_value_and_want(parse, wrong):
    with pytest.raises(FreqFormerError) as error:
        parse(f"--epochs={wrong}")
    assert "\n" not in str(error.value)
    assert "--epochs" in str(error.value)
    assert "whole number" in str(error.value)


def test_the_nearest_flag_is_suggested(parse):
    with pytest.raises(FreqFormerError, match=r"there is no flag --epcohs: did you mean --epochs\?"):
        parse("--epcohs", 3)
    with pytest.raises(FreqFormerError, match=r"did you mean --learning-rate\?"):
        parse("--learning_rat", 3)


def test_flags_are_not_abbreviated(parse):
    with pytest.raises(FreqFormerError, match="--epochs"):
        parse("--epoch", 3)


def test_a_config_file_gives_values_and_flags_after_it_win(parse, tmp_path):
    (tmp_path / "c.yaml").write_text("epochs: 7\nname: y\nclip_grad: null\nmodel_args: {depth: 2}\n")
    values = parse("--config", tmp_path / "c.yaml", "--name", "z")
    assert values["epochs"] == 7
    assert values["name"] == "z"
    assert values["clip_grad"] is None
    assert values["model_args"] == {"depth": 2}
    assert "config" not in values


def test_flags_before_the_config_file_win_too(parse, tmp_path):
    """A flag is a change to the file wherever it stands."""
    (tmp_path / "c.yaml").write_text("epochs: 7\n")
    assert parse("--epochs", 9, "--config", tmp_path / "c.yaml")["epochs"] == 9


def test_defaults_from_a_file_give_way_to_flags(parse, tmp_path):
    (tmp_path / "c.yaml").write_text("epochs: 7\nname: y\n")
    values = parse("--epochs", 9, defaults=tmp_path / "c.yaml")
    assert values["epochs"] == 9
    assert values["name"] == "y"


@pytest.mark.parametrize("text", ["nosuch: 3\n", "epochs: x\n", "[1, 2\n", "just words\n"])
def test_a_wrong_config_file_is_one_line(parse, tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(FreqFormerError) as error:
        parse("--config", tmp_path / "c.yaml")
    assert "\n" not in str(error.value)
    assert any(word in str(error.value) for word in ("nosuch", "epochs", "c.yaml", "config"))


def test_a_missing_config_file_says_that_it_is_missing(parse, tmp_path):
    with pytest.raises(FreqFormerError) as error:
        parse("--config", tmp_path / "nowhere.yaml")
    assert "nowhere.yaml" in str(error.value)
    assert "it needs text" not in str(error.value)


def test_surplus_words_are_refused(parse):
    with pytest.raises(FreqFormerError, match="surplus"):
        parse("surplus")


def test_every_default_of_a_real_config_survives_the_command_line():
    flags = Flags("freqformer train", "train")
    flags.fields(ClassificationConfig)
    assert ClassificationConfig(**flags.parse([])) == ClassificationConfig()


def test_positional_words_and_switches():
    flags = Flags("freqformer try", "try")
    flags.value("model_path", str, "where", required=True)
    flags.switch("json", "as JSON")
    flags.positional("images", "images", several=True)
    values = flags.parse(["a.png", "--model_path", "m", "--json"])
    assert values == {"images": ["a.png"], "model_path": "m", "json": True}
    assert flags.parse(["--model-path", "m", "a", "b"])["images"] == ["a", "b"]
    with pytest.raises(FreqFormerError, match="images"):
        flags.parse(["--model-path", "m"])
    with pytest.raises(FreqFormerError, match="--model-path"):
        flags.parse(["a"])


def test_a_list_may_stand_in_brackets_as_yaml_has_it(parse):
    assert parse("--sizes", "[3, 4]")["sizes"] == parse("--sizes", "3", "4")["sizes"] == [3, 4]


@pytest.mark.parametrize(
    "words", ["a b --limit 3 --fast", "--limit 3 a b --fast", "--fast a --limit=3 b", "a --limit 3 b --fast"]
)
def test_several_words_may_stand_between_flags(words):
    flags = Flags("prog", "")
    flags.positional("first", "")
    flags.positional("images", "", several=True, optional=True)
    flags.value("limit", int, "")
    flags.switch("fast", "")
    assert flags.parse(words.split()) == {"first": "a", "images": ["b"], "limit": 3, "fast": True}
