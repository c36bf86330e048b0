"""The border to a user's `render()`: whatever it returns becomes frames of one size, or is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
"""An image, [H, W, 3]."""

ALLOWED = "an image [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], or a list of them"


class FrameReader:
    """Turns what `render()` returns into frames.

    Integers are 0 to 255. Floats are 0 to 1 until one is larger, and from then on 0 to 255. A list holds the
    frames since the last call, as with Gymnasium's render mode rgb_array_list.
    """

    def __init__(self) -> None:
        self._shape: tuple[int, ...] | None = None
        self._white = 1.0

    def read(self, rendered: Any) -> Iterator[Frame]:
        """Returns the frames of one call.

        Raises:
            ValueError: if it returned no image, or one whose shape or values no film can have, or one of
                another size than before.
        """
        if isinstance(rendered, list | tuple) and all(hasattr(each, "__array__") for each in rendered):
            images = list(rendered)
        else:
            images = [rendered]
        for each in images:
            try:
                image = np.asarray(each)
            except Exception as error:  # whatever stands between it and an array
                raise ValueError(
                    f"render() returned a {type(each).__name__}; a film needs {ALLOWED}"
                ) from error
            if image.dtype.kind not in "biuf":
                found = " ".join(f"{each!r:.40}".split())
                raise ValueError(f"render() returned {found}; a film needs {ALLOWED}")
            yield self._frame(image)

    def _frame(self, image: NDArray[Any]) -> Frame:
        channels = image.shape[2] if image.ndim == 3 else 1
        if image.ndim not in (2, 3) or channels not in (1, 3, 4) or image.size == 0:
            raise ValueError(f"render() returned an array {list(image.shape)}; a film needs {ALLOWED}")
        image = self._bytes(image).reshape(*image.shape[:2], channels)
        frame = np.repeat(image, 3, axis=2) if channels == 1 else image[..., :3]
        self._shape = self._shape or frame.shape
        if frame.shape != self._shape:
            raise ValueError(f"render() returned an image {list(frame.shape)} after one {list(self._shape)}")
        return np.ascontiguousarray(frame)

    def _bytes(self, image: NDArray[Any]) -> Frame:
        if image.dtype == np.uint8:
            return image
        if image.dtype == np.bool_:
            return image * np.uint8(255)
        low, high = image.min(), image.max()
        if not (low >= 0 and high <= 255):
            raise ValueError(
                f"render() returned values from {low} to {high}; a film needs 0 to 255, or 0 to 1"
            )
        if image.dtype.kind == "f":
            if high > 1:
                self._white = 255.0
            image = np.rint(image * (255.0 / self._white))
        return image.astype(np.uint8)
