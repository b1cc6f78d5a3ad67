"""The configuration: defaults, files, environment, and errors that say where and what."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import yaml

from florence_daemon import config, config_file
from florence_daemon.errors import ConfigError

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "config" / "florence-daemon.yaml"


def load_text(tmp_path: Path, text: str, **environ: str) -> config.Config:
    path = tmp_path / "test.yaml"
    path.write_text(text)
    return config_file.load(path, environ)


def error_of(tmp_path: Path, text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text, **environ)
    return str(caught.value)


def test_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_text(tmp_path, "") == config.Config()


def test_defaults_are_those_that_clients_rely_on() -> None:
    defaults = config.Config()
    assert defaults.model.name == "MiaoshouAI/Florence-2-large-PromptGen-v2.0"
    assert (defaults.server.host, defaults.server.port) == ("127.0.0.1", 54880)
    assert (defaults.model.idle_unload_s, defaults.model.num_beams, defaults.model.max_new_tokens) == (300, 3, 1024)


def test_example_file_states_every_setting_with_its_default() -> None:
    data = yaml.safe_load(EXAMPLE.read_text())
    for name, section in (("model", config.ModelConfig()), ("server", config.ServerConfig())):
        expected = {key: _as_yaml(value) for key, value in attrs.asdict(section).items()}
        assert data[name] == expected, name
    folder = data["folders"][0]
    defaults = attrs.asdict(config.FolderConfig(path=Path("x")))
    assert set(folder) == set(defaults)
    for key in set(folder) - {"path", "outputs"}:
        assert folder[key] == _as_yaml(defaults[key]), key
    (example,) = config_file.load(EXAMPLE, {}).folders
    assert example.outputs == config.DEFAULT_OUTPUTS
    assert set(folder["outputs"][0]) == {each.name for each in attrs.fields(config.OutputConfig)}


def _as_yaml(value: object) -> object:
    return [_as_yaml(item) for item in value] if isinstance(value, tuple) else value


def test_every_setting_of_the_example_file_has_a_comment() -> None:
    lines = EXAMPLE.read_text().splitlines()
    settings = [
        number for number, line in enumerate(lines) if line.strip() and not line.strip().startswith(("#", "- {"))
    ]
    bare = [lines[n] for n in settings if "#" not in lines[n] and not lines[n - 1].strip().startswith("#")]
    assert bare == []


def test_unknown_key_names_file_line_and_the_nearest_right_one(tmp_path: Path) -> None:
    message = error_of(tmp_path, "model:\n  name: demo\n  idle_unlaod_s: 5\n")
    assert message == f"{tmp_path / 'test.yaml'}:3: model.idle_unlaod_s: unknown setting; did you mean idle_unload_s?"


def test_unknown_section_is_named(tmp_path: Path) -> None:
    assert ":1: modell: unknown setting; did you mean model?" in error_of(tmp_path, "modell:\n  name: demo\n")


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    message = error_of(tmp_path, "model:\n  num_beams: 0\nserver:\n  port: 99999\n  hots: x\n")
    assert ":2: model.num_beams: 0 is out of range; give 1 to 16" in message
    assert len(message.splitlines()) >= 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {num_beams: '3'}", "model.num_beams: '3' is not a whole number"),
        ("model: {num_beams: true}", "model.num_beams: True is not a whole number"),
        ("model: {offline: 1}", "model.offline: 1 is not true or false"),
        ("model: demo", "model: 'demo' is no settings; write each with its name, such as name: …"),
        ("folders: [/pictures]", "folders[0]: '/pictures' is no settings; write each with its name, such as path: …"),
        ("model: {name: 5}", "model.name: 5 is not text"),
        ("model: {device: gpu}", "'gpu' is not known; give auto, cpu, cuda, cuda:1"),
        ("model: {device: []}", "model.device: must not be empty"),
        ("model: {device: [cuda:0, gpu]}", "model.device: 'gpu' is not known; give of several devices cpu, cuda:0"),
        ("model: {device: [cuda:0, cuda:00]}", "model.device: 'cuda:00' is not known; give of several devices cpu"),
        ("model: {device: [all]}", "model.device: 'all' is not known; give of several devices cpu, cuda:0"),
        ("model: {device: [cpu, cuda:1, cuda:1]}", "model.device: 'cuda:1' is given twice"),
        ("model: {device: [1]}", "model.device: 1 is not text"),
        ("model: {device: {a: b}}", "model.device: {'a': 'b'} is neither text nor a list of such"),
        ("model: {precision: int4}", "'int4' is not known; give one of auto, float32"),
        ("model: {idle_unload_s: -2}", "-2.0 is out of range; give 0 to"),
        ("server: {max_body_mb: 0}", "server.max_body_mb: 0.0 is out of range"),
        ("folders: /pictures", "is not a list"),
        ("folders: [{recursive: true}]", "path is missing"),
        ("folders: [{path: p, outputs: [{prompt: CAPTON, ext: txt}]}]", "Invalid prompt"),
        ("folders: [{path: p, outputs: [{prompt: CAPTION, ext: jpg}]}]", "must never overwrite a picture"),
        ("folders: [{path: p, outputs: [{prompt: CAPTION, ext: ../x}]}]", "is not a file name's ending"),
        ("folders: [{path: p, outputs: [{prompt: CAPTION, ext: a.jpg}]}]", "must never overwrite a picture"),
        ("folders: [{path: p, outputs: [{prompt: CAPTION, ext: 'a:b'}]}]", "is not a file name's ending"),
        ("folders: [{path: p, outputs: []}]", "must not be empty"),
        ("folders: [{path: p, overwrite: adding}]", "give one of never, stale, append, prepend, always"),
        ("folders: [{path: p, include: '*.jpg'}]", "is not a list"),
        ("[1, 2]", "the sections model, server and folders are expected"),
        ("model: [", "this is not YAML"),
        ("model: &a [*a]", "this is not YAML"),
    ],
)
def test_wrong_value_says_what_to_give(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in error_of(tmp_path, text)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("ext: txt", "prompt: is missing; give a prompt's name, or several as prompts"),
        ("prompt: OCR, prompts: [CAPTION], ext: txt", "prompt: is given, and prompts too"),
        ("prompts: [CAPTION, <caption>], ext: txt", "prompts: <CAPTION> is there twice"),
        ("prompts: [CAPTION, CAPTON], ext: txt", "prompts: Invalid prompt 'CAPTON'"),
        ("prompt: CAPTION, text: a cat, ext: txt", "prompt: <CAPTION> takes no text"),
        ("prompt: OPEN_VOCABULARY_DETECTION, ext: json", "prompt: <OPEN_VOCABULARY_DETECTION> needs a text"),
        ("prompt: CAPTION, ext: txt, num_beams: 0", "num_beams: 0 is out of range"),
        ("prompt: CAPTION, ext: txt, overwrite: no", "overwrite: "),
        ("prompt: OD, ext: json, overwrite: append", "nothing can be added to places"),
        ("prompt: CAPTION, ext: txt, case: upper", "give one of keep, lower, sentence"),
        ("prompt: CAPTION, ext: txt, replace_tags: [a]", "is not a mapping; write old: new"),
        ("prompt: CAPTION, ext: txt, strip: ['']", "strip: an entry is empty"),
        ('prompt: CAPTION, ext: txt, prefix: "\\udce4"', r"prefix: '\udce4' cannot be written as UTF-8"),
        ('prompt: CAPTION, ext: txt, replace_tags: {a: "\\udce4"}', r"replace_tags: 'a\udce4' cannot be written"),
        ('prompt: CAPTION, ext: txt, join: "\\n"', "has a line break, and lines is one"),
        ("prompt: CAPTION, ext: txt, template: '{tags}'", "{tags} is not known here; this output has {caption}"),
        ("prompt: CAPTION, ext: txt, template: '{caption.real}'", "{caption.real} is not known here"),
        ("prompt: CAPTION, ext: txt, template: '{caption!r}'", "is not known here"),
        ("prompt: CAPTION, ext: txt, template: '{caption'", "is no template"),
        ("prompt: CAPTION, ext: txt, template: 'cat'", "has no place for an answer"),
        ("prompt: CAPTION, ext: txt, template: '{caption}', prefix: x", "has no place for prefix"),
        ("prompts: [CAPTION, OCR], ext: txt, template: '{caption}'", "has no place for OCR"),
        ("prompts: [CAPTION, OD], ext: txt, template: '{caption} {OD}'", "finds places, not words"),
    ],
)
def test_option_of_an_output_that_makes_no_sense_says_so(tmp_path: Path, options: str, expected: str) -> None:
    assert expected in error_of(tmp_path, f"folders:\n  - path: p\n    outputs:\n      - {{{options}}}\n")


@pytest.mark.parametrize("ext", ["txt", ".caption", "florence.txt", "json", "Bildunterschrift-ü", "t"])
def test_ending_may_be_any_name(ext: str) -> None:
    assert config.OutputConfig(prompt="CAPTION", ext=ext).ending == "." + ext.lstrip(".")


def test_text_goes_to_those_prompts_that_take_one() -> None:
    output = config.OutputConfig(prompts=("caption", "OD"), text=" a red car ", ext="json")
    assert output.asked == (("<CAPTION>", None), ("<OD>", "a red car"))


def test_rule_of_an_output_goes_before_the_folders_and_nothing_is_added_to_places() -> None:
    caption, places = config.OutputConfig(prompt="CAPTION", ext="txt"), config.OutputConfig(prompt="OD", ext="txt")
    assert caption.rule("append") == "append"
    assert attrs.evolve(caption, overwrite="always").rule("never") == "always"
    assert (places.rule("append"), places.rule("stale")) == ("never", "stale")


def test_two_outputs_with_one_ending_are_refused(tmp_path: Path) -> None:
    text = "folders: [{path: p, outputs: [{prompt: CAPTION, ext: txt}, {prompt: OD, ext: .TXT}]}]"
    assert "two outputs write '.txt'" in error_of(tmp_path, text)


def test_key_given_twice_is_refused(tmp_path: Path) -> None:
    assert ":3: name: given before, on line 2" in error_of(tmp_path, "model:\n  name: demo\n  name: other\n")


def test_problem_deep_in_a_list_is_found_on_its_line(tmp_path: Path) -> None:
    text = "folders:\n  - path: p\n    outputs:\n      - {prompt: CAPTION, ext: txt}\n      - {prompt: OD, exd: json}\n"
    assert ":5: folders[0].outputs[1].exd: unknown setting; did you mean ext?" in error_of(tmp_path, text)


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    settings = load_text(
        tmp_path, "model: {name: demo}", FLORENCE_DAEMON_MODEL__NAME="a/b", FLORENCE_DAEMON_SERVER__PORT="0"
    )
    assert (settings.model.name, settings.server.port) == ("a/b", 0)


def test_several_devices_are_a_list_in_the_file_and_between_commas_in_the_environment(tmp_path: Path) -> None:
    assert load_text(tmp_path, "model: {device: [cpu, cpu]}").model.device == ("cpu", "cpu")
    assert load_text(tmp_path, "model:\n  device:\n    - cuda:0\n").model.device == ("cuda:0",)
    for text in ("cuda:0,cuda:1", "cuda:0, cuda:1", "[cuda:0, cuda:1]"):
        assert load_text(tmp_path, "", FLORENCE_DAEMON_MODEL__DEVICE=text).model.device == ("cuda:0", "cuda:1")
    assert load_text(tmp_path, "", FLORENCE_DAEMON_MODEL__DEVICE="all").model.device == "all"


def test_wrong_environment_variable_is_named(tmp_path: Path) -> None:
    assert error_of(tmp_path, "", FLORENCE_DAEMON_SERVER__PROT="1").startswith(
        "FLORENCE_DAEMON_SERVER__PROT: server.prot"
    )
    assert "not a setting" in error_of(tmp_path, "", FLORENCE_DAEMON_PORT="1")


def test_relative_folders_start_at_the_file(tmp_path: Path) -> None:
    settings = load_text(tmp_path, "folders: [{path: pictures}, {path: /abs}]")
    assert [folder.path for folder in settings.folders] == [tmp_path / "pictures", Path("/abs")]


def test_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: there is no such configuration file"):
        config_file.load(Path("nowhere.yaml"), {})


def test_null_section_is_taken_as_left_out(tmp_path: Path) -> None:
    assert load_text(tmp_path, "model:\nserver:\n") == config.Config()


def test_file_is_found_by_name_then_environment_then_default(tmp_path: Path) -> None:
    default = tmp_path / "florence-daemon.yaml"
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert config_file.find_file(None, environ) != default
    default.touch()
    assert config_file.find_file(None, environ) == default
    assert config_file.find_file(None, environ | {"FLORENCE_DAEMON_CONFIG": "env.yaml"}) == Path("env.yaml")
    assert config_file.find_file(Path("named.yaml"), environ | {"FLORENCE_DAEMON_CONFIG": "env.yaml"}) == Path(
        "named.yaml"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "photos.example.org"])
def test_network_needs_a_token_or_the_word_that_nobody_needs_one(tmp_path: Path, host: str) -> None:
    message = error_of(tmp_path, f'server:\n  host: "{host}"\n')
    assert message.startswith(f"{tmp_path / 'test.yaml'}:2: server.host: '{host}' lets other machines in")
    assert "FLORENCE_DAEMON_SERVER__TOKEN" in message
    assert "token: none" in message
    given = load_text(tmp_path, f'server:\n  host: "{host}"\n', FLORENCE_DAEMON_SERVER__TOKEN="0123456789")
    assert given.server.required_token == "0123456789"
    assert load_text(tmp_path, f'server: {{host: "{host}", token: none}}').server.required_token is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_loopback_needs_no_token(tmp_path: Path, host: str) -> None:
    assert load_text(tmp_path, f'server: {{host: "{host}"}}').server.required_token is None


def test_token_that_no_header_can_carry_is_refused_and_not_shown(tmp_path: Path) -> None:
    message = error_of(tmp_path, "server:\n  token: my secret\n")
    assert ":2: server.token: holds what a header cannot carry" in message
    assert "my secret" not in message
    for value in ("1234567890", "[1234567890]", "{a: 1234567890}"):
        message = error_of(tmp_path, f"server:\n  token: {value}\n")
        assert message.endswith(":2: server.token: is not text; put it between quotes")
    assert "secret" not in repr(config.ServerConfig(token="secret"))


@pytest.mark.parametrize("setting", ['allowed_hosts: ["http://x"]', 'allowed_hosts: ["*"]', "allowed_origins: [x]"])
def test_names_and_origins_are_told_apart(tmp_path: Path, setting: str) -> None:
    name = setting.partition(":")[0]
    assert f":1: server.{name}: " in error_of(tmp_path, f"server: {{{setting}}}")
