"""perfusion web: the page, on this machine alone unless told otherwise.

perfusion web [--port 7860] [--host 127.0.0.1] [--auth USER:PASSWORD] [--concepts FOLDER] [overrides of perfusion train]
"""

import logging
import socket
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from perfusion.commands import terminal
from perfusion.commands.apps import sentence_of
from perfusion.commands.cli import Parser
from perfusion.commands.sweeping import compose
from perfusion.config import CONF, check
from perfusion.errors import UserError, install
from perfusion.learning.models import check_model

HERE = ("127.0.0.1", "localhost", "::1")


def configuration(overrides: list[str]) -> DictConfig:
    """conf/train.yaml with overrides. Raises UserError for one that does not fit."""
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(sentence_of("train", error)) from error
    return check("train", cfg)


def check_address(host: str, port: int, auth: str | None) -> tuple[str, str] | None:
    """The (user, password) of --auth. Raises UserError where the page may not or cannot listen there."""
    if host not in HERE and not auth:
        raise UserError(
            f"--host={host} lets other machines in, and --auth is not given; add --auth USER:PASSWORD, or leave --host=127.0.0.1."
        )
    user, colon, password = (auth or "").partition(":")
    if auth is not None and not (user and colon and password):
        raise UserError("--auth does not hold a user and a password; give it as --auth USER:PASSWORD.")
    if not 1 <= port <= 65535:
        raise UserError(f"--port={port} does not work; a whole number from 1 to 65535 is allowed.")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:  # UnicodeError: of a host that can be no name
        raise UserError(
            f"--port={port} on {host} cannot be had ({getattr(error, 'strerror', None) or error}); give another, as in perfusion web --port {port % 65535 + 1}."
        ) from error
    return (user, password) if auth else None


def main(argv: list[str]) -> None:
    parser = Parser(prog="perfusion web", description="A page to teach concepts and to play with them.")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--host", default="127.0.0.1", help="another lets other machines in, and needs --auth")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="asked of every visitor")
    parser.add_argument(
        "--concepts", metavar="FOLDER", type=Path, help="of concept files; outputs/web/concepts by default"
    )
    parser.add_argument("--device", help="cpu, cuda, ...; the GPU if there is one, by default")
    parser.add_argument(
        "overrides", nargs="*", help="of perfusion train's configuration, as in model=sd15 max_steps=200"
    )
    given = parser.parse_intermixed_args(argv)
    auth = check_address(given.host, given.port, given.auth)
    if given.concepts and not given.concepts.is_dir():
        raise UserError(f"--concepts={given.concepts} is not a folder; give one of concept files, or leave it out.")
    cfg = configuration(given.overrides)
    check_model(cfg.model, ("path", "scorer", *(["segmenter"] if cfg.masks else [])))
    try:
        from perfusion.web.app import build, serve
    except ModuleNotFoundError as error:
        raise UserError(
            f"perfusion web needs {error.name}, which is not installed; install it with {install('web')}."
        ) from error
    terminal.start()
    if terminal.verbosity() <= 0:  # no Hydra has set logging up: Lightning shows what it says itself
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    page = build(cfg, given.concepts, given.device)
    print(f"page:     http://{given.host}:{given.port} (Ctrl-C ends it)", flush=True)
    serve(page, given.host, given.port, auth, quiet=True)
