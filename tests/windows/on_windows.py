"""What only Windows does to files, tried from inside: run by the Windows Python under Wine, as test_files.py says."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import threading
from pathlib import Path

import pytest

import florence_daemon
from florence_daemon.config import FolderConfig, StateConfig
from florence_daemon.config_file import default_paths, find_file, load, state_directory
from florence_daemon.folders.atomic import PATIENCE_S, Directory, patiently
from florence_daemon.folders.holder import Holder, living_holders
from florence_daemon.folders.mounts import is_share, place_of
from florence_daemon.folders.scan import find_images
from florence_daemon.folders.settle import stamp_of
from florence_daemon.folders.watch import is_inside


def write(directory: Path, content: bytes, *, may_replace: bool = True) -> bool:
    with Directory(str(directory)) as held:
        return held.write("a.txt", content, lambda: may_replace)


def test_this_is_windows() -> None:
    assert sys.platform == "win32"


def test_every_room_loads_but_for_libraries_that_are_not_here() -> None:
    lacking = set()
    for info in pkgutil.walk_packages(florence_daemon.__path__, "florence_daemon."):
        if info.name != "florence_daemon.__main__":
            try:
                importlib.import_module(info.name)
            except ModuleNotFoundError as error:
                lacking.add(str(error.name).partition(".")[0])
    engine = {
        "numpy",
        "torch",
        "transformers",
        "PIL",
        "tokenizers",
        "safetensors",
        "huggingface_hub",
        "openvino",
        "nncf",
    }
    assert lacking <= engine


def test_sidecar_that_a_viewer_has_open_is_replaced_once_it_is_closed(tmp_path: Path) -> None:
    assert write(tmp_path, b"old\n")
    viewer = (tmp_path / "a.txt").open("rb")
    with pytest.raises(PermissionError):
        os.replace(tmp_path / "a.txt", tmp_path / "b.txt")  # So Windows is as we think it is.
    closing = threading.Timer(0.1, viewer.close)
    closing.start()
    assert write(tmp_path, b"new\n")
    closing.join()
    assert (tmp_path / "a.txt").read_bytes() == b"new\n"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_sidecar_that_stays_open_is_an_error_and_stays_whole(tmp_path: Path) -> None:
    assert write(tmp_path, b"old\n")
    with (tmp_path / "a.txt").open("rb"):
        with pytest.raises(PermissionError) as raised:
            write(tmp_path, b"new\n")
        assert raised.value.winerror in (5, 32)  # type: ignore[attr-defined]
    assert (tmp_path / "a.txt").read_bytes() == b"old\n"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_other_errors_are_not_waited_for(tmp_path: Path) -> None:
    slept: list[float] = []
    with pytest.raises(FileNotFoundError):
        patiently(lambda: os.unlink(tmp_path / "gone"), slept.append)
    assert slept == []


def test_file_that_stays_open_is_waited_for_in_growing_steps(tmp_path: Path) -> None:
    slept: list[float] = []
    with (tmp_path / "a.txt").open("wb"), pytest.raises(PermissionError):
        patiently(lambda: os.unlink(tmp_path / "a.txt"), slept.append)
    assert tuple(slept) == PATIENCE_S


def test_sidecar_of_another_spelling_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "A.TXT").write_bytes(b"a person's\n")
    assert not write(tmp_path, b"ours\n", may_replace=False)
    assert (tmp_path / "a.txt").read_bytes() == b"a person's\n"
    assert os.listdir(tmp_path) == ["A.TXT"]


def test_path_of_more_than_260_characters_is_found_and_written(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["directory-of-thirty-characters"] * 10)
    deep.mkdir(parents=True)
    (deep / "a.jpg").write_bytes(b"x")
    assert len(str(deep)) > 300
    assert list(find_images(FolderConfig(path=tmp_path))) == [str(deep / "a.jpg")]
    assert stamp_of(str(deep / "a.jpg")) is not None
    assert write(deep, b"caption\n")
    assert (deep / "a.txt").read_bytes() == b"caption\n"


def test_settings_are_looked_for_in_the_persons_and_the_machines_directory(tmp_path: Path) -> None:
    machine = {"APPDATA": str(tmp_path / "roaming"), "PROGRAMDATA": str(tmp_path / "all")}
    own, everyone = default_paths(machine)
    assert own == tmp_path / "roaming" / "florence-daemon.yaml"
    assert everyone == tmp_path / "all" / "florence-daemon" / "florence-daemon.yaml"
    everyone.parent.mkdir(parents=True)
    everyone.write_text("folders: [{path: pictures}]")
    assert find_file(None, machine) == everyone
    assert load(everyone, {}).folders[0].path == everyone.parent / "pictures"


def test_state_is_where_windows_keeps_it_or_where_the_service_says(tmp_path: Path) -> None:
    assert state_directory(StateConfig(), {"LOCALAPPDATA": str(tmp_path)}) == tmp_path / "florence-daemon"
    assert state_directory(StateConfig(), {"STATE_DIRECTORY": r"C:\ProgramData\x"}) == Path(r"C:\ProgramData\x")


def test_path_on_a_server_is_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(r"folders: [{path: '\\server\share\in'}]")
    folder = load(tmp_path / "c.yaml", {}).folders[0]
    assert str(folder.path) == r"\\server\share\in"
    assert is_share(str(folder.path))
    assert not is_share("C:\\pictures")


def test_local_folder_sends_events(tmp_path: Path) -> None:
    place = place_of(str(tmp_path))
    assert place.own is None
    assert place.silent_kind() == ""
    assert place == place_of(str(tmp_path))


def test_names_are_compared_as_windows_does() -> None:
    assert is_inside("c:\\pictures\\A.jpg", "C:\\Pictures")
    assert not is_inside("C:\\Pictures2\\a.jpg", "C:\\Pictures")


def test_process_that_holds_a_claim_is_known_to_live(tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    assert living_holders(tmp_path) == {holder.name}
    holder.close()
    assert living_holders(tmp_path) == set()
    assert os.listdir(tmp_path) == []
