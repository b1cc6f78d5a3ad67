"""Make the int8 form of a checkpoint, in a process of its own: what it takes is no part of what is measured."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.progress import say


def main() -> None:
    """Calibrate: CHECKPOINT STATE_DIR PICTURE…; what is there already stays."""
    checkpoint_directory, state_dir, *pictures = map(Path, sys.argv[1:])
    from florence_daemon.engine.checkpoint import open_checkpoint
    from florence_daemon.engine.openvino_export import calibrate
    from florence_daemon.engine.openvino_form import find_form, int8_directory
    from florence_daemon.engine.preprocess import read_picture, to_pixels

    checkpoint = open_checkpoint(checkpoint_directory)
    directory = int8_directory(state_dir, checkpoint)
    if find_form(directory) is None:
        side_px = checkpoint.layout.image_side_px
        calibrate(
            checkpoint,
            [to_pixels(read_picture(str(picture)), side_px) for picture in pictures],
            directory,
            on_progress=say,
        )


if __name__ == "__main__":
    main()
