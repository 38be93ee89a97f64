"""Reads any frame of a video exactly, and writes videos, with PyAV (`pip install 'jaxact[video]'`).

Frame i is the i-th picture that decoding the whole file from its start would give. A read seeks to
the key frame before it (see `jaxact.data.frame_index`), checks where it landed, and decodes from
there; frames are known by their presentation stamp. Where the landing is too late (open GOPs,
containers that seek by decoding time) it seeks to the key frame before.

Frames are turned by quarter turns as the container says, as in players and OpenCV. Mirroring and
non-square pixels are not applied.
"""

import os
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.atomic import draft
from jaxact.config import UserError
from jaxact.data import frame_index, media

STILLS = ("_pipe", "image2", "tty")  # demuxers that open a picture or a text as a video
REORDER = 16  # pictures; the deepest reordering that H.264 and HEVC allow
SKIPPING = {"h264", "hevc"}  # decoders that can be told for each packet whether it may be left out
JUMP = 4  # frames; a seek takes about as long as decoding this many
TICK = Fraction(1, 90_000)  # s; the usual unit of stamps at uneven times


def _library() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError(
            "reading and writing video needs the package av: pip install 'jaxact[video]'"
        ) from error
    return av


class Video:
    """One open video file; use one object per thread (the index is shared between them).

    `path` may lead into shards (`data.shards`); with `content` it only names these bytes.
    `frames` int; `size` (h, w) px as shown; `fps` mean frames/s; `times` f64[frames] s from the
    first frame. `threads` decode it (0: one per core); one is best where many files are read at
    once. Raises UserError, naming the file: missing, empty, cut off, not a video, no frames.

    >>> with Video("clip.mp4") as video:
    ...     clip = video.read(range(0, video.frames, 4))  # u8[t, h, w, 3]
    """

    def __init__(
        self, path: str | os.PathLike[str], threads: int = 1, content: bytes | None = None
    ):
        self.path = os.fspath(path)
        self._av = _library()
        self._threads = threads
        self._container: Any = None
        self._content = media.content(self.path) if content is None else content
        frame_index.check_whole(self.path, self._content)
        try:
            self._open()
            self._index = index = frame_index.cached(self.path, self._build, content)
        except BaseException as error:
            self.close()
            if isinstance(error, self._av.FFmpegError):
                raise UserError(
                    f"{self.path}: cannot be read as a video ({error.strerror})"
                ) from error
            raise
        self._converter = self._av.video.reformatter.VideoReformatter()
        self.frames = len(index.stamps)
        self._turns = index.turns
        self.size = self._turned((self._stream.height, self._stream.width))
        self.fps = index.fps
        self.times = (np.asarray(index.stamps, np.int64) - index.stamps[0]) * index.unit

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def read(self, indices: Iterable[int], size: tuple[int, int] | None = None) -> np.ndarray:
        """Frames `u8[t, h, w, 3]` (RGB) at `indices`, in any order and with repeats.

        `size` (h, w) px scales them while colours are converted (bilinear, antialiased).
        Raises UserError for an index outside the file and for a frame that cannot be decoded.
        """
        order = np.asarray(list(indices), dtype=np.int64)
        outside = order[(order < 0) | (order >= self.frames)]
        if outside.size:
            raise UserError(
                f"{self.path}: has no frame {outside[0]}; allowed are 0 to {self.frames - 1}"
            )
        wanted, places = np.unique(order, return_inverse=True)
        rows = {number: row for row, number in enumerate(wanted.tolist())}
        clip = np.empty((len(rows), *(size or self.size), 3), np.uint8)
        height, width = self._turned(size or self.size)  # as stored

        def keep(number: int, frame: Any) -> None:
            if size is None and (frame.height, frame.width) != (height, width):
                raise UserError(
                    f"{self.path}: frame {number} is {frame.height}x{frame.width} px where the "
                    f"file says {height}x{width}; read it with a size"
                )
            # One thread: the pool that the library starts by default costs more than the work.
            rgb = self._converter.reformat(frame, width, height, format="rgb24", threads=1)
            lines = np.frombuffer(rgb.planes[0], np.uint8).reshape(height, -1)
            picture = lines[:, : 3 * width].reshape(height, width, 3)
            clip[rows[number]] = np.rot90(picture, self._turns)

        try:
            self._gather(list(rows), keep)
        except BaseException as error:
            self._next = self.frames  # the decoder's position is unknown now: the next read seeks
            if isinstance(error, self._av.FFmpegError):
                raise UserError(
                    f"{self.path}: cannot be decoded up to frame {wanted[-1]} ({error.strerror})"
                ) from error
            raise
        return clip if np.array_equal(wanted, order) else clip[places]

    def _turned(self, size: tuple[int, int]) -> tuple[int, int]:
        """A stored (h, w) as it is shown, or the other way round."""
        return (size[1], size[0]) if self._turns % 2 else size

    def _open(self) -> tuple[Any, Any]:
        """Opens the file at its first packet."""
        self.close()
        content = self._content
        self._container = self._av.open(
            self.path if content is None else media.Record(content, self.path)
        )
        if any(name in self._container.format.name for name in STILLS):
            raise UserError(f"{self.path}: is not a video ({self._container.format.long_name})")
        cover = self._av.stream.Disposition.attached_pic
        streams = [s for s in self._container.streams.video if not s.disposition & cover]
        if not streams:
            raise UserError(f"{self.path}: has no video stream")
        self._stream = streams[0]
        self._codec = self._stream.codec_context
        if self._codec is None:
            raise UserError(f"{self.path}: there is no decoder for its codec")
        self._codec.thread_type = "SLICE" if self._threads == 1 else "AUTO"
        self._codec.thread_count = self._threads
        self._begin(-1)
        return self._container, self._stream

    def _build(self) -> frame_index.Index:
        index = frame_index.build(self.path, self._open, self._av.FFmpegError)
        self._open()
        return index

    def _begin(self, key: int) -> None:
        """Notes that decoding continues from this key frame, or (-1) from the first packet."""
        self._packets = self._container.demux(self._stream)
        self._ready: deque[Any] = deque()  # decoded and not yet handed out
        self._key = key
        self._next = 0 if key < 0 else self._index.keys[key]  # no frame before it will come
        self._await_key = key >= 0

    def _start(self, key: int) -> None:
        """Seeks to this key frame, or if that fails an earlier one, or (-1) the first packet."""
        index = self._index
        while key >= 0:
            self._container.seek(index.seeks[key], stream=self._stream)
            for packet in self._container.demux(self._stream):
                landed = None
                if packet.is_keyframe:
                    landed = index.landings.get(packet.pos if index.counted else packet.pts)
                if landed is not None and landed <= key:
                    self._begin(landed)
                    self._ready.extend(packet.decode())
                    return
                if landed is not None:
                    break
            key -= 1
        self._open()

    def _gather(self, wanted: list[int], keep: Callable[[int, Any], None]) -> None:
        """Calls `keep` with each of the `wanted` frames (rising numbers)."""
        queue, skippable = deque(wanted), self._skippable(wanted)
        while queue:
            key = bisect_right(self._index.keys, queue[0]) - 1
            if self._next > queue[0] or self._pays(key):
                self._start(key)
            while not self._through(queue, skippable, keep):
                if self._key < 0:
                    raise UserError(
                        f"{self.path}: frame {queue[0]} of {self.frames} cannot be decoded"
                    )
                self._start(self._key - 1)

    def _pays(self, key: int) -> bool:
        """Whether a seek ahead to this key frame is cheaper than decoding up to it."""
        return key >= 0 and self._index.keys[key] > self._next + JUMP

    def _skippable(self, wanted: list[int]) -> Callable[[Any], bool]:
        """A function: may the decoder skip the picture of a packet, if no other one refers to it?

        Nothing after the last wanted frame is skipped, so that the next read can continue there.
        """
        if self._index.counted or self._codec.codec.canonical_name not in SKIPPING or not wanted:
            return lambda packet: False
        stamps = {self._index.stamps[number] for number in wanted}
        last = max(stamps)
        return lambda packet: packet.pts < last and packet.pts not in stamps

    def _through(
        self, queue: deque[int], skippable: Callable[[Any], bool], keep: Callable[[int, Any], None]
    ) -> bool:
        """Decodes until the queue is empty or a seek pays; False if its first frame is lost."""
        for number, frame in self._decode(skippable):
            if number == queue[0]:
                keep(number, frame)
                queue.popleft()
                if not queue or self._pays(bisect_right(self._index.keys, queue[0]) - 1):
                    return True
            elif number > queue[0]:
                if number in queue:
                    keep(number, frame)
                    queue.remove(number)
                if number > queue[0] + REORDER:
                    return False
        return False

    def _decode(self, skippable: Callable[[Any], bool]) -> Iterator[tuple[int, Any]]:
        """(frame number, picture) of all that the decoder gives from where it is."""
        index = self._index
        while True:
            while self._ready:
                frame = self._ready.popleft()
                if index.counted:
                    if self._await_key and not frame.key_frame:
                        continue  # belongs before the key frame from which counting starts
                    number = self._next
                else:
                    number = bisect_left(index.stamps, frame.pts)
                    if number == len(index.stamps) or index.stamps[number] != frame.pts:
                        continue  # outside the edit list
                    if self._await_key and number < self._next:
                        continue
                    if self._await_key and number > self._next:
                        # A gradual refresh may not end in the exact picture: such a stream is
                        # decoded from its start.
                        self._key = 0
                        return
                self._await_key = False
                self._next = max(self._next, number + 1)
                yield number, frame
            packet = next(self._packets, None)
            if packet is None:
                return
            skip = "NONREF" if packet.size and skippable(packet) else "DEFAULT"
            if self._codec.skip_frame != skip:
                self._codec.skip_frame = skip
            self._ready.extend(packet.decode())


def write(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    fps: float | Fraction,
    codec: str = "libx264",
    crf: int | None = 23,
    gop: int = 12,
    pixels: str = "yuv420p",
    times: Sequence[float] | np.ndarray | None = None,
    **options: str | int,
) -> None:
    """Writes `frames` (u8[h, w, 3] each, RGB) as a video; the suffix chooses the container.

    With libx264 the same frames give the same bytes (no threads, dates or versions). `crf` is
    the quality (lower is better; None for encoders without it), `gop` the most frames from key
    frame to key frame, `pixels` the stored format; `options` go to the encoder as they are.
    `times` (s, rising) are those of the frames; without it they are even, at `fps`.
    The file appears only when complete. Raises: UserError, naming it.
    """
    av = _library()
    path = Path(path)
    part = draft(path)
    settings = {name: str(value) for name, value in options.items()}
    if crf is not None:
        settings["crf"] = str(crf)
    if codec == "libx264":
        # Its macroblock-tree rate control reads memory that it has not set, for most widths.
        settings.setdefault("mbtree", "0")
    try:
        with av.open(str(part), "w", options={"fflags": "+bitexact"}) as container:
            rate = Fraction(fps).limit_denominator(100_000)
            stream = container.add_stream(codec, rate=rate, options=settings)
            encoder = stream.codec_context
            encoder.pix_fmt, encoder.gop_size, encoder.thread_count = pixels, gop, 1
            if times is not None:
                encoder.time_base = TICK
            encoder.flags |= int(av.codec.context.Flags.bitexact)
            for number, picture in enumerate(frames):
                if number == 0:
                    encoder.height, encoder.width = picture.shape[:2]
                elif picture.shape[:2] != (encoder.height, encoder.width):
                    raise UserError(f"{path}: frame {number} differs in size from frame 0")
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
                frame.pts = number if times is None else round(times[number] / TICK)
                container.mux(stream.encode(frame))
                if encoder.options:  # what the encoder did not take
                    raise UserError(f"{path}: {codec} has no option {', '.join(encoder.options)}")
            if not encoder.is_open:
                raise UserError(f"{path}: no frames to write")
            container.mux(stream.encode(None))
        part.replace(path)
    except (av.FFmpegError, ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be written as {codec} ({error})") from error
    finally:
        part.unlink(missing_ok=True)
