"""Keys: where they are read, and that none of them is ever shown.

A configuration never holds a key, only the name of the environment variable that does. What is printed goes through
`masked_output`, what is written and may quote others through `mask_text`.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import TracebackType
from typing import Any, TextIO

from pydantic import SecretStr

MASK = "***"
KEY_VARIABLES = (
    "GBOX_API_KEY",
    "VLLM_API_KEY",
    "OPENAI_API_KEY",
    "WANDB_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
)
"""The variables that hold keys for this library, or for one that it uses."""
_REFERENCE = re.compile(r"\$\{oc\.env:(\w+)\}")
_SECRET_NAME = re.compile(
    r"((^|_)(api_?keys?|keys?|tokens?|secrets?|credentials?|auth)|passwords?|passwd|_pwd)$", re.IGNORECASE
)
_SHORTEST_SECRET = 8
_USER_INFO = re.compile(r"(?<=://)[^/\s?#\"'<>]+(?=@)")
_SECRET_VALUE = re.compile(
    r"\b(sk|pk|hf|ghp|gho|github_pat|glpat|xox[abp]|wandb_v1|gbox)[-_][A-Za-z0-9_-]{12,}"  # tokens with known prefixes
    r"|\b(AKIA|AIza)[A-Za-z0-9_-]{12,}"
)
_IN_HEADER = re.compile(r"(bearer\s+|authorization\W+basic\s+|x-api-key:\s*)[\w.~+/=-]{6,}", re.IGNORECASE)
_KEY_WORD = r"[\w.-]*(?:api[_-]?key|access[_-]?key|secret|passwd|password|token|authorization)"
_NAMED = re.compile(
    rf"(\b{_KEY_WORD}=['\"]?"  # on a command line, in a query string, in a call
    rf"|['\"]{_KEY_WORD}['\"]\s*[:,]\s*b?['\"])"  # in a mapping, or a pair of headers
    r"(?!\$\{|null\b|None\b|true\b|false\b|\*)[^\s\"'&,;)}\]]+",
    re.IGNORECASE,
)


class BadKey(ValueError):  # noqa: N818 (what it is)
    """A variable that holds no usable key; one line that names it and does not show it."""


def read_key(variable: str, environment: Mapping[str, str] | None = None) -> SecretStr | None:
    """The key in an environment variable, without white space around it; None where there is none.

    Raises `BadKey` when what is left cannot be sent in a header: it is no key, or more than one line of a file.
    """
    key = (os.environ if environment is None else environment).get(variable, "").strip()
    if not key:
        return None
    return checked_key(key, variable)


def checked_key(key: str, where: str) -> SecretStr:
    """`key` without white space around it. Raises `BadKey` naming `where` it came from."""
    key = key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise BadKey(f"{where}: white space or a special character within the key; allowed: the key alone, on one line")
    return SecretStr(key)


def check_key_variables() -> None:
    """Put the keys of `KEY_VARIABLES` in order for every library that reads them. Raises `BadKey`."""
    for variable in KEY_VARIABLES:
        key = read_key(variable)
        if key is not None:
            os.environ[variable] = key.get_secret_value()


def referenced_variable(text: str) -> str | None:
    """NAME of `${oc.env:NAME}`; None for anything else."""
    match = _REFERENCE.fullmatch(text)
    return match[1] if match else None


def is_secret_name(name: str) -> bool:
    """Whether a variable or key of that name holds a secret."""
    return bool(_SECRET_NAME.search(name))


def mask_text(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` with `***` for everything that is or looks like a secret: values of environment variables with such a
    name, users and passwords in addresses, tokens of known shapes, and values beside a word such as `api_key=`."""
    return masker(environment)(text)


def masker(environment: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """`mask_text` for many texts: the environment is looked through once, when it is called."""
    secrets = _known_secrets(os.environ if environment is None else environment)

    def masked(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, MASK)
        text = _USER_INFO.sub(MASK, text)
        for pattern in (_IN_HEADER, _NAMED):
            text = pattern.sub(rf"\1{MASK}", text)
        return _SECRET_VALUE.sub(MASK, text)

    return masked


def _known_secrets(environment: Mapping[str, str]) -> list[str]:
    """Longest first, so that none is left over where another is a part of it."""
    values = [value for name, value in environment.items() if _SECRET_NAME.search(name)]
    values += [match for value in environment.values() for match in _passwords(value)]
    lines = {line.strip() for value in values for line in (value, *value.splitlines())}
    return sorted((line for line in lines if len(line) >= _SHORTEST_SECRET), key=len, reverse=True)


def _passwords(value: str) -> list[str]:
    """The passwords of addresses in `value`, without their users."""
    return [match.partition(":")[2] or match for match in _USER_INFO.findall(value)]


class _MaskedStream:
    """A text stream that shows no secrets; each `write` is masked by itself. Where nobody can read it any more (a
    broken pipe, a terminal that is gone, a full disk), what is written is lost: no reason to lose a run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._lost():
            self._stream.write(mask_text(text))
        return len(text)

    def flush(self) -> None:
        with self._lost():
            self._stream.flush()

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # What is buffered goes nowhere, too: the interpreter would fail at it at the end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def masked_output() -> Iterator[None]:
    """For a whole command: whatever it, a library or a traceback prints, no secret is shown."""
    sys.excepthook = _masked_traceback  # an error that ends the process is printed after this block
    with redirect_stdout(_masked(sys.stdout)), redirect_stderr(_masked(sys.stderr)):
        yield


def _masked(stream: TextIO) -> Any:
    return stream if isinstance(stream, _MaskedStream) else _MaskedStream(stream)


def _masked_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(mask_text("".join(traceback.format_exception(kind, error, trace))))
