"""Where the page may be served, and what `freqformer demo` refuses."""

import socket
import sys

import pytest

from freqformer.cli import main
from freqformer.demo import address
from freqformer.demo.serving import PASSWORD
from freqformer.errors import FreqFormerError


@pytest.fixture
def refused(capsys):
    """Call the command line; it must exit with code 2 and a single line on stderr, which is returned."""

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            main(["demo", *words])
        err = capsys.readouterr().err
        assert stop.value.code == 2, err
        assert err.startswith("freqformer: "), err
        assert err.count("\n") == 1, err
        return err

    return call


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_loopback_needs_no_password(host):
    assert address(host, 0, None, {}).auth is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid", "", "127.0.0.1.example.invalid"])
def test_other_hosts_need_a_password(host):
    with pytest.raises(FreqFormerError, match="--auth"):
        address(host, 0, None, {})


def test_a_password_lets_other_machines_in():
    assert address("0.0.0.0", 0, "ann:se:cret", {}).auth == ("ann", "se:cret")


def test_the_environment_holds_the_password_too():
    assert address("0.0.0.0", 0, None, {PASSWORD: "ann:secret"}).auth == ("ann", "secret")
    assert address("0.0.0.0", 0, "bob:mine", {PASSWORD: "ann:secret"}).auth == ("bob", "mine")
    with pytest.raises(FreqFormerError, match="--auth"):
        address("0.0.0.0", 0, None, {PASSWORD: ""})


@pytest.mark.parametrize("words", ["secret", "ann:", ":secret", ":", ""])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_malformed_password_is_refused_and_not_repeated(host, words):
    with pytest.raises(FreqFormerError, match="USER:PASSWORD") as error:
        address(host, 0, words, {})
    assert "secret" not in str(error.value)


def test_a_password_is_in_no_printout():
    assert "secret" not in repr(address("127.0.0.1", 0, "ann:secret", {}))


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_has_a_range(port):
    with pytest.raises(FreqFormerError, match="--port"):
        address("127.0.0.1", port, None, {})


def test_a_port_in_use_is_told_before_anything_is_loaded(refused):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        words = refused("no-such-run", "--port", str(port))
    assert f"127.0.0.1:{port}" in words
    assert "in use" in words


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (["--host", "0.0.0.0"], "--auth"),
        (["--auth", "nobody"], "USER:PASSWORD"),
        (["--share"], "--share"),
        (["no-such-run", "--port", "0"], "no-such-run"),
        (["--host", "no.such.host.invalid", "--auth", "a:b"], "no.such.host.invalid"),
    ],
)
def test_the_command_refuses_in_a_line(refused, words, about):
    assert about in refused(*words)


def test_a_missing_gradio_names_its_extra(refused, monkeypatch):
    monkeypatch.setattr("freqformer.cli.find_spec", lambda name: None)
    assert "freqformer[demo]" in refused("--port", "0")


@pytest.mark.slow
def test_without_a_checkpoint_the_quickstart_is_trained_once(monkeypatch, tmp_path, capsys):
    from freqformer.tools import digits_config

    def short(output_dir):
        config = digits_config(output_dir)
        config.epochs, config.limit_train, config.num_workers = 1, 96, 0
        return config

    served = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["freqformer.tools.quickstart"], "digits_config", short)
    monkeypatch.setattr("freqformer.demo.serve", lambda subject, where: served.append(subject))
    for words in ("training the quickstart first", "the quickstart in runs/quickstart it is"):
        with pytest.raises(SystemExit) as stop:
            main(["demo", "--port", "0"])
        assert stop.value.code == 0
        assert words in capsys.readouterr().err
    assert [subject.name for subject in served] == ["runs/quickstart"] * 2
    assert served[0].labels == list("0123456789")
