"""Every error this program raises on purpose; each message names the value, the place and what to do.

FlorenceError
├── ConfigError          a setting is wrong                        exit code 78
├── UsageError           a command was called wrongly              exit code 2
├── PromptError          no such prompt, or its text is missing    HTTP 400
├── PictureError         this picture cannot be read               HTTP 400
│   ├── TruncatedPicture     it ends too early: perhaps it is still being copied
│   ├── OtherSize            it was resized for a model that sees another size
│   └── UnreadablePicture    the disk or the memory failed, not the picture
├── CheckpointError      the model cannot be found or loaded       HTTP 503
├── EngineError          the engine failed on this picture         HTTP 500
│   └── EngineCrashed    the engine process ended while working on it  HTTP 422
├── UnknownPath          nothing is known of this path             HTTP 404
├── QueueFull            too many requests are waiting             HTTP 503
├── Stopping             the daemon takes no new work              HTTP 503
├── SidecarError         a sidecar could not be written
│   ├── PoorAnswer           what the model said is no caption
│   ├── SharedSidecar        it belongs to another picture of the same name
│   ├── SidecarChanged       it is not what the person who edits it saw    HTTP 409
│   └── FolderBlocked        nothing can be written in this folder now     HTTP 503
│       └── DiskFull             there is no space left
├── DatasetError         a data set could not be written
│   └── SampleRefused        it cannot hold this picture
├── ServiceError         the service could not be installed or started
├── PeerError            another daemon asks what cannot be given to one     HTTP 409
│   └── MalformedAsk         or asks it in a way that is not understood      HTTP 400
├── ServerError          a Florence Daemon elsewhere refused or did not answer
└── ClusterError         a Ray cluster is not there, or went away
"""


class FlorenceError(Exception):
    """Root of the tree: whoever catches it has a message that can be shown to a person."""


class ConfigError(FlorenceError):
    """A configuration file, an environment variable or a command line holds a wrong setting."""


class UsageError(FlorenceError):
    """A command was called with arguments that do not fit together."""


class PromptError(FlorenceError):
    """A prompt is unknown, or lacks the text or region its task needs."""


class PictureError(FlorenceError):
    """A picture is empty, truncated, too large, or not a picture at all."""


class TruncatedPicture(PictureError):
    """A picture ends too early: it is being copied, or its copy was broken off."""


class OtherSize(PictureError):
    """A picture was resized before it was sent, for a model that sees another size."""


class UnreadablePicture(PictureError):
    """A picture could not be read for a reason that is not in its bytes: an I/O error, permissions, memory."""


class CheckpointError(FlorenceError):
    """A checkpoint is not there, is incomplete, or is not a Florence-2.

    retry_s: when it is worth trying again, where that is known.
    """

    def __init__(self, message: str, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class EngineError(FlorenceError):
    """The engine raised while it worked on a picture."""


class EngineCrashed(EngineError):
    """The engine process ended (killed, out of memory, a decoder's fault) while it worked on a picture."""


class UnknownPath(FlorenceError):
    """A path was named that no list holds, or that is in no watched folder."""


class QueueFull(FlorenceError):
    """The queue holds as many requests as `server.max_queued` allows."""


class Stopping(FlorenceError):
    """The daemon finishes what runs and takes no new work."""


class SidecarError(FlorenceError):
    """A sidecar could not be written, or would belong to two images."""


class UnfitSidecar(SidecarError):
    """Nothing can be added to what a sidecar holds, until somebody mends it."""


class PoorAnswer(SidecarError):
    """There is no caption: what the model said is empty, cut off, a loop or its own tokens, or options leave none."""


class SharedSidecar(SidecarError):
    """A sidecar would belong to two images: `a.jpg` and `a.png` would both write `a.txt`."""


class SidecarChanged(SidecarError):
    """A sidecar that a person edits was changed, written or removed since they saw it."""


class FolderBlocked(SidecarError):
    """Nothing can be written in a folder for now: it is read-only or forbidden, or its disk is full."""


class DiskFull(FolderBlocked):
    """The disk has no space left, or the user's quota is used up."""


class DatasetError(FlorenceError):
    """A data set could not be written."""


class SampleRefused(DatasetError):
    """A data set's format cannot hold this picture; the others are written."""


class ServiceError(FlorenceError):
    """The service manager, or the service itself, refused to do what was asked."""


class PeerError(FlorenceError):
    """Another daemon asks for answers, and this one has no model of its own, or speaks another version."""


class MalformedAsk(PeerError):
    """What another daemon sent is not what one sends."""


class ServerError(FlorenceError):
    """A Florence Daemon that was asked over HTTP refused, or did not answer."""


class ClusterError(FlorenceError):
    """A Ray cluster is not there, has no place for an engine, or went away in the middle."""
