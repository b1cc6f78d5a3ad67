"""Names: which files of a folder are pictures, and which are hidden, temporary or somebody's bookkeeping."""

from __future__ import annotations

import os
from fnmatch import fnmatch

from florence_daemon.config import FolderConfig
from florence_daemon.config_output import IMAGE_SUFFIXES

# Dotfiles, also rsync's .a.jpg.Xy12Ab, Syncthing's .syncthing.a.jpg.tmp and our own; ~a.jpg, also ~syncthing~a.jpg.tmp.
HIDDEN = (".", "~")
# What browsers, editors and copy programs add to a name until the file is whole: a.jpg.part, and a.part.jpg too.
UNFINISHED = ("part", "crdownload", "download", "tmp", "filepart")
# What a directory itself says about its pictures and those below.
SETTINGS_NAME = ".florence.yaml"
# Directories where systems keep thumbnails, deleted files and their own things; those with a dot count as hidden.
SYSTEM_DIRECTORIES = ("@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found")


def is_image_name(name: str) -> bool:
    """Tell whether a file of this name is taken for a picture."""
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in IMAGE_SUFFIXES or name.startswith(HIDDEN):
        return False
    return os.path.splitext(stem)[1][1:].lower() not in UNFINISHED


def is_utf8(name: str) -> bool:
    """Tell whether a name can be written as UTF-8: on Linux it may hold any bytes."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


def is_directory_name(name: str) -> bool:
    """Tell whether a directory of this name is looked into. Safari downloads into a directory, a.jpg.download."""
    if name.startswith(HIDDEN) or name.lower() in SYSTEM_DIRECTORIES:
        return False
    return os.path.splitext(name)[1][1:].lower() not in UNFINISHED


def is_wanted(folder: FolderConfig, path: str) -> bool:
    """Tell whether `path`, somewhere below the folder, is a picture that the folder's settings take."""
    relative = os.path.relpath(path, folder.path)
    *parents, name = relative.split(os.sep)
    if not is_image_name(name) or (parents and not folder.recursive):
        return False
    return all(is_directory_name(parent) for parent in parents) and is_taken(folder, relative, name)


def is_settings_file(folder: FolderConfig, path: str) -> bool:
    """Tell whether `path`, somewhere below the folder, is a file of settings that may concern its pictures."""
    *parents, name = os.path.relpath(path, folder.path).split(os.sep)
    return name == SETTINGS_NAME and (folder.recursive or not parents) and all(map(is_directory_name, parents))


def is_behind_link(folder: str, path: str) -> bool:
    """Tell whether a directory between the folder and `path` is a symbolic link, which may lead out of the folder."""
    directory = os.path.dirname(path)
    while len(directory) > len(folder):
        if os.path.islink(directory):
            return True
        directory = os.path.dirname(directory)
    return False


def is_taken(folder: FolderConfig, relative: str, name: str) -> bool:
    """Tell whether include and exclude take a picture; relative: its path from the folder."""
    if not folder.include and not folder.exclude:
        return True
    relative = relative.replace(os.sep, "/")
    if any(_matches(relative, name, pattern) for pattern in folder.exclude):
        return False
    return not folder.include or any(_matches(relative, name, pattern) for pattern in folder.include)


def _matches(relative: str, name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or fnmatch(relative, pattern)
