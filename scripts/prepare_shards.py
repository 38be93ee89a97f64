"""Puts a folder of videos or pictures into ArrayRecord shards, with Apache Beam.

    python scripts/prepare_shards.py --source clips --out shards --shards 8

Every recipe then takes `shards:FOLDER` in place of a folder of media, with the same annotations:
--config.data.videos=shards:shards. If it was interrupted, run the same command again: it keeps
shards that are sound, and makes those again that are damaged or whose source has changed. At the
end it compares counts and checksums with the source, and names media that cannot be decoded.

Beam's own flags follow a single `--`. Without any the pipeline runs in processes on this machine,
one a core: --runner=FnApiRunner --direct_running_mode=multi_processing --direct_num_workers=0.
(The DirectRunner of newer Beam first looks on the network for a binary of its Prism runner.) Its
workers log to standard error; the summary is the last line on standard output. On other machines,
with an image in which jaxact[video,beam] is installed:

    --source gs://mine/videos --out gs://mine/shards --shards 512 -- --runner=DataflowRunner
        --project=P --region=R --temp_location=gs://mine/tmp --sdk_container_image=IMAGE
        --sdk_location=container
    ... -- --runner=FlinkRunner --flink_master=HOST:8081 --environment_type=DOCKER
        --environment_config=IMAGE
    ... -- --runner=SparkRunner --environment_type=DOCKER --environment_config=IMAGE

Local paths are those of the workers. Training reads shards by local paths, so a bucket has to be
mounted or copied there. Needs the extra [beam], and [video] for videos; not JAX. One worker writes
a shard, so ask for at least as many shards as workers; 100 MB to 1 GB each is a good size.
"""

import argparse
import contextlib
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxact.config import UserError
from jaxact.data.shards import LISTING
from jaxact.packing import transcode, writer
from jaxact.packing.storage import Entry, Folder
from jaxact.packing.writer import Options

HERE = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=0")
COUNTERS = "shards"  # namespace
BLOCK = 2**22  # bytes copied at a time


def place(path: str) -> Any:
    """The local folder of a path, or for a URL one that Beam reaches."""
    return Remote(path) if "://" in path else Folder(path)


class Remote:
    """A `Place` that Beam's file systems reach (gs://, s3://, hdfs://, or a local path)."""

    def __init__(self, root: str):
        self.root = root.rstrip("/")

    def __str__(self) -> str:
        return self.root

    def entries(self) -> Iterator[Entry]:
        """Every object below."""
        from apache_beam.io.filesystems import FileSystems

        for entry in FileSystems.match([f"{self.root}/**"])[0].metadata_list:
            name = entry.path[len(self.root) + 1 :]
            if name and not name.endswith("/") and not any(p[0] == "." for p in name.split("/")):
                changed = float(entry.last_updated_in_seconds or 0)
                yield Entry(name, entry.size_in_bytes, changed)

    def read(self, name: str) -> bytes:
        """The bytes of an object. If it is there but cannot be read, the runner tries again."""
        from apache_beam.io.filesystems import FileSystems

        if not FileSystems.exists(f"{self.root}/{name}"):
            raise FileNotFoundError(f"{self.root}/{name}: no such file")
        try:
            # AUTO would unpack what is named .gz.
            with FileSystems.open(f"{self.root}/{name}", compression_type=_plain()) as file:
                return file.read()
        except OSError as error:
            raise RuntimeError(f"{self.root}/{name}: cannot be read now: {error}") from error

    def write(self, name: str, content: bytes) -> None:
        """Puts an object there, as `put` does."""
        with self.scratch() as folder:
            (folder / "content").write_bytes(content)
            self.put(name, folder / "content")

    def put(self, name: str, made: Path) -> None:
        """Copies a file there under another name, then renames it."""
        from apache_beam.io.filesystems import FileSystems

        # Two workers may get the same shard; neither must see an unfinished file of the other.
        aside, target = f"{self.root}/.{name}-{made.parent.name}", f"{self.root}/{name}"
        if not FileSystems.exists(self.root):  # a folder; buckets have none
            with contextlib.suppress(OSError):  # another worker was faster
                FileSystems.mkdirs(self.root)
        with FileSystems.create(aside, compression_type=_plain()) as file, made.open("rb") as read:
            shutil.copyfileobj(read, file, BLOCK)
        self.remove(name)
        FileSystems.rename([aside], [target])

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path | None]:
        """A copy of the object on this machine, for the time of the context."""
        from apache_beam.io.filesystems import FileSystems

        if not FileSystems.exists(f"{self.root}/{name}"):
            yield None
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            with (
                FileSystems.open(f"{self.root}/{name}", compression_type=_plain()) as file,
                path.open("wb") as copy,
            ):
                shutil.copyfileobj(file, copy, BLOCK)
            yield path

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on this machine."""
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    def remove(self, name: str) -> None:
        """Deletes an object if it is there."""
        from apache_beam.io.filesystems import FileSystems

        if FileSystems.exists(f"{self.root}/{name}"):
            FileSystems.delete([f"{self.root}/{name}"])


def _plain() -> str:
    from apache_beam.io.filesystem import CompressionTypes

    return CompressionTypes.UNCOMPRESSED


def pipeline(root: Any, source: str, out: str, options: Options) -> Any:
    """Adds the steps to a Beam pipeline: listing -> names by shard -> one shard after the other."""
    import apache_beam as beam
    from apache_beam.metrics import Metrics

    def by_shard(line: str) -> tuple[int, str]:
        return writer.shard_of(Entry.parse(line).name, options.shards), line

    def write(item: Any) -> dict[str, int]:
        number, lines = item
        entries = [Entry.parse(line) for line in lines if line]
        done = writer.write_shard(place(source), place(out), number, entries, options)
        for name, count in done.items():
            Metrics.counter(COUNTERS, name).inc(count)
        return done

    # Shards without any media are made too: a set of 16 has 16 files.
    every = root | "shards" >> beam.Create([(k, "") for k in range(options.shards)])
    listed = (
        root
        | "listing" >> beam.io.ReadFromText(f"{out.rstrip('/')}/{LISTING}")
        | "by shard" >> beam.Map(by_shard)
    )
    grouped = (every, listed) | beam.Flatten() | beam.GroupByKey()
    return grouped | "write" >> beam.Map(write)


def prepare(
    source: str, out: str, patterns: list[str], annotations: str, options: Options, flags: list[str]
) -> str:
    """Runs the pipeline and finishes the set; returns a summary.

    Raises: UserError for what stops it: no source, broken media, counts that do not agree.
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise UserError("preparing shards needs Apache Beam: pip install 'jaxact[video,beam]'")
    given = [str(Path(p).absolute()) if "://" not in p else p for p in (source, out)]
    here, there = place(given[0]), place(given[1])
    if f"{given[1]}/".startswith(f"{given[0].rstrip('/')}/"):
        raise UserError(f"--out={out} lies in --source={source}; allowed: a folder beside it")
    wanted = transcode.wanted(annotations) if annotations else None
    entries = writer.listing(here, patterns, wanted)
    transcode.ready([entry.name for entry in entries], options.short_side, options.check)
    writer.begin(there, entries, options)
    import apache_beam as beam  # takes seconds: after the checks
    from apache_beam.options.pipeline_options import PipelineOptions

    root = beam.Pipeline(options=PipelineOptions(flags or list(HERE)))
    pipeline(root, *given, options)
    run = root.run()
    run.wait_until_finish()
    counters = run.metrics().query()["counters"]
    own = (one for one in counters if one.key.metric.namespace == COUNTERS)
    told = {one.key.metric.name: one.result for one in own}
    manifest = writer.finish(there, entries, options)
    if isinstance(there, Folder):
        there.sweep()
    lines = [f"left out as broken: {name}: {why}" for name, why in manifest["broken"]]
    lines.append(", ".join(f"{name} {count}" for name, count in sorted(told.items())))
    lines.append(
        f"{out}: {manifest['records']} records, {manifest['bytes']} bytes in "
        f"{len(manifest['shards'])} shards, {len(manifest['broken'])} broken, of {len(entries)} "
        f"files; read it as shards:{out}"
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Prepares a set; 2 for the user's mistakes and for broken media."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    own, flags = words[:cut], words[cut + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Flags of Beam follow a lone --.",
    )
    parser.add_argument("--source", required=True, help="folder of videos or pictures")
    parser.add_argument("--out", required=True, help="folder of the shards")
    parser.add_argument("--pattern", nargs="+", default=["*"], help="of file names, as '*.mp4'")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--annotations", default="", help="take only the media that it names")
    parser.add_argument(
        "--short_side", type=int, default=0, help="px; shrink to it (0: keep bytes)"
    )
    parser.add_argument("--check", default="on", choices=("on", "off"), help="decode every file")
    parser.add_argument("--broken", default="stop", choices=("stop", "skip"))
    options = parser.parse_args(own)
    try:
        for name, least in (("shards", 1), ("short_side", 0)):
            if getattr(options, name) < least:
                raise UserError(f"--{name}={getattr(options, name)}; allowed: {least} or more")
        how = Options(options.shards, options.short_side, options.check == "on", options.broken)
        patterns, named = options.pattern, options.annotations
        print(prepare(options.source, options.out, patterns, named, how, flags))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
