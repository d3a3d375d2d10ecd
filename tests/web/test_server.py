"""The server: where it listens, what it serves, and its two functions for programs."""

import socket
import urllib.error
import urllib.request
from urllib.parse import quote

import pytest
from helpers_web import OVERRIDES, free_port, served, uploads
from PIL import Image

from perfusion.commands.cli import main
from perfusion.errors import UserError
from perfusion.web.command import check_address

gradio_client = pytest.importorskip("gradio_client")


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["web", *argv])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    return said


def test_an_occupied_port_and_an_open_door_are_one_sentence(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"--port={port} on 127.0.0.1 cannot be had" in refused(capsys, "--port", str(port))
    assert "--auth is not given" in refused(capsys, "--host", "0.0.0.0")
    assert "USER:PASSWORD" in refused(capsys, "--auth", "nobody")
    assert "--port=99999" in refused(capsys, "--port", "99999")
    port = str(free_port())
    assert "not a folder" in refused(capsys, "--port", port, "--concepts", "/no/such")
    assert "nonsense" in refused(capsys, "--port", port, "nonsense=1")
    assert "model.path=/no/such" in refused(capsys, "--port", port, "model.path=/no/such")
    assert check_address("0.0.0.0", int(port), "me:secret:word") == ("me", "secret:word")
    with pytest.raises(UserError):
        check_address("no.such.host.invalid", int(port), "me:secret")
    with pytest.raises(UserError, match="cannot be had"):
        check_address("no..host", int(port), "me:secret")


def status(address: str) -> int:
    try:
        return urllib.request.urlopen(address).status
    except urllib.error.HTTPError as error:
        return error.code


def test_no_file_outside_the_page_s_own_is_served(site):
    address, folder = site
    (folder / "secret.txt").write_text("secret")
    assert status(address) == 200
    for path in (
        "/etc/passwd",
        folder / "secret.txt",
        folder / "outputs/web/concepts",
        "../../etc/passwd",
        folder / "gradio/../secret.txt",
    ):
        assert status(f"{address}/gradio_api/file={quote(str(path))}") in (403, 404), path


def test_programs_learn_and_draw(site, tmp_path):
    client = gradio_client.Client(site[0], verbose=False)
    pictures = [gradio_client.handle_file(path) for path in uploads(tmp_path)]
    word, file = client.predict(pictures, "robot", "", 2, api_name="/learn")
    assert word == "robot*" and file.endswith(".safetensors")
    drawn = lambda beta: Image.open(
        client.predict("a robot* on a beach", {"robot*": {"beta": beta}}, "", 0, 2, 3.5, api_name="/draw")
    )
    assert drawn(0.1).size == (64, 64) and drawn(0.1).tobytes() == drawn(0.1).tobytes() != drawn(1.4).tobytes()


def test_programs_get_the_sentence_and_no_path_of_the_machine(site, tmp_path):
    client = gradio_client.Client(site[0], verbose=False)
    draw = lambda *values: client.predict(*values, api_name="/draw")
    for values, said in (
        (("a dog*", {"dog*": {}}, "", 0, 2, 3.5), "no concept"), (("a dog", {}, "", 0, 2_000, 3.5), "steps=2000"),
        (("a dog", {"x": {"gamma": 1}}, "", 0, 2, 3.5), "gamma"), (("a dog", [1], "", 0, 2, 3.5), "does not work"),
        (("", {}, "", 0, 2, 3.5), "letters"),
    ):  # fmt: skip
        with pytest.raises(Exception, match=said):
            draw(*values)
    passwd = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(Exception) as error:
        client.predict([passwd], "robot", "", 2, api_name="/learn")
    assert "root:" not in str(error.value)
    with pytest.raises(Exception, match="exactly 1 is allowed"):
        client.predict([gradio_client.handle_file(p) for p in uploads(tmp_path)], "zzyzxq", "x*", 2, api_name="/learn")


@pytest.mark.slow
def test_with_a_password_nothing_is_seen_without_it(web_assets, tmp_path):
    port = free_port()
    command = ["-m", "perfusion", "web", "--port", str(port), "--auth", "me:secret", *OVERRIDES]
    with served(command, tmp_path, web_assets, port) as address:
        assert status(f"{address}/config") == 401 and status(f"{address}/gradio_api/info") == 401
        client = gradio_client.Client(address, auth=("me", "secret"), verbose=False)
        assert client.predict("a dog", {}, "", 0, 1, 3.5, api_name="/draw")
        with pytest.raises(Exception, match="."):
            gradio_client.Client(address, auth=("me", "wrong"), verbose=False)


@pytest.mark.slow
def test_a_space_starts_the_same_page(web_assets, tmp_path):
    from helpers_emojiland import ROOT

    port = free_port()
    with served([str(ROOT / "spaces/app.py")], tmp_path, web_assets, port, GRADIO_SERVER_PORT=str(port)) as address:
        assert {"/draw", "/learn"} == set(
            gradio_client.Client(address, verbose=False).view_api(return_format="dict")["named_endpoints"]
        )
