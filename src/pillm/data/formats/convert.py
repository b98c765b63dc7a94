"""`pillm dataset convert`: read other tools' formats, or write them.

Every record is converted or named as a finding; what the target cannot hold is told once for each kind.
JSON lines are read in blocks, in flat memory. A JSON array is read as a whole, up to `MAX_ARRAY_BYTES`.
"""

from __future__ import annotations

import itertools
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from pillm.core.artifacts import artifact_of
from pillm.core.errors import FindingsError, UsageError
from pillm.core.events import Emit, Log, Made, Output, Progress
from pillm.core.findings import Finding
from pillm.core.jsonl import MAX_LINE_BYTES
from pillm.core.stage import Result
from pillm.data import inputs
from pillm.data.duplicates import rewrite
from pillm.data.formats import read as formats_in
from pillm.data.formats import write as formats_out
from pillm.data.formats.names import Lost, Misfit
from pillm.data.inputs import Block, Source
from pillm.data.options import ConvertOptions
from pillm.data.parallel import mapped

MAX_ARRAY_BYTES = 2**30
_MAX_FINDINGS = 1000
_UNNAMED = msgspec.json.encode({"id": formats_in.UNNAMED})[:-1]
_PACKINGS = {".gz": "gzip", ".zst": "zstd"}
_decode = msgspec.json.Decoder().decode


class _Wanted(NamedTuple):
    source: str
    to: str


class _Bad(NamedTuple):
    line: int
    byte: int
    path: str
    message: str


class _Converted(NamedTuple):
    """Of a block: records as (number, JSON), what could not be converted, what was lost, prompts left out, lines in all."""

    made: list[tuple[int, bytes]]
    bad: list[_Bad]
    lost: Lost
    prompts: int
    lines: int


def run(options: ConvertOptions, emit: Emit) -> Result:
    """Write `out`. Raises FindingsError with every record that cannot be converted, and writes nothing then."""
    sources = inputs.sources(options.data)
    rewrite.check_targets([options.out], sources)
    name = options.out.name
    packing = _PACKINGS.get(options.out.suffix, "")
    as_array = (Path(name).stem if packing else name).endswith(".json")
    ids = _ids(sources)
    lost, bad, wrong, prompts, count = Lost(), [], 0, 0, 0
    with rewrite.files(options.out.parent, {options.out: packing}) as (file,):
        for source, before, converted in _converted(sources, _Wanted(options.source, options.to), emit):
            lost += converted.lost
            prompts += converted.prompts
            wrong += len(converted.bad)
            bad += [_finding(source, before, item) for item in converted.bad[: _MAX_FINDINGS - len(bad)]]
            if wrong:
                continue
            for number, data in converted.made:
                if data.startswith(_UNNAMED):
                    data = msgspec.json.encode({"id": f"{ids[source]}-{before + number}"})[:-1] + data[len(_UNNAMED) :]
                file.write((b",\n" if count else b"[\n") + data if as_array else data + b"\n")
                count += 1
        if wrong:
            shown = f" (the first {len(bad):,} are shown)" if wrong > len(bad) else ""
            raise FindingsError(
                f"{wrong:,} record{'' if wrong == 1 else 's'} cannot be converted{shown}; nothing was written",
                bad,
                "mend or take out what is listed, then run again",
            )
        if not count:
            raise UsageError(
                "there is no record to write" + (f": all {prompts:,} are prompts without an answer" if prompts else ""),
                "label them first: pillm label" if prompts else "give files with one record a line",
            )
        if as_array:
            file.write(b"\n]\n")
    for what, times in sorted(lost.items()):
        emit(Log(f"{options.to} has no place for {what}: left out {times:,} times", "warning"))
    if prompts:
        emit(Log(f"{prompts:,} prompts without an answer were left out: {options.to} is for training", "warning"))
    if options.to == "llama-factory":
        emit(Output(formats_out.dataset_info(name.partition(".")[0], name)))
        emit(Log("put this entry into LLaMA-Factory's dataset_info.json, beside the file"))
    emit(Made(name, artifact_of(options.out)))
    return Result({"data": options.out}, {"records": count, "prompts_left_out": prompts, "lost": sum(lost.values())})


def _converted(sources: list[Source], wanted: _Wanted, emit: Emit) -> Iterator[tuple[Source, int, _Converted]]:
    """What was made of each block, with how many lines of its file are before it."""
    size = None if any(source.packing for source in sources) else sum(source.size for source in sources) / 1e6
    done = 0
    for whole, together in itertools.groupby(sources, _is_array):
        if whole:
            for source in together:
                yield source, 0, _array(source, wanted)
                done += source.size
                emit(Progress("converting", done / 1e6, size, "MB"))
            continue
        before, last = 0, None
        for block, converted in mapped(inputs.blocks(together), _block, wanted):
            if block.broken:
                raise rewrite.damaged(block.source, block.broken)
            before, last = before if block.source is last else 0, block.source
            yield block.source, before, converted
            before += converted.lines
            done += block.end - block.start
            emit(Progress("converting", done / 1e6, size, "MB"))


def _block(block: Block, wanted: _Wanted) -> _Converted:
    result = _Converted([], [], Lost(), 0, 0)
    prompts = total = 0
    for line in block.lines():
        total += 1
        if line.size > len(line.data):
            message = f"the line is {line.size:,} bytes long, more than {MAX_LINE_BYTES:,}"
            result.bad.append(_Bad(line.number, line.byte, "$", message))
            continue
        data = line.data.removeprefix(BOM_UTF8) if line.byte == 0 else line.data
        if data.strip():
            prompts += _add(result, data, line.number, line.number, line.byte, wanted)
    return result._replace(prompts=prompts, lines=total)


def _add(result: _Converted, data: bytes, number: int, line: int, byte: int, wanted: _Wanted) -> bool:
    """Convert one record, which is called by `number` if it has no id; whether it is a prompt that was left out."""
    try:
        record = formats_in.record(_decode(data), wanted.source, result.lost)
        if record.is_prompt and wanted.to in formats_out.TRAINED:
            return True
        result.made.append((number, formats_out.encoded(record, wanted.to, result.lost)))
    except Misfit as misfit:
        result.bad.append(_Bad(line, byte, misfit.path, misfit.message))
    except RecursionError:
        result.bad.append(_Bad(line, byte, "$", "the JSON is nested too deeply"))
    except (msgspec.MsgspecError, UnicodeError) as error:
        result.bad.append(_Bad(line, byte, "$", f"this is no JSON ({error})"))
    return False


def _is_array(source: Source) -> bool:
    if source.packing:
        head = next((block.data or b"" for block in inputs.blocks([source], 1)), b"")
    else:
        with source.path.open("rb") as file:
            head = file.read(4096)
    return head[:4096].removeprefix(BOM_UTF8).lstrip().startswith(b"[")


def _whole(source: Source) -> bytes:
    """The unpacked bytes of a file that is a JSON array."""
    first, *rest = itertools.islice(inputs.blocks([source], MAX_ARRAY_BYTES), 2)
    if first.broken:
        raise rewrite.damaged(source, first.broken)
    if rest or first.end > MAX_ARRAY_BYTES:
        raise UsageError(
            f"{source.name}: a JSON array of more than {MAX_ARRAY_BYTES / 2**30:.0f} GiB", "write it as JSON lines"
        )
    return source.path.read_bytes() if first.data is None else first.data


def _array(source: Source, wanted: _Wanted) -> _Converted:
    data = _whole(source).removeprefix(BOM_UTF8)
    result = _Converted([], [], Lost(), 0, 0)
    try:
        items = msgspec.json.decode(data, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        result.bad.append(_Bad(1, 0, "$", f"this is no JSON ({error})"))
        return result
    prompts, last, end, line = 0, 0, 0, 1
    for number, item in enumerate(items, 1):
        text = bytes(item)
        start = data.index(text, end)
        line += data.count(b"\n", last, start)
        last, end = start, start + len(text)
        prompts += _add(result, text, number, line, start, wanted)
    return result._replace(prompts=prompts)


def _ids(sources: list[Source]) -> dict[Source, str]:
    """What the ids of a file's records begin with where they have none: its name, with a number if two have the same."""
    stems = [source.path.name.partition(".")[0] for source in sources]
    return {
        source: stem if stems.count(stem) == 1 else f"{stem}-{number}"
        for number, (source, stem) in enumerate(zip(sources, stems, strict=True), 1)
    }


def _finding(source: Source, before: int, bad: _Bad) -> Finding:
    return Finding(
        file=source.name,
        line=before + bad.line,
        byte=bad.byte,
        path=bad.path,
        code="not-convertible",
        message=bad.message,
    )
