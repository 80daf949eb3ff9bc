"""The run file: its vocabulary, how it is read, and what is refused."""

from vpd.config.changes import Changes, changed_fields, values_of
from vpd.config.document import read_document
from vpd.config.pretraining import PretrainingConfig
from vpd.config.reading import (
    PretrainingFile,
    RunFile,
    dump_run_file,
    read_file,
    read_pretraining_file,
    read_run_file,
)
from vpd.config.reference import config_reference, json_schema
from vpd.config.run import PD, Cadence, Eval, Logging, RunConfig, Runtime
from vpd.config.sites import match_sites
from vpd.config.sources import resolved_scope
from vpd.config.support import check_supported

__all__ = [
    "PD",
    "Cadence",
    "Changes",
    "Eval",
    "Logging",
    "PretrainingConfig",
    "PretrainingFile",
    "RunConfig",
    "RunFile",
    "Runtime",
    "changed_fields",
    "check_supported",
    "config_reference",
    "dump_run_file",
    "json_schema",
    "match_sites",
    "read_document",
    "read_file",
    "read_pretraining_file",
    "read_run_file",
    "resolved_scope",
    "values_of",
]
