"""The composition root: builds the parts, wires them, runs them, and stops them in order."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial

import attrs

from florence_daemon import __version__
from florence_daemon.activity import Activity
from florence_daemon.config import Config, ServerConfig
from florence_daemon.config_file import state_directory
from florence_daemon.config_output import OutputConfig
from florence_daemon.current import Current
from florence_daemon.engine.protocol import Done
from florence_daemon.engines import open_pool, renew_pool
from florence_daemon.errors import Stopping
from florence_daemon.exchange import Offer
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.needs import Makes, Needs
from florence_daemon.folders.records import Making
from florence_daemon.folders.watch import Watcher
from florence_daemon.gallery import Gallery
from florence_daemon.http.app import QUEUED_PATHS, create_app
from florence_daemon.http.fetch import Fetcher
from florence_daemon.http.places import Places
from florence_daemon.http.server import HttpServer
from florence_daemon.intake import FolderIntake
from florence_daemon.liveness import Keeper, Liveness
from florence_daemon.notify import ServiceManager
from florence_daemon.queue import Job, JobQueue
from florence_daemon.reload import Reloader, Source, needing_restart
from florence_daemon.served import Models, offer_of
from florence_daemon.signals import StopSignal
from florence_daemon.status import Status
from florence_daemon.tally import Tally
from florence_daemon.thumbnails import Thumbnails
from florence_daemon.upkeep import Upkeep
from florence_daemon.worker import Folders, Worker

log = logging.getLogger(__name__)

# Seconds between two looks whether the model has been idle for long enough.
TICK_S = 0.5
# A stop takes this long at most, of which what runs gets so much before it is given up; a second signal leaves less.
STOP_S = 60.0
DRAIN_S = 45.0
HURRY_S = 5.0
# Sidecars that are being written when the configuration changes get this long before the new one counts.
WRITE_S = 5.0


def fetcher(server: ServerConfig) -> Fetcher | None:
    """What gets pictures by their addresses; None when no host is allowed."""
    return Fetcher(server.image_hosts, int(server.max_body_mb * 2**20)) if server.image_hosts else None


def open_ledger(config: Config) -> Ledger:
    """The ledger in its place; in memory while that cannot be written."""
    return Ledger(state_directory(config.state, os.environ))


class Works:
    """Engines and worker: the part that the daemon and a one-shot backfill share."""

    def __init__(
        self,
        config: Config,
        queue: JobQueue,
        ledger: Ledger,
        *,
        makes: Makes | None = None,
        folders: Folders | None = None,
        on_done: Callable[[Job, Done], None] = lambda job, done: None,
        on_other_model: Callable[[], None] = lambda: None,
        liveness: Liveness | None = None,
        tally: Tally | None = None,
    ) -> None:
        """makes: how each output is made now; as `config` and its servers say unless given.

        on_other_model: told when the servers answer with something new; it must not wait.
        """
        tally = tally or Tally()
        liveness = liveness or Liveness(time.monotonic)
        self._show_life = liveness.expect("engine")
        self.queue = queue
        self._ledger = ledger
        self.models = Models(config.model, on_other_model)
        self.engine = open_pool(config, tally.loaded, self.models.admit)
        self.models.watch(self.engine.loaded_on)
        self.worker = Worker(
            self.queue,
            self.engine,
            ledger,
            makes or self.models.making_of,
            folders=folders,
            on_done=on_done,
            show_life=liveness.expect("worker"),
            tally=tally,
            model=config.model,
        )
        self._threads = [
            threading.Thread(target=self.worker.run, name="worker", daemon=True),
            threading.Thread(target=self._unload_when_idle, name="idle", daemon=True),
        ]
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def renew(self, config: Config) -> None:
        """Work with this configuration from now on."""
        renew_pool(self.engine, config)
        self.worker.model = config.model

    def stop(self, *, at_once: bool = False) -> None:
        """Start nothing new, let what runs end (unless `at_once`), give up what waits, end the engine."""
        self._stopped.set()
        self.worker.stop()
        for job in self.queue.close():
            if job.future.running() or job.future.set_running_or_notify_cancel():
                job.future.set_exception(Stopping("the daemon is stopping; send this again when it is back"))
        if self.engine.state().name != "loaded":
            at_once = True  # nothing is begun yet, and nobody waits for a model to load only to stop then
        if not at_once and not self.queue.wait_until_done(DRAIN_S):
            log.warning("what runs did not end within %g s and is given up; the next start takes it up", DRAIN_S)
            at_once = True
        self.engine.close(at_once=at_once)
        self.worker.close()
        self._ledger.flush()

    def _unload_when_idle(self) -> None:
        while not self._stopped.wait(TICK_S):
            self.engine.tick(more_waits=not self.queue.is_idle())
            self._ledger.flush()
            if not self.engine.is_stuck:
                self._show_life()


class Daemon:
    """The whole program: folders, queue, engine, HTTP."""

    def __init__(
        self,
        config: Config,
        *,
        on_done: Callable[[Job, Done], None] = lambda job, done: None,
        manager: ServiceManager | None = None,
        source: Source | None = None,
    ) -> None:
        """Bind the port; nothing runs yet. on_done: told of every answered job. Raises: ConfigError.

        source: where the configuration came from, to be read again when it changes; None for never.
        """
        self._manager = manager or ServiceManager({})
        liveness = Liveness(time.monotonic)
        self._started_with = config
        self.current = Current(config, source.file if source is not None else None)
        self.reloader = Reloader(source, self.current, self.apply) if source is not None else None
        self.ledger = open_ledger(config)
        tally = Tally()
        queue = JobQueue(config.server.max_queued, on_withdrawn=lambda job: tally.ended(job, "withdrawn"))
        intake = FolderIntake(queue, self.ledger, Needs(self.ledger, self._making_of))
        self._activity = Activity(time.monotonic)
        self.watcher = Watcher(config.folders, intake, time.monotonic, liveness.expect("watcher"))
        self._on_done = on_done
        self.works = Works(
            config,
            queue,
            self.ledger,
            makes=self._making_of,
            folders=self.watcher,
            on_done=self._note_done,
            on_other_model=self._look_again,
            liveness=liveness,
            tally=tally,
        )
        engine, worker, models = self.works.engine, self.works.worker, self.works.models
        self._status = Status(
            self.current,
            queue,
            engine,
            worker,
            self.watcher,
            self.ledger,
            liveness,
            tally,
            self._activity,
            lambda: models.name,
        )
        self._thumbnails = Thumbnails(state_directory(config.state, os.environ) / "thumbnails")
        self.server = self._bind(config.server, queue)
        self._watching = threading.Thread(target=self.watcher.run, name="watcher", daemon=True)
        self._keeper = Keeper(
            self._manager,
            liveness,
            time.monotonic,
            ask=lambda: self.server.call_soon(self._status.http_shows_life),
            describe=self._status.line,
        )

    def _bind(self, server: ServerConfig, queue: JobQueue) -> HttpServer:
        """Wire what answers requests, and bind its port. Raises: ConfigError."""
        places = Places(server.max_queued, QUEUED_PATHS)
        app = create_app(
            queue=queue,
            places=places,
            model_name=lambda: self.works.models.name,
            request_timeout_s=server.request_timeout_s,
            status=self._status.everything,
            readiness=self._status.readiness,
            reading=self._status.reading,
            overview=self._status.overview,
            actions=Upkeep(self.ledger, self.watcher),
            residence=self.works.engine,
            offer=partial(self._offer, server),
            fetch=fetcher(server),
            gallery=Gallery(self.ledger, self.watcher, self._making_of, self._thumbnails),
            allowed_origins=server.allowed_origins,
        )
        return HttpServer(app, server, places)

    def start(self) -> None:
        """Begin to answer and to watch."""
        self.works.start()
        if self.current.config.model.server:
            self.works.engine.load()  # loads nothing there, but says which model it is, or why there is none
        self.server.start()
        self._watching.start()
        if self.reloader is not None:
            threading.Thread(target=self.reloader.run, name="reload", daemon=True).start()
        if self._manager.is_listening:
            threading.Thread(target=self._keeper.run, name="keeper", daemon=True).start()
        self._status.takes_work = True
        log.info("florence-daemon %s answers at %s", __version__, self.server.address)

    def apply(self, config: Config) -> list[str]:
        """Make a configuration count; return the settings of it that need a restart for that."""
        before, started = self.current.config, self._started_with
        self.works.renew(attrs.evolve(config, state=started.state))
        if config.server.host == started.server.host:
            # The answers' headers for pages of other sites were made at the start, so these wait for a restart.
            origins = started.server.allowed_origins
            self.server.renew_guards(attrs.evolve(config.server, allowed_origins=origins))
        # What the model of before said is written as said by it.
        self.works.queue.wait_until_written(WRITE_S)
        self.current.config = config
        self.works.models.renew(config.model)
        self.watcher.renew(config.folders)
        if config.model != before.model:
            self.watcher.rescan()  # what it wrote may be outdated now
        return needing_restart(started, config)

    def _look_again(self) -> None:
        """What was written may be outdated by what the servers say now."""
        self.watcher.rescan()

    def _making_of(self, output: OutputConfig) -> Making:
        return self.works.models.making_of(output)

    def _offer(self, server: ServerConfig) -> Offer:
        """What other daemons may ask of this one. Raises: PeerError."""
        return offer_of(self.current.config.model, self.works.engine, server)

    def stop(self, *, at_once: bool = False) -> None:
        """Take nothing new, finish what runs, end the engine."""
        log.info("stopping%s", " at once" if at_once else ": what runs is finished first")
        self._status.takes_work = False
        if self.reloader is not None:
            self.reloader.stop()
        self._keeper.stop()
        self._manager.stopping(STOP_S)
        self.watcher.stop()
        self.works.stop(at_once=at_once)
        self.server.stop()
        self._thumbnails.close()
        self._watching.join(timeout=5.0)
        self.ledger.close()
        log.info("stopped")

    def _note_done(self, job: Job, done: Done) -> None:
        self._activity.note()
        self._on_done(job, done)


def serve(
    config: Config,
    *,
    greet: Callable[[Config, str], None] = lambda config, address: None,
    source: Source | None = None,
) -> int:
    """Run the daemon until a signal stops it; return the exit code. greet: told of its address before it starts.

    source: where the configuration is read anew when it changes, or at SIGHUP. Raises: ConfigError.
    """
    signals = StopSignal(hears_hang_up=source is not None)
    daemon = Daemon(config, manager=ServiceManager(os.environ), source=source)
    greet(config, daemon.server.address)
    daemon.start()
    return wait_and_stop(daemon, signals)


def wait_and_stop(daemon: Daemon, signals: StopSignal) -> int:
    """Wait for the signal and stop in order; a second signal stops at once. Returns the exit code."""
    try:
        signals.wait(daemon.reloader.ask if daemon.reloader is not None else lambda: None)
        leave_within(STOP_S - 1)
        daemon.stop()
    except KeyboardInterrupt:
        leave_within(HURRY_S)
        daemon.stop(at_once=True)
    return 0


def leave_within(seconds: float) -> None:
    """End this process after so long, whatever holds it up: a write to a share that hangs would do so for ever."""
    timer = threading.Timer(seconds, _leave, args=(seconds,))
    timer.daemon = True
    timer.start()


def _leave(seconds: float) -> None:
    log.error("the stop took longer than %g s and is cut short; the next start takes up what was begun", seconds)
    os._exit(1)
