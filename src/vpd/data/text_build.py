"""From a run file's `data` block of text to its token shards and batches, each a function of (seed, step)."""

from pathlib import Path

from vpd.config.targets import TokenData
from vpd.data.prepare import Options, Watch
from vpd.data.sources import Wanted
from vpd.data.text import checked_folder
from vpd.data.tokens import TokenBatches, token_batches


def prepared_folder(data: TokenData, watch: Watch, vocab_size: int | None = None, evaluated: bool = True) -> Path:
    """The folder of token shards that a run reads; text is prepared into the user's cache when first asked for.

    Args:
        data: the data block.
        watch: what shows the progress of so many bytes.
        vocab_size: of the model, where it is known.
        evaluated: whether the evaluation split is read too.

    Raises:
        VpdError: where there is no such text or tokenizer.
        RunError: where a prepared folder is not what the block asks for.
    """
    files = (data.data_files,) if isinstance(data.data_files, str) else data.data_files or ()
    wanted = Wanted(
        data.dataset_name,
        data.column_name,
        data.is_tokenized,
        data_files=files,
        revision=data.revision,
        streaming=data.streaming,
    )
    options = Options(data.max_seq_len, data.train_split, data.eval_split)
    splits = (data.train_split, data.eval_split) if evaluated else (data.train_split,)
    return checked_folder(wanted, options, data.tokenizer_name, splits, vocab_size, watch)


def text_batches(
    data: TokenData,
    folder: Path,
    batch_size: int,
    seed: int,
    name: str,
    process_index: int = 0,
    process_count: int = 1,
) -> TokenBatches:
    """Batches of a prepared folder on one named stream: those of the evaluation split for ``eval``.

    Args:
        data: the data block.
        folder: from :func:`prepared_folder`.
        batch_size: sequences a step, over all processes.
        seed: the run's seed.
        name: ``train`` or ``eval``.
        process_index: which share of each batch.
        process_count: shares of each batch.
    """
    split = data.eval_split if name == "eval" else data.train_split
    each_epoch = data.shuffle_each_epoch
    return token_batches(
        folder, split, data.max_seq_len, batch_size, seed, name, each_epoch, process_index, process_count
    )
