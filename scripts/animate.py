"""Turns a film of es-eval into an animated WebP for a page: some rows of pixels, some frames, in a loop.

es-eval pretrained/humanoid --episodes 1 --video humanoid.mp4 --video-frames 200
python -m scripts.animate humanoid.mp4 --out docs/humanoid.webp --frames 40 200 --rows 150 460 --every 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import imageio.v3 as imageio
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("film", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a file that ends in .webp")
    parser.add_argument(
        "--frames",
        nargs=2,
        type=int,
        default=[0, None],
        help="the first frame, and the first that is left out",
    )
    parser.add_argument("--rows", nargs=2, type=int, default=[0, None], help="of pixels, likewise")
    parser.add_argument("--every", type=int, default=1, help="take every n-th frame (default: 1)")
    parser.add_argument("--quality", type=int, default=70, help="of the pictures, 0 to 100 (default: 70)")
    arguments = parser.parse_args()
    frames = imageio.imread(arguments.film, plugin="FFMPEG")
    frames = frames[slice(*arguments.frames, arguments.every), slice(*arguments.rows)]
    first, *others = map(Image.fromarray, frames)
    milliseconds = 1000 / imageio.immeta(arguments.film, plugin="FFMPEG")["fps"] * arguments.every
    first.save(
        arguments.out,
        save_all=True,
        append_images=others,
        duration=round(milliseconds),
        loop=0,
        quality=arguments.quality,
        method=6,
    )
    print(f"{arguments.out}: {len(frames)} frames, {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
