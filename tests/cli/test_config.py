"""Settings are shown with their origin, and changed without touching another line of the file."""

from __future__ import annotations

import io
import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktops.config_file import edit_setting, write_setting
from ktops.settings import SETTING_NAMES, Settings, resolve_settings
from ktops_engine.errors import KtopsError

MASK = "(set, not shown)"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return tmp_path / "xdg_config_home" / "ktops" / "config.toml"


@pytest.fixture
def given_file(config_file):
    """`given_file(text)` is the user's configuration file with that text."""

    def write(text: str) -> Path:
        config_file.parent.mkdir(parents=True, exist_ok=True)
        config_file.write_bytes(text.encode())
        return config_file

    return write


def test_show_names_the_origin_of_every_value(ktops, given_file, work_dir, monkeypatch):
    user = given_file("port = 1\nhost = '::1'\ncpu_infer = 2\n")
    (work_dir / "ktops.toml").write_text("port = 3\nhost = 'localhost'\n")
    monkeypatch.setenv("KTOPS_PORT", "4")
    shown = ktops("config", "show", "--json").document["settings"]
    assert list(shown) == list(SETTING_NAMES)
    assert shown["port"] == {"value": 4, "origin": "KTOPS_PORT"}
    assert shown["host"] == {"value": "localhost", "origin": str(work_dir / "ktops.toml")}
    assert shown["cpu_infer"] == {"value": 2, "origin": str(user)}
    assert shown["ctx_size"] == {"value": None, "origin": "default"}


def test_show_has_the_origin_column_only_on_request(ktops):
    plain, full = ktops("config", "show"), ktops("config", "show", "--origin")
    assert plain.stdout.splitlines()[0].split() == ["Setting", "Value"]
    assert full.stdout.splitlines()[0].split() == ["Setting", "Value", "Origin"]
    assert full.stdout.count("  default\n") == len(SETTING_NAMES)


def test_show_quiet_prints_what_is_set_as_lines_for_a_script(ktops):
    ran = ktops("config", "show", "-q")
    assert "port=10002" in ran.stdout.splitlines()
    assert "cpu_infer" not in ran.stdout


@pytest.mark.parametrize("name", SETTING_NAMES)
def test_what_is_set_is_what_get_prints_and_unset_removes(ktops, config_file, name):
    value = {"models_dir": "/m", "gpu_memory": "65GiB", "numa": "off"}.get(name, "65")
    before = ktops("config", "get", name).stdout
    assert ktops("config", "set", name, value).status == 0
    assert ktops("config", "get", name).stdout == f"{value}\n"
    ran = ktops("config", "unset", name)
    assert (ran.status, ran.stderr) == (0, "")
    assert ktops("config", "get", name).stdout == before
    assert config_file.read_text() == ""


def test_a_setting_may_be_spelled_with_dashes(ktops, config_file):
    assert ktops("config", "set", "cpu-infer", "65").status == 0
    assert config_file.read_text() == "cpu_infer = 65\n"


def test_get_of_a_setting_without_a_value_fails_with_the_way_to_set_it(ktops):
    ran = ktops("config", "get", "cpu_infer")
    assert (ran.status, ran.stdout) == (1, "")
    assert "Fix: ktops config set cpu_infer VALUE" in ran.stderr


def test_the_api_key_is_shown_by_get_alone(ktops):
    for mode in ((), ("--json",), ("-q",)):
        for args in (("set", "api_key", "sesame"), ("show",), ("show", "--origin")):
            ran = ktops("config", *args, *mode)
            assert ran.status == 0
            assert "sesame" not in ran.stdout + ran.stderr
    assert MASK in ktops("config", "show").stdout
    assert ktops("config", "get", "api_key").stdout == "sesame\n"


def test_a_wrong_api_key_in_the_file_is_not_repeated(ktops, given_file):
    given_file("api_key = ['sesame']\n")
    ran = ktops("config", "show")
    assert ran.status == 2
    assert "api_key in " in ran.stderr
    assert "sesame" not in ran.stderr


def test_a_dash_reads_the_value_from_standard_input(ktops, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("sesame\n"))
    assert ktops("config", "set", "api_key", "-").status == 0
    assert ktops("config", "get", "api_key").stdout == "sesame\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["set", "prot", "3"], "ktops has no setting 'prot'; did you mean 'port'?"),
        (["get", "modelsdir"], "did you mean 'models_dir'?"),
        (["unset", "zzz"], "ktops has no setting 'zzz'"),
        (["set", "port", "http"], "port is 'http': it must be a whole number from 0 to 65535"),
        (["set", "cpu_infer", "0"], "cpu_infer is '0': it must be a whole number, at least 1"),
        (["set", "host", " "], "host is ' ': it must be a text that is not empty"),
        (["set", "api_key", ""], "api_key must be a text that is not empty"),
        (["set", "models_dir", "~no-such-user/m"], "home folder does not exist"),
        (["set", "host", "a\udcff"], "it must be text that UTF-8 can hold"),
        (["set", "port"], "missing argument 'value'"),
        (["sho"], "ktops config has no command 'sho'; did you mean 'show'?"),
    ],
)
def test_a_wrong_key_or_value_is_usage_and_writes_nothing(ktops, config_file, args, message):
    ran = ktops("config", *args)
    assert ran.status == 2
    assert message in ran.stderr
    assert "\n  Fix: ktops config" in ran.stderr or "UTF-8" in message
    assert not config_file.parent.exists()


def test_a_relative_folder_is_meant_from_where_the_command_runs(ktops, config_file, work_dir):
    ktops("config", "set", "models_dir", "m")
    assert tomllib.loads(config_file.read_text()) == {"models_dir": str(work_dir / "m")}


def test_comments_and_other_lines_stay(ktops, given_file):
    file = given_file("# mine\n\n  port=1   # 'office' # yes\nhost = 'a#b'\n# port = 5\n")
    ktops("config", "set", "port", "2")
    ktops("config", "set", "host", 'c"d#')
    assert file.read_text() == (
        "# mine\n\n  port = 2   # 'office' # yes\n" + 'host = "c\\"d#"\n# port = 5\n'
    )
    ktops("config", "unset", "port")
    assert file.read_text() == '# mine\n\nhost = "c\\"d#"\n# port = 5\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "port = 2\n"),
        ("# no line end", "# no line end\nport = 2\n"),
        ("host = 'a'\r\n", "host = 'a'\r\nport = 2\r\n"),
        ("port = 1", "port = 2"),
        ("port = 1 # c\r\nhost = 'a'\r\n", "port = 2 # c\r\nhost = 'a'\r\n"),
        ('"port" = 0x1F\n', "port = 2\n"),
        ('host = """\nport = 1\n"""\nport = 3\n', 'host = """\nport = 1\n"""\nport = 2\n'),
        ("port = '''\n# x\n''' # y\n", "port = 2 # y\n"),
    ],
)
def test_the_statement_is_found_as_toml_reads_it(before, after):
    assert edit_setting(before, "port", 2) == after
    assert edit_setting(after, "port", 2) == after


def test_a_wrong_value_in_the_file_can_be_put_right(ktops, given_file):
    file = given_file("port = 'x'\nprot = 1\n")
    ran = ktops("config", "set", "port", "2")
    assert ran.status == 0
    assert "sets 'prot'" in ran.stderr  # still wrong, and said so
    assert ktops("config", "unset", "prot").status == 0
    assert file.read_text() == "port = 2\n"


def test_a_file_that_is_not_toml_is_left_alone(ktops, given_file):
    file = given_file("port = = 1\n")
    ran = ktops("config", "set", "port", "2")
    assert ran.status == 2
    assert "not valid TOML" in ran.stderr
    assert file.read_text() == "port = = 1\n"


def test_a_value_that_would_land_in_a_table_is_refused(config_file, given_file):
    given_file("[other]\nx = 1\n")
    with pytest.raises(KtopsError) as caught:
        write_setting(config_file, "port", 2)
    assert caught.value.code == "config-not-written"
    assert "by hand" in caught.value.hint
    assert config_file.read_text() == "[other]\nx = 1\n"


@pytest.mark.parametrize("winner", ["variable", "project"])
def test_setting_what_something_stronger_hides_warns(ktops, work_dir, monkeypatch, winner):
    if winner == "variable":
        monkeypatch.setenv("KTOPS_PORT", "4")
    else:
        (work_dir / "ktops.toml").write_text("port = 3\n")
    ran = ktops("config", "set", "port", "2")
    assert ran.status == 0
    assert "warning: " in ran.stderr
    assert "wins" in ran.stderr


def test_a_new_file_and_one_with_a_key_are_readable_by_the_owner_alone(ktops, config_file):
    def mode() -> int:
        return stat.S_IMODE(config_file.stat().st_mode)

    ktops("config", "set", "port", "2")
    assert mode() == 0o600
    config_file.chmod(0o644)
    ktops("config", "set", "port", "3")
    assert mode() == 0o644
    ktops("config", "set", "api_key", "sesame")
    assert mode() == 0o600


def test_a_link_to_the_file_stays_a_link(ktops, config_file, tmp_path):
    config_file.parent.mkdir(parents=True)
    (tmp_path / "dotfiles.toml").write_text("port = 1\n")
    config_file.symlink_to(tmp_path / "dotfiles.toml")
    ktops("config", "set", "port", "2")
    assert config_file.is_symlink()
    assert (tmp_path / "dotfiles.toml").read_text() == "port = 2\n"


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(ktops, given_file, monkeypatch):
    file = given_file("port = 1\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    ran = ktops("config", "set", "port", "2")
    assert ran.status == 1
    assert "cannot be changed: No space left on device" in ran.stderr
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.read_text() == "port = 1\n"


def test_path_prints_the_file_whether_it_exists_or_not(ktops, config_file, given_file):
    assert ktops("config", "path").stdout == f"{config_file}\n"
    assert ktops("config", "path", "--json").document["exists"] is False
    given_file("")
    assert ktops("config", "path", "--json").document["exists"] is True


def test_json_says_what_changed(ktops, config_file):
    document = ktops("config", "set", "port", "2", "--json").document
    assert document == {
        "schema_version": 1,
        "key": "port",
        "value": 2,
        "path": str(config_file),
        "changed": True,
    }
    assert ktops("config", "set", "port", "2", "--json").document["changed"] is False
    assert ktops("config", "get", "port", "--json").document["origin"] == str(config_file)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip() == text
)
VALUES = st.one_of(
    st.tuples(st.sampled_from(["default_model", "host", "api_key"]), TEXTS),
    st.tuples(st.just("models_dir"), TEXTS.map(lambda text: str(Path("/") / text))),
    st.tuples(st.just("port"), st.integers(0, 65535)),
    st.tuples(st.sampled_from(["cpu_infer", "ctx_size", "max_new_tokens"]), st.integers(1)),
)
OTHER_LINES = st.lists(
    st.sampled_from(["", "# a comment", "  # port = 1 'x", "\t", "# \"\"\" host = '''"])
)
LINE_ENDS = st.sampled_from(["\n", "\r\n"])


@settings(max_examples=150, deadline=None)
@given(VALUES, VALUES, OTHER_LINES, OTHER_LINES, LINE_ENDS)
def test_set_then_load_gives_the_value_and_keeps_the_rest(
    tmp_path_factory, pair, neighbour, above, below, end
):
    folder = tmp_path_factory.mktemp("config")
    file = folder / "config.toml"
    (name, value), (other, other_value) = pair, neighbour
    text = "".join(line + end for line in [*above, *below])
    if other != name:
        text = edit_setting(text, other, other_value)
    file.write_bytes(text.encode())

    write_setting(file, name, value)
    loaded = load(folder)
    assert str(getattr(loaded, name)) == str(value)
    if other != name:
        assert str(getattr(loaded, other)) == str(other_value)

    write_setting(file, name, None)
    assert file.read_bytes().decode() == text


def load(folder: Path) -> Settings:
    return resolve_settings(
        {}, environ={}, folder=folder / "none", config_dir=folder, data_dir=folder
    )


def test_threads_can_be_set_to_auto(ktops, config_file):
    assert ktops("config", "set", "cpu_infer", "auto").status == 0
    assert config_file.read_text() == 'cpu_infer = "auto"\n'
    assert ktops("config", "get", "cpu_infer", "--json").document["value"] == "auto"
