"""The settings: one frozen class per section, and the one home of every default."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import attrs
from attrs import field, frozen

from florence_daemon.config_checks import (
    BadSetting,
    MissingToken,
    bearer_token,
    between,
    device_names,
    host_names,
    image_hosts,
    is_loopback,
    multiple_of,
    not_empty,
    one_of,
    origin_addresses,
    server_addresses,
)
from florence_daemon.config_output import DEFAULT_OUTPUTS, RULES, OutputConfig, distinct_extensions

# The value of `server.token` that says: I know that nobody needs one, and want it so.
OPEN = "none"


@frozen
class ModelConfig:
    """Which model answers, and how long it stays."""

    # A Hub id, a local directory, or `demo` (the small model that comes with the program).
    name: str = field(default="MiaoshouAI/Florence-2-large-PromptGen-v2.0", validator=not_empty)
    # Branch, tag or commit of the Hub repository; null takes its main branch.
    revision: str | None = None
    # auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1, mps; all (every GPU of the machine), or a list,
    # [cuda:0, cuda:1]: each has an engine process and a model of its own, and work goes to whichever is free.
    device: str | tuple[str, ...] = field(default="auto", validator=device_names)
    # auto (float16 on a GPU; on a CPU int8 where `florence-daemon quantize` has proved it, else float32), float32,
    # float16, bfloat16, int8.
    precision: str = field(default="auto", validator=one_of("auto", "float32", "float16", "bfloat16", "int8"))
    # auto (openvino on a CPU where it is installed, else torch), openvino, torch, transformers (the slower reference).
    engine: str = field(default="auto", validator=one_of("auto", "openvino", "torch", "transformers"))
    # Side in pixels to which pictures are scaled, a multiple of 32: 768 is what Florence-2 was trained with,
    # 576, 480 and 384 are faster and see less; null takes what the checkpoint says.
    image_size: int | None = field(default=None, validator=attrs.validators.optional(multiple_of(32, 32, 1600)))
    # true lets large JPEGs be decoded at a smaller scale also where that changes pixels a little.
    fast_decode: bool = False
    # Beams of the search: 1 is greedy and fastest; 3 is what Florence-2 was published with.
    num_beams: int = field(default=3, validator=between(1, 16))
    # Longest answer, in tokens; the model's position table is the upper bound.
    max_new_tokens: int = field(default=1024, validator=between(1, 4096))
    # Questions that are answered side by side; 0 takes as many as fit into memory.
    max_batch: int = field(default=0, validator=between(0, 256))
    # Seconds without work after which the engine process ends and gives its memory back;
    # 0 ends it as soon as the queue is empty, -1 keeps it for ever.
    idle_unload_s: float = field(default=300.0, validator=between(0, 30 * 24 * 3600, also=-1))
    # Megabytes of main memory that the engine process may take; beyond, it is ended and started anew, and the picture
    # is set aside when that happens three times. 0 takes nine tenths of what the machine or its control group has,
    # -1 sets no limit. Known on Linux only.
    memory_limit_mb: int = field(default=0, validator=between(0, 2**24, also=-1))
    # Seconds that one picture may take to be read; beyond, the engine process is ended and started anew, as above.
    decode_limit_s: float = field(default=60.0, validator=between(0.1, 24 * 3600))
    # Seconds that the model may show no life while it has a picture, as when a driver hangs; beyond, the same.
    request_limit_s: float = field(default=300.0, validator=between(1, 24 * 3600))
    # Seconds that loading the model may take, with its download and what is compiled for this machine.
    load_limit_s: float = field(default=3600.0, validator=between(1, 7 * 24 * 3600))
    # true never asks the Hub: the checkpoint must be on this machine already.
    offline: bool = False
    # Florence Daemons whose model is asked instead of one here, as in [http://gpu-box:54880]; one address or a list of
    # them, which share the work. name, revision, device, precision, engine, image_size, fast_decode, max_batch and
    # offline are theirs then. Empty loads the model here.
    server: tuple[str, ...] = field(default=(), validator=server_addresses)
    # The token that they ask for, their server.token; null sends none.
    server_token: str | None = field(default=None, validator=attrs.validators.optional(bearer_token), repr=False)
    # original (pictures are sent to them as they are), resized (as large as their model sees them: a fraction of the
    # bytes, decoded here, with the same answers).
    send: str = field(default="original", validator=one_of("original", "resized"))


@frozen
class ServerConfig:
    """Where the HTTP API listens, and what it accepts."""

    # 127.0.0.1 serves this machine alone; 0.0.0.0 serves the network, and needs a token.
    host: str = field(default="127.0.0.1", validator=not_empty)
    # 0 takes a free port and prints it.
    port: int = field(default=54880, validator=between(0, 65535))
    # What every request but those for health must bring, as `Authorization: Bearer TOKEN`; null asks for none, which
    # is refused beyond this machine; `none` asks for none there either: whoever reaches the port may do everything.
    token: str | None = field(default=None, validator=attrs.validators.optional(bearer_token), repr=False)
    # Names under which clients reach the server, besides localhost, the addresses it listens on, and this machine's
    # name when it serves the network. Others are refused, or a web page could reach it by a name of its own.
    allowed_hosts: tuple[str, ...] = field(default=(), validator=host_names)
    # Origins of other sites whose pages may use the API from a browser, as in https://photos.example.org (CORS).
    allowed_origins: tuple[str, ...] = field(default=(), validator=origin_addresses)
    # Hosts from which /v1/chat/completions may fetch a picture by its https: address, as in images.example.org; "*" for
    # every public one. Empty fetches none: the request holds the picture itself.
    image_hosts: tuple[str, ...] = field(default=(), validator=image_hosts)
    # Largest request, in megabytes of 1024 × 1024 bytes.
    max_body_mb: float = field(default=32.0, validator=between(0.001, 1024))
    # Requests that may wait or run at once; one more is answered 503 with Retry-After.
    max_queued: int = field(default=32, validator=between(1, 1000))
    # Seconds within which a request must have arrived, from its first byte to its last; its head gets 10 at most.
    receive_timeout_s: float = field(default=60.0, validator=between(0.1, 24 * 3600))
    # Seconds after which a request that has no answer yet is given up with 504; loading the model counts.
    request_timeout_s: float = field(default=600.0, validator=between(1, 24 * 3600))

    def __attrs_post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise MissingToken(
                "host",
                f"{self.host!r} lets other machines in, and server.token is not set. Set it to something long and "
                "random, such as `openssl rand -hex 32` prints, in the file or as FLORENCE_DAEMON_SERVER__TOKEN; or "
                "write `token: none` to let in whoever reaches the port",
            )

    @property
    def required_token(self) -> str | None:
        """The token that requests must bring; None where none is asked for."""
        return None if self.token == OPEN else self.token


@frozen
class FolderConfig:
    """A folder whose pictures are captioned as they come."""

    # Relative paths start at the configuration file; ~ is your home.
    path: Path
    # false looks at the folder itself only.
    recursive: bool = True
    # Patterns of names or relative paths to take (*.jpg, 2024/*); empty takes every picture.
    include: tuple[str, ...] = ()
    # Patterns of names or relative paths to leave out; they win over include.
    exclude: tuple[str, ...] = ()
    # What is written beside each picture.
    outputs: tuple[OutputConfig, ...] = field(default=DEFAULT_OUTPUTS, validator=[not_empty, distinct_extensions])
    # never leaves sidecars that exist alone; stale rewrites those that this program wrote and nobody changed since,
    # once their picture, the model, the prompt or a setting that shapes the text has changed; always also others'.
    # append and prepend add the text to what is there, once.
    overwrite: str = field(default="never", validator=one_of(*RULES))
    # Seconds a file must stay unchanged before it is read.
    settle_s: float = field(default=1.0, validator=between(0, 3600))
    # auto (told of changes by the file system; network shares, which do not tell, are looked at every poll_s),
    # always (looked at every poll_s only), never (told of changes only, whatever the file system).
    poll: str = field(default="auto", validator=one_of("auto", "always", "never"))
    # Seconds between two looks at a folder that does not tell of its changes.
    poll_s: float = field(default=10.0, validator=between(1, 24 * 3600))
    # Seconds between two looks at a folder that does; they find what was not told.
    rescan_s: float = field(default=300.0, validator=between(1, 7 * 24 * 3600))
    # true lets a file .florence.yaml in any of its directories set outputs, overwrite, include, exclude and options of
    # all outputs for that directory and those below; false takes no notice of such files.
    inherit: bool = True


@frozen
class StateConfig:
    """Where the program keeps what it makes for itself; nothing of yours is in there."""

    # The ledger (on a local disk, please), compiled and quantized models; null takes the system's place for such files.
    dir: Path | None = None


def _leads_to(address: str, server: ServerConfig) -> bool:
    """Tell whether an address is plainly this server's own; by another name of the machine it may be so still."""
    parts = urlsplit(address)
    is_here = is_loopback(parts.hostname or "") or parts.hostname == server.host.lower()
    return is_here and server.port != 0 and (parts.port or 80) == server.port


@frozen
class Config:
    """Everything that can be set."""

    model: ModelConfig = field(factory=ModelConfig)
    server: ServerConfig = field(factory=ServerConfig)
    folders: tuple[FolderConfig, ...] = ()
    state: StateConfig = field(factory=StateConfig)

    def __attrs_post_init__(self) -> None:
        own = next((server for server in self.model.server if _leads_to(server, self.server)), None)
        if own is not None:
            raise BadSetting("model", f"server: {own!r} is this daemon itself; name the one that has the model")
