"""A data set by its name: a prepared folder as it is, anything else prepared once into the user's cache."""

import re
from collections.abc import Sequence
from pathlib import Path

from vpd.cache import cache_directory
from vpd.data.data_set import is_data_set, is_shard, open_data_set
from vpd.data.packages import PREFIX
from vpd.data.prepare import Options, Watch, fingerprint, prepare, tokenizer_facts
from vpd.data.sources import Wanted, find_source
from vpd.data.tokenizer import TextTokenizer, load_tokenizer
from vpd.errors import VpdError


def tokenizer_for(name: str, tokenized: bool) -> TextTokenizer | None:
    """The tokenizer of a name; None where token ids are there already and it is not at hand.

    Raises:
        VpdError: where text is to be encoded and the tokenizer can't be had.
    """
    try:
        return load_tokenizer(name)
    except VpdError:
        if tokenized:
            return None
        raise


def checked_folder(
    wanted: Wanted, options: Options, tokenizer_name: str, splits: Sequence[str], vocab_size: int | None, watch: Watch
) -> Path:
    """The prepared folder that a run reads, looked at before any long work.

    A text is prepared under a name that hashes its files, the tokenizer and the options; several processes may ask at
    once, and one of them does it.

    Args:
        wanted: the data set; a prepared folder is used as it is.
        options: length and splits.
        tokenizer_name: which token ids these are to be.
        splits: those that are read.
        vocab_size: of the model, where it is known.
        watch: what shows the progress.

    Raises:
        VpdError: where there is no such text or tokenizer.
        RunError: where the folder is not what is asked for.
    """
    folder = Path(wanted.name).expanduser()
    if not folder.is_dir() or not _looks_prepared(folder):
        folder = _in_cache(wanted, options, tokenizer_name, watch)
        data_set = open_data_set(folder)
    else:
        data_set = open_data_set(folder)
        data_set.check_tokenizer(tokenizer_name, _hash_at_hand(tokenizer_name))
    for split in dict.fromkeys(splits):
        data_set.check_split(split, options.length)
        if vocab_size is not None:
            data_set.check_vocabulary(split, vocab_size)
    return folder


def _looks_prepared(folder: Path) -> bool:
    """Whether a folder is one of ours, even if its `meta.json` is lost."""
    return is_data_set(folder) or any(is_shard(path) for path in sorted(folder.glob("*.parquet"))[:1])


def _hash_at_hand(tokenizer_name: str) -> str | None:
    """The hash of a tokenizer that lies on this machine; the hub is not asked for what is prepared already."""
    is_here = tokenizer_name.startswith(PREFIX) or Path(tokenizer_name).expanduser().exists()
    return load_tokenizer(tokenizer_name).sha256 if is_here else None


def _in_cache(wanted: Wanted, options: Options, tokenizer_name: str, watch: Watch) -> Path:
    source = find_source(wanted, options.splits)
    tokenizer = tokenizer_for(tokenizer_name, wanted.tokenized)
    mark = fingerprint(source, options, tokenizer_facts(tokenizer_name, tokenizer))
    stem = re.sub(r"[^\w.-]+", "-", wanted.name).strip("-.")[-40:]
    folder = cache_directory() / "tokens" / f"{stem}-{mark[:24]}"
    prepare(source, options, tokenizer, tokenizer_name, folder, watch, wait=True)
    return folder
