"""YAML in and out: text to plain blocks, lists and scalars, and back."""

# ruamel.yaml's annotations leave load, dump and error marks partly unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import os
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from vpd.config.block import plain, refusal, show
from vpd.config.values import is_block, is_list

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 40
_MAX_VALUES = 100_000
# A URL that names a user or carries a signature, and what the hub's tokens look like.
_CREDENTIALS = re.compile(
    r"https?://[^/\s@]+@|://[^/\s:@]+:[^/\s@]+@|[?&](?:[\w-]*token|password|secret|sig|[\w-]*signature)=|\bhf_[a-z0-9]{30,}",
    re.IGNORECASE,
)
_SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def read_document(path: Path) -> dict[str, object]:
    """The top-level block of a YAML file.

    Raises: ConfigError where there is no such file, or it is not one block of plain YAML.
    """
    return parse_document(_text(path), _named(path))


def parse_document(text: str, origin: str) -> dict[str, object]:
    """The top-level block of YAML text; `origin` names it in errors."""
    document = _load(text, origin)
    if document is None:
        raise refusal(origin, "the file is empty", "write a run file with pd, cadence, target and data")
    if not is_block(document):
        raise refusal(
            origin,
            f"a run file is a block of keys, got {show(document)}",
            "write pd, cadence, target and data at the top level",
        )
    return plain_block(document, origin)


def plain_block(document: Mapping[str, object], origin: str = "") -> dict[str, object]:
    """A copy in which every block is a dict with text keys, every list a list; aliases are written out.

    Raises: ConfigError on recursion, excessive size or depth, and values that YAML's core types don't have.
    """
    copy = _Copy(origin)
    return copy.block(document, "", ())


def write_document(document: Mapping[str, object]) -> str:
    """A block as YAML text, keys in the order they have."""
    yaml = _yaml()
    # Before the representer is first asked for, which takes it over.
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue] (typed as None)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 4096
    yaml.representer.ignore_aliases = _write_out
    out = StringIO()
    yaml.dump(dict(document), out)
    return out.getvalue()


def _write_out(_value: object) -> bool:
    """A dump repeats equal blocks instead of pointing at the first."""
    return True


def _named(path: Path) -> str:
    """A path as errors name it, its end kept where it is too long to read."""
    text = str(path)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 200 else "..." + text[-197:]


def _yaml() -> YAML:
    # The C loader can overflow the stack on deep nesting; the pure one raises RecursionError.
    return YAML(typ="safe", pure=True)


def _text(path: Path) -> str:
    name = _named(path)
    way_out = "give the path of a run file"
    try:
        if path.is_dir():
            raise refusal(name, "is a directory", "give the path of a run file, such as its config.yaml")
        if not path.exists():
            raise refusal(name, "no such file", way_out)
        if not path.is_file():
            raise refusal(name, "is not a regular file", way_out)
        if path.stat().st_size > _MAX_BYTES:
            raise refusal(name, f"is larger than {_MAX_BYTES} bytes, which no run file is", way_out)
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refusal(name, f"is not UTF-8 text (byte {error.start})", way_out) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise refusal(name, f"can't be read ({reason})", way_out) from None


def _load(text: str, origin: str) -> object:
    way_out = "correct the YAML there"
    try:
        return _yaml().load(text)
    except RecursionError:
        raise refusal(origin, "is nested too deeply", "write a run file of a few levels") from None
    except ReaderError as error:
        said = f"holds the unprintable character {_code_point(error.character)}, so it is not YAML text"
        raise refusal(origin, said, "give the path of a run file") from None
    except DuplicateKeyError as error:
        said, way_out = (
            f"a key occurs twice{_where(error)}: {_first_line(error).partition(' with value')[0]}",
            "remove one of the two",
        )
        raise refusal(origin, said, way_out) from None
    except MarkedYAMLError as error:
        raise refusal(origin, f"is not valid YAML{_where(error)}: {_first_line(error)}", way_out) from None
    except (YAMLError, ValueError, TypeError, AssertionError, AttributeError, KeyError, IndexError) as error:
        # The parser raises these bare on some malformed numbers, dates and tags.
        raise refusal(origin, f"is not valid YAML ({show(str(error))})", way_out) from None


def _code_point(character: object) -> str:
    return f"U+{ord(character) if isinstance(character, str) else character:04X}"


def _where(error: MarkedYAMLError) -> str:
    mark = error.problem_mark
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def _first_line(error: MarkedYAMLError) -> str:
    lines = str(error.problem or error.context or "unreadable").strip().splitlines()
    line = " ".join(lines[0].replace(". ", ", ").rstrip(".").split())
    return line[:200] if line.isprintable() else ascii(line[:200])


def holds_credentials(text: str) -> bool:
    """Whether a text is what opens an account: a URL with a password in it, a token, or one of this process's."""
    own = (os.environ.get(name, "") for name in _SECRETS)
    return _CREDENTIALS.search(text) is not None or any(len(secret) >= 8 and secret in text for secret in own)


class _Copy:
    """Writes out aliases, and counts: a few lines of aliases can stand for billions of values."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.n_values = 0

    def block(self, given: Mapping[str, object], key: str, above: tuple[int, ...]) -> dict[str, object]:
        above = self._enter(given, key, above)
        copied: dict[str, object] = {}
        # Keys are whatever the YAML had, despite the annotation.
        for name, value in given.items():
            if type(name) is not str:
                raise refusal(
                    key or plain(self.origin) or "run file",
                    f"a key must be a word, got {show(name)}",
                    "write a word, or put it in quotes",
                )
            copied[name] = self.value(value, f"{key}.{plain(name)}" if key else plain(name), above)
        return copied

    def value(self, given: object, key: str, above: tuple[int, ...]) -> object:
        if is_block(given):
            return self.block(given, key, above)
        if is_list(given):
            above = self._enter(given, key, above)
            return [self.value(item, f"{key}[{i}]", above) for i, item in enumerate(given)]
        if given is None or isinstance(given, str | bool | int | float):
            self._count(key)
            if isinstance(given, str) and holds_credentials(given):
                said = "holds a password or a token, and a run file is copied into run directories, reports and records"
                raise refusal(key, said, "leave it out: the hub and W&B have logins and environment variables for it")
            return given
        raise refusal(
            key,
            f"{show(str(given))} is a {type(given).__name__}, which no key takes",
            "write a number or a text in quotes",
        )

    def _enter(self, given: object, key: str, above: tuple[int, ...]) -> tuple[int, ...]:
        self._count(key)
        if id(given) in above:
            raise refusal(_short(key), "an alias contains itself", "write the value out")
        if len(above) >= _MAX_DEPTH:
            raise refusal(_short(key), "is nested too deeply", "write a run file of a few levels")
        return (*above, id(given))

    def _count(self, key: str) -> None:
        self.n_values += 1
        if self.n_values > _MAX_VALUES:
            raise refusal(_short(key), f"aliases expand to more than {_MAX_VALUES} values", "write the values out")


def _short(key: str) -> str:
    return key if len(key) <= 80 else key[:77] + "..."
