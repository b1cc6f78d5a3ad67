"""Build the container image where no registry of images is at hand, and try it: `container_bench.py [--keep]`.

Its base is a Debian that debootstrap makes, its engine podman, and Python packages come from where this machine's pip
gets them. As root, with: apt install debootstrap podman crun catatonit. What it made is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from florence_daemon.demo_answers import true_answer
from florence_daemon.demo_pictures import Shape, draw_shapes, encode_picture

ROOT = Path(__file__).parents[1]
BASE, IMAGE, NAME = "localhost/florence-daemon-bench-base", "localhost/florence-daemon:bench", "florence-daemon-bench"
OWNER = 1000
TOKEN = {"Authorization": "Bearer sesame-open-sesame"}
PICTURE = draw_shapes((640, 480), (Shape("red", "circle", (60, 150, 250, 340)),))
# What docs/container.md recommends; /tmp is even barred from holding programs.
LOCKED = ("--read-only", "--tmpfs=/tmp:rw,noexec,nosuid,nodev", "--cap-drop=ALL", "--security-opt=no-new-privileges")
# podman would raise these limits, which a machine that is itself a container may not.
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096")
# Lists the states of all processes in the container.
STATES = "import glob; print(*(open(f).read().rpartition(')')[2].split()[0] for f in glob.glob('/proc/[0-9]*/stat')))"


def main() -> None:
    """Build, try, remove."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep base and image, which makes the next run shorter")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="one more for the build")
    options = parser.parse_args()
    if "FLORENCE_BENCH_INSIDE" not in os.environ:
        leave_hybrid_groups()
    with tempfile.TemporaryDirectory() as work:
        os.chmod(work, 0o755)  # noqa: S103
        try:
            make_base(Path(work))
            build(Path(work), options.build_arg)
            Trial(Path(work), quantizes="VARIANT=cuda" not in options.build_arg).run()
        finally:
            podman("rm", "--force", "--time=0", NAME, check=False)
            podman("volume", "rm", "--force", f"{NAME}-state", f"{NAME}-models", check=False)
            if not options.keep:
                podman("rmi", "--force", IMAGE, BASE, check=False)
                podman("image", "prune", "--force", check=False)


def leave_hybrid_groups() -> None:
    """Go on without control groups of version 2 where both are mounted, which crun refuses; for this process alone."""
    unmount = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
    os.environ["FLORENCE_BENCH_INSIDE"] = "1"
    unshare = shutil.which("unshare") or sys.exit("needs unshare")
    os.execv(unshare, [unshare, "--mount", "sh", "-c", unmount, "sh", sys.executable, *sys.argv])  # noqa: S606


def command(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and let it succeed if `check`."""
    program = shutil.which(words[0]) or sys.exit(f"needs {words[0]}")
    done = subprocess.run([program, *words[1:]], capture_output=True, text=True, check=False, cwd=ROOT)
    if check and done.returncode:
        sys.exit(f"{' '.join(words)}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done


def podman(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run podman."""
    return command("podman", *words, check=check)


def say(what: str, seen: object) -> None:
    """Print one line of what was tried."""
    print(f"{what:<72}{seen}", flush=True)


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = 300) -> float:
    """Wait until it is so; return the seconds that it took."""
    began_s = time.monotonic()
    while not condition():
        if time.monotonic() - began_s > limit_s:
            sys.exit(f"not within {limit_s:g} s: {what}\n{podman('logs', NAME, check=False).stderr[-3000:]}")
        time.sleep(0.1)
    return time.monotonic() - began_s


def make_base(work: Path) -> None:
    """A small Debian with Python, as an image."""
    if podman("image", "exists", BASE, check=False).returncode == 0:
        return
    began_s, root = time.monotonic(), work / "root"
    listing = command("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages").stdout
    mirror, codename = listing.split()[:2]
    command("debootstrap", "--variant=minbase", "--include=python3,python3-venv", codename, str(root), mirror)
    command("tar", "--directory", str(root), "--create", "--file", str(work / "root.tar"), ".")
    podman("import", str(work / "root.tar"), BASE)
    shutil.rmtree(root)
    say(f"base: debootstrap {codename}, minbase, python3, python3-venv", f"{time.monotonic() - began_s:.0f} s")


def build(work: Path, arguments: list[str]) -> None:
    """The image, as docs/container.md says, on that base."""
    words = ["build", "--format=docker", "--network=host", *LIMITS, *pip_mounts(work), f"--build-arg=BASE={BASE}"]
    words += [*(f"--build-arg={each}" for each in arguments), f"--tag={IMAGE}", "--file=Containerfile", "."]
    for what in ("image: built (what was built before is kept by --keep)", "image: built again, nothing changed"):
        began_s = time.monotonic()
        podman(*words)
        say(what, f"{time.monotonic() - began_s:.0f} s")
    size_bytes = int(podman("image", "inspect", "--format={{.Size}}", IMAGE).stdout)
    say("image: size, not compressed", f"{size_bytes / 1e9:.2f} GB")


def pip_mounts(work: Path) -> Iterator[str]:
    """This machine's settings of pip as one file, and the local files that they name."""
    listed = command(sys.executable, "-m", "pip", "config", "list").stdout
    settings = dict(re.findall(r"^[^=]*\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    (work / "pip.conf").write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items())]))
    yield f"--volume={work}/pip.conf:/etc/pip.conf:ro"
    for name in {word.removeprefix("file://") for value in settings.values() for word in value.split()}:
        if name.startswith("/") and Path(name).exists():
            # The pages of an index name files beside it.
            path = Path(name).parent if Path(name).name == "simple" else Path(name)
            yield f"--volume={path}:{path}:ro"


class Trial:
    """The image at work: as an owner of pictures, locked down, on a port of this machine."""

    def __init__(self, work: Path, *, quantizes: bool) -> None:
        self._pictures = work / "pictures"
        self._quantizes = quantizes
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = int(free.getsockname()[1])
        self._url = f"http://127.0.0.1:{self._port}"

    def run(self) -> None:
        """Everything, in turn."""
        self._pictures.mkdir()
        self._refuses_without_token()
        self._tells_of_a_folder_that_it_may_not_write()
        os.chown(self._pictures, OWNER, OWNER)
        self._starts()
        self._captions()
        self._judges_requests()
        self._survives_a_crash()
        self._stops_in_order()
        self._goes_on_in_a_new_container()
        self._backfills_without_server()
        self._keeps_within_its_memory()

    def _words(self, *more: str, user: int | None = OWNER) -> list[str]:
        words = ["--network=host", *LIMITS, *LOCKED, f"--volume={self._pictures}:/pictures"]
        words += [f"--volume={NAME}-state:/state", f"--volume={NAME}-models:/models"]
        words += [f"--env=FLORENCE_DAEMON_SERVER__PORT={self._port}", "--env=FLORENCE_DAEMON_MODEL__NAME=demo"]
        return [*words, *([f"--user={user}:{user}"] if user is not None else []), *more]

    def _start(self, user: int | None = OWNER, *more: str) -> float:
        """Start the service; the seconds until its health check is content."""
        token = TOKEN["Authorization"].split()[1]
        words = self._words(f"--env=FLORENCE_DAEMON_SERVER__TOKEN={token}", "--init", *more, user=user)
        podman("run", "--detach", "--cgroups=disabled", f"--name={NAME}", *words, IMAGE)
        return wait_for(lambda: podman("healthcheck", "run", NAME, check=False).returncode == 0, "its health check")

    def _remove(self) -> None:
        podman("rm", "--force", "--time=60", NAME)

    def _log(self) -> str:
        return podman("logs", NAME).stderr

    def _drop(self, name: str) -> Path:
        """Put a picture into the folder, as its owner; the last sidecar that is to come."""
        path = self._pictures / f"{name}.jpg"
        path.write_bytes(encode_picture(PICTURE.image, "JPEG"))
        os.chown(path, OWNER, OWNER)
        return path.with_suffix(".tag")

    def _ask(self) -> str:
        with (self._pictures / "a.jpg").open("rb") as picture:
            data = {"prompt": "CAPTION"}
            answer = httpx.post(
                f"{self._url}/process_image", headers=TOKEN, files={"image": picture}, data=data, timeout=300
            )
        return f"{answer.status_code} {answer.text}"

    def _refuses_without_token(self) -> None:
        done = podman("run", "--rm", "--cgroups=disabled", *self._words(), IMAGE, check=False)
        say("without a token: exit code", done.returncode)
        assert done.returncode == 78, done.stderr
        assert "FLORENCE_DAEMON_SERVER__TOKEN" in done.stderr

    def _tells_of_a_folder_that_it_may_not_write(self) -> None:
        self._start(None)
        (self._pictures / "a.jpg").write_bytes(encode_picture(PICTURE.image, "JPEG"))
        wait_for(lambda: "not writable" in self._log() or "ermission" in self._log(), "a word about the folder")
        say("as the image's own user, in root's folder", self._log().strip().splitlines()[-1][20:160])
        self._remove()
        podman("volume", "rm", f"{NAME}-state", f"{NAME}-models")

    def _starts(self) -> None:
        say(f"user {OWNER}, read-only, no capabilities: healthy after", f"{self._start():.1f} s")

    def _captions(self) -> None:
        tags = self._drop("a")
        took_s = wait_for(tags.exists, "the first picture's tags")
        seen = tags.with_suffix(".txt")
        assert seen.read_text() == true_answer("<MORE_DETAILED_CAPTION>", PICTURE) + "\n"
        say("first caption, the model compiled before it", f"{took_s:.1f} s")
        took_s = wait_for(self._drop("b").exists, "the second picture's tags")
        say("next caption, a second of it settling", f"{took_s:.1f} s")
        state = seen.stat()
        say("sidecar: owner, group, mode", f"{state.st_uid} {state.st_gid} {state.st_mode & 0o777:o}")
        assert (state.st_uid, state.st_gid) == (OWNER, OWNER)

    def _judges_requests(self) -> None:
        asked: tuple[dict[str, str], ...] = ({}, TOKEN, TOKEN | {"Host": "nas"})
        codes = [httpx.get(f"{self._url}/status", headers=headers).status_code for headers in asked]
        say("/status without a token, with it, by a name that is not its own", codes)
        assert codes == [401, 200, 403]

    def _survives_a_crash(self) -> None:
        for _ in range(3):
            assert self._ask().startswith("200"), self._ask()
            pid = httpx.get(f"{self._url}/status", headers=TOKEN).json()["model"]["pid"]
            podman("exec", NAME, "python", "-c", f"import os; os.kill({pid}, 9)")
        say("engine killed three times, then asked", self._ask())
        states = podman("exec", NAME, "python", "-c", STATES).stdout.split()
        say("processes, and zombies among them", f"{len(states)}, {states.count('Z')}")

    def _stops_in_order(self) -> None:
        for number in range(60):
            self._drop(f"many-{number:02}")
        wait_for((self._pictures / "many-00.txt").exists, "the first of many")
        began_s = time.monotonic()
        podman("stop", "--time=90", NAME)
        code = podman("inspect", "--format={{.State.ExitCode}}", NAME).stdout.strip()
        say(f"stopped while 60 pictures waited: exit code {code}, after", f"{time.monotonic() - began_s:.1f} s")
        assert code == "0"
        self._remove()

    def _goes_on_in_a_new_container(self) -> None:
        before = {path: path.stat().st_mtime_ns for path in self._pictures.glob("*.t*")}
        self._start()
        wait_for(lambda: len(list(self._pictures.glob("*.tag"))) == 62, "all tags")
        again = [path for path, written_ns in before.items() if path.stat().st_mtime_ns != written_ns]
        say("new container, same volumes: captions there before, written again", f"{len(before)}, {len(again)}")
        say("the model compiled again", "compiling" in self._log())
        assert not again
        assert "compiling" not in self._log()
        if self._quantizes:
            self._quantize()
        self._remove()

    def _quantize(self) -> None:
        began_s = time.monotonic()
        done = podman("exec", NAME, "florence-daemon", "quantize", "--calibrate", "/pictures", check=False)
        say(f"quantize in the container: exit code {done.returncode}, after", f"{time.monotonic() - began_s:.0f} s")
        assert done.returncode == 0, done.stdout + done.stderr

    def _backfills_without_server(self) -> None:
        for path in self._pictures.glob("many-*.t*"):
            path.unlink()
        podman("run", "--rm", "--cgroups=disabled", *self._words(), IMAGE, "backfill", "/pictures")
        say("backfill as a command, without a token: captions", len(list(self._pictures.glob("many-*.txt"))))
        assert len(list(self._pictures.glob("many-*.tag"))) == 60

    def _keeps_within_its_memory(self) -> None:
        look = "from florence_daemon.engine.memory import all_ram_bytes as b; print(b() / 2**20)"
        words = ("--memory=1g", *self._words(), "--entrypoint=python", IMAGE, "-c", look)
        done = podman("run", "--rm", *words, check=False)
        say("with --memory 1g, what the program thinks there is", f"{done.stdout.strip() or done.stderr[-200:]} MB")
        podman("run", "--rm", "--cgroups=disabled", *self._words(), "--entrypoint=python", IMAGE, "-m", "pip", "check")
        say("pip check", "all fit together")


if __name__ == "__main__":
    main()
