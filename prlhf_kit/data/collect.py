"""From a loader's rows to memory-mapped splits."""

import atexit
import itertools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, config
from tqdm.auto import tqdm

from prlhf_kit.data.schema import FEATURES, SPLITS, SchemaError


def collect(rows: Iterable[tuple[str, dict]], features: Features = FEATURES) -> DatasetDict:
    """Write (split, record) rows to Arrow files and map them into memory: a million pairs take disk, not RAM.

    The files lie in the cache folder of `datasets` and go when the process ends; `prlhf data prepare` keeps them.
    `Dataset.from_generator` does the same in three times the time, for one split a reading.
    """
    schema = features.arrow_schema
    Path(config.HF_DATASETS_CACHE).mkdir(parents=True, exist_ok=True)
    temporary = tempfile.TemporaryDirectory(dir=config.HF_DATASETS_CACHE, prefix="prlhf_kit-")
    atexit.register(temporary.cleanup)  # and with it the object lives until then
    files: dict[str, str] = {}
    writers: dict[str, pa.RecordBatchStreamWriter] = {}
    shown = iter(tqdm(rows, desc="reading", unit=" pairs", disable=None, leave=False))
    try:
        while batch := list(itertools.islice(shown, 1000)):  # rows that are in memory at a time
            for split in dict.fromkeys(split for split, _ in batch):
                if split not in writers:
                    files[split] = str(Path(temporary.name, f"{split}.arrow"))
                    writers[split] = pa.ipc.new_stream(files[split], schema)
                writers[split].write_batch(_batch([row for where, row in batch if where == split], schema))
    finally:
        for writer in writers.values():
            writer.close()
    order = [s for s in SPLITS if s in files] + sorted(set(files) - set(SPLITS))
    return DatasetDict({split: Dataset.from_file(files[split]) for split in order})


def changed(pairs: Dataset, change: Callable[[dict], dict], features: Features | None = None) -> Dataset:
    """`pairs` with the columns that `change(row)` returns. `map` writes beside the data, which may be read-only."""
    features = features or pairs.features
    rows = (("", row | change(row)) for row in pairs)
    return collect(rows, features).get("") or Dataset.from_dict({name: [] for name in features}, features=features)


def _batch(rows: list[dict], schema: pa.Schema) -> pa.RecordBatch:
    try:
        return pa.RecordBatch.from_pylist(rows, schema=schema)
    except (pa.ArrowException, UnicodeEncodeError) as error:
        if len(rows) > 1:  # which of them is it?
            for row in rows:
                _batch([row], schema)
        raise SchemaError(
            f"the pair {rows[0].get('pair_id')!r} of user {rows[0].get('user_id')!r} does not fit the record: {error}. "
            f"Expected {dict(Features.from_arrow_schema(schema))}. Fix or remove its row."
        ) from error
